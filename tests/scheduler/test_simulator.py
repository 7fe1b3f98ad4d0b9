from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.random import Generator

from scheduler.arrivals import POISSON
from scheduler.attempt import CPU_MARGIN, MARGIN_S, TIME_MARGIN
from scheduler.latency import BackendProfile, LatencyCurve, LatencyPoint
from scheduler.measure import Sla, feasible, max_qps
from scheduler.plan import POLICIES, OperatingPoint, Plan
from scheduler.service_law import Draw, linear, measured
from scheduler.simulator import Node, Simulated, simulate, simulated_load
from scheduler.sizes import parse_sizes
from scheduler.workload import Schedule, draw_schedule


def drawn(sampler: Callable[[Generator, int], np.ndarray]) -> Callable[[Generator], Draw]:
    """Return a service law whose seconds do not depend on the batch."""

    def make(rng: Generator) -> Draw:
        seconds = iter(sampler(rng, 1_000_000).tolist())
        return lambda _candidates, _busy, _now: next(seconds)

    return make


EXPONENTIAL = drawn(lambda rng, n: rng.standard_exponential(n))
CONSTANT = drawn(lambda _rng, n: np.ones(n))


def queue(law: Callable[[Generator], Draw], servers: int, load: float, count: int) -> Simulated:
    schedule = draw_schedule(5, POISSON, parse_sizes("fixed:1"), load * servers, count=count)
    plan = Plan(OperatingPoint(1), sla_s=10.0)
    node = Node(servers, {"m": law})
    return simulate(node, POLICIES["paper"], {"m": plan}, schedule.arrival_s, schedule.size, "m", seed=3)


def erlang_c(servers: int, load: float) -> float:
    """Return the probability that a query waits."""
    a = servers * load
    terms = [a**k / math.factorial(k) for k in range(servers)]
    last = a**servers / math.factorial(servers) / (1 - load)
    return last / (sum(terms) + last)


@pytest.mark.slow
@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (2, 0.7), (4, 0.7)])
def test_the_mean_response_of_an_mmc_queue_is_erlangs(servers: int, load: float) -> None:
    theory = 1 + erlang_c(servers, load) / (servers * (1 - load))
    assert queue(EXPONENTIAL, servers, load, 250_000).latency_s.mean() == pytest.approx(theory, rel=0.01)


def test_the_mean_response_of_an_md1_queue_is_pollaczeks() -> None:
    load = 0.6
    theory = 1 + load / (2 * (1 - load))
    assert queue(CONSTANT, 1, load, 200_000).latency_s.mean() == pytest.approx(theory, rel=0.01)


def test_one_server_follows_lindleys_recursion_exactly() -> None:
    schedule = draw_schedule(1, POISSON, parse_sizes("production"), 90.0, count=2000)
    plan = Plan(OperatingPoint(1000), sla_s=10.0)
    run = simulate(
        Node(1, {"m": linear(0.001, 0.0001)}),
        POLICIES["static"],
        {"m": plan},
        schedule.arrival_s,
        schedule.size,
        "m",
    )
    end, expected = 0.0, []
    for at, n in zip(schedule.arrival_s, schedule.size, strict=True):
        end = max(end, at) + 0.001 + 0.0001 * n
        expected.append(end - at)
    assert run.latency_s == pytest.approx(expected, rel=1e-9)
    assert run.batches == 2000
    assert run.busy_s == pytest.approx(float((0.001 + 0.0001 * schedule.size).sum()))


SCHEDULE = draw_schedule(2, POISSON, parse_sizes("production"), 300.0, count=1500)
NODE = Node(2, {"m": linear(1e-4, 4e-5, sigma=0.2, contention=0.1)})
PLAN = Plan(OperatingPoint(64), sla_s=0.1, fixed_s=1e-4, per_candidate_s=4e-5)


def run(
    node: Node = NODE,
    plan: Plan = PLAN,
    seed: int = 1,
    policy: str = "adaptive",
    schedule: Schedule = SCHEDULE,
) -> Simulated:
    return simulate(node, POLICIES[policy], {"m": plan}, schedule.arrival_s, schedule.size, "m", seed=seed)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_run_is_the_same_from_the_same_seed(policy: str) -> None:
    assert np.array_equal(run(policy=policy).latency_s, run(policy=policy).latency_s)
    assert not np.array_equal(run(policy=policy).latency_s, run(policy=policy, seed=2).latency_s)
    assert np.isfinite(run(policy=policy).latency_s).all()


def test_cores_at_work_slow_each_other() -> None:
    few = Schedule(np.array([0.0, 0.0]), np.array([10, 10], dtype=np.int32))
    node = Node(2, {"m": linear(0.0, 0.1, contention=0.5)})
    plan = Plan(OperatingPoint(10), sla_s=9.0, smallest_cut=10)
    assert run(node, plan, schedule=few).latency_s.tolist() == pytest.approx([1.0, 1.5])


def test_queries_pass_the_front_end_one_after_the_other() -> None:
    few = Schedule(np.array([0.0, 0.1, 5.0]), np.array([1, 1, 1], dtype=np.int32))
    node = Node(3, {"m": linear(0.0, 0.0)}, front_end_s=1.0)
    assert run(node, schedule=few).latency_s.tolist() == pytest.approx([1.0, 1.9, 1.0])


def test_the_accelerator_takes_so_many_queries_at_once() -> None:
    few = Schedule(np.array([0.0, 0.0, 0.0, 0.0]), np.array([50, 60, 70, 1], dtype=np.int32))
    node = Node(1, {"m": linear(0.0, 0.1)}, {"m": linear(2.0, 0.0)}, accelerator_slots=2)
    result = run(node, Plan(OperatingPoint(10, 50), sla_s=9.0), schedule=few)
    assert result.latency_s.tolist() == pytest.approx([2.0, 2.0, 4.0, 0.1])
    assert result.offloaded.tolist() == [True, True, True, False]


def test_what_the_accelerator_fails_the_cores_take_over() -> None:
    few = Schedule(np.array([0.0, 0.0]), np.array([50, 60], dtype=np.int32))
    node = Node(1, {"m": linear(0.0, 0.1)}, {"m": linear(math.inf, 0.0)})
    result = run(node, Plan(OperatingPoint(100, 1), sla_s=9.0), schedule=few)
    assert result.latency_s.tolist() == pytest.approx([5.0, 11.0])


def test_an_attempt_that_takes_too_long_goes_to_the_cores_while_the_accelerator_finishes_it() -> None:
    few = Schedule(np.array([0.0, 5.0]), np.array([50, 50], dtype=np.int32))
    node = Node(1, {"m": linear(0.0, 0.02)}, {"m": linear(7.0, 0.0)})
    plan = Plan(OperatingPoint(50, 50), sla_s=6.0, per_candidate_s=0.02)
    result = run(node, plan, schedule=few)
    limit_s = 6.0 - MARGIN_S - 1.0 * (1 + CPU_MARGIN) - 6.0 * TIME_MARGIN
    # The second waits for the accelerator until 7.0, and finds the core idle again.
    assert result.latency_s.tolist() == pytest.approx([limit_s + 1.0] * 2)
    assert not result.offloaded.any()


def test_an_attempt_without_a_target_and_a_deadline_has_no_end() -> None:
    few = Schedule(np.array([0.0]), np.array([50], dtype=np.int32))
    node = Node(1, {"m": linear(0.0, 0.1)}, {"m": linear(7.0, 0.0)})
    assert run(node, Plan(OperatingPoint(50, 50), sla_s=math.inf), schedule=few).latency_s.tolist() == [7.0]


def test_busy_cores_keep_no_query_from_an_accelerator_that_has_room() -> None:
    rng = np.random.default_rng(5)
    arrival_s = np.sort(rng.uniform(0, 10, 1000))
    size = rng.choice(np.array([20, 200], dtype=np.int32), 1000, p=[0.8, 0.2])
    node = Node(1, {"m": linear(0.0, 6e-4)}, {"m": linear(0.03, 0.0)})
    plan = Plan(OperatingPoint(100, 200), sla_s=0.1, per_candidate_s=6e-4)
    result = run(node, plan, schedule=Schedule(arrival_s, size))
    assert result.offloaded[size == 200].mean() >= 0.9


def test_a_query_that_the_cores_could_not_answer_in_time_after_its_attempt_is_refused() -> None:
    arrival_s, size = np.array([0.0, 0.1]), np.array([90, 50], dtype=np.int32)
    result = simulate(
        Node(1, {"m": linear(0.0, 0.1)}, {"m": linear(99.0, 0.0)}),
        POLICIES["paper"],
        {"m": Plan(OperatingPoint(100, 50), sla_s=9.0, per_candidate_s=0.1)},
        arrival_s,
        size,
        "m",
        deadline_s=np.array([20.0, 5.0]),
    )
    # The first leaves the core its 9 seconds; for the second, which needs 5 more, the attempt was all there was.
    limit_s = 20.0 - MARGIN_S - 9.0 * (1 + CPU_MARGIN) - 20.0 * TIME_MARGIN
    assert result.latency_s.tolist() == pytest.approx([limit_s + 9.0, math.inf])


def test_a_core_that_fails_drops_the_query() -> None:
    few = Schedule(np.array([0.0, 1.0]), np.array([5, 5], dtype=np.int32))

    def fails_early(_rng: Generator) -> Draw:
        return lambda _candidates, _busy, now: math.inf if now < 0.5 else 0.25

    assert run(Node(1, {"m": fails_early}), schedule=few).latency_s.tolist() == [math.inf, 0.25]


def test_refused_and_expired_queries_are_infinitely_late() -> None:
    arrival_s, size = np.zeros(4), np.array([10, 10, 10, 10], dtype=np.int32)
    result = simulate(
        Node(1, {"m": linear(0.0, 0.1)}),
        POLICIES["adaptive"],
        {"m": PLAN},
        arrival_s,
        size,
        "m",
        deadline_s=np.array([9.0, 0.5, 9.0, 9.0]),
        max_waiting=20,
    )
    assert result.latency_s.tolist() == pytest.approx([1.0, math.inf, 2.0, math.inf])


def test_models_share_the_cores() -> None:
    arrival_s, size = np.zeros(3), np.array([10, 10, 10], dtype=np.int32)
    node = Node(1, {"a": linear(0.0, 0.1), "b": linear(0.0, 0.2)})
    plans = {name: Plan(OperatingPoint(100), sla_s=9.0) for name in "ab"}
    result = simulate(node, POLICIES["paper"], plans, arrival_s, size, ["a", "b", "a"])
    assert result.latency_s.tolist() == pytest.approx([1.0, 3.0, 4.0])
    with pytest.raises(KeyError):
        simulate(node, POLICIES["paper"], plans, arrival_s, size, "c")


def test_a_profile_is_drawn_between_alone_and_busy_by_the_cores_at_work() -> None:
    alone, busy = (
        LatencyCurve(tuple(LatencyPoint(n, *(each * n,) * 4) for n in (1, 8))) for each in (0.1, 0.3)
    )
    draw = measured(BackendProfile("cpu", alone, busy), cores=3)(np.random.default_rng(0))
    assert [draw(4, cores, 0.0) for cores in (1, 2, 3)] == pytest.approx([0.4, 0.8, 1.2])
    assert draw(2048, 1, 0.0) == pytest.approx(204.8)


def test_noise_has_the_spread_asked_for_and_a_mean_of_one() -> None:
    draw = linear(1.0, 0.0, sigma=0.5)(np.random.default_rng(0))
    seconds = np.array([draw(1, 1, 0.0) for _ in range(40_000)])
    assert seconds.mean() == pytest.approx(1.0, rel=0.02)
    assert np.log(seconds).std() == pytest.approx(0.5, rel=0.02)


def test_simulated_load_is_feasible_below_capacity_and_falls_behind_above_it() -> None:
    sla = Sla(95, 0.1)
    measure = simulated_load(
        NODE, POLICIES["adaptive"], "m", PLAN, sla, parse_sizes("production"), queries=2000
    )
    good, bad = measure(OperatingPoint(64), 100.0), measure(OperatingPoint(64), 900.0)
    assert feasible(good, sla)
    assert good == measure(OperatingPoint(64), 100.0)
    assert not feasible(bad, sla)
    assert bad.failed > 0


@pytest.mark.slow
def test_capacity_never_rises_when_the_target_tightens() -> None:
    def capacity_qps(seconds: float) -> float:
        sla = Sla(95, seconds)
        plan = replace(PLAN, sla_s=0.02)  # the order stays the same: only the target that is judged changes
        measure = simulated_load(
            NODE, POLICIES["adaptive"], "m", plan, sla, parse_sizes("production"), queries=3000
        )
        return max_qps(lambda qps: measure(OperatingPoint(64), qps), sla, 300.0).qps

    capacities = [capacity_qps(seconds) for seconds in (0.012, 0.02, 0.04, 0.1)]
    assert capacities == sorted(capacities)
    assert capacities[0] < capacities[-1]
