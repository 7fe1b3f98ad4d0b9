"""The controller on synthetic machines whose optimum is known, with the simulator as the world."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.random import Generator

from scheduler.controller import Controller, Decision
from scheduler.latency import LinearFit
from scheduler.learning import Seconds, SizeMix, bucket
from scheduler.measure import Sla
from scheduler.plan import POLICIES, OperatingPoint, Plan
from scheduler.planner import Machine, Outlook
from scheduler.query import Batch, Query, Slice
from scheduler.service_law import Draw, ServiceLaw, linear
from scheduler.simulator import Node, Simulated, simulate
from scheduler.workload import SizeLaw, draw_schedule, parse_arrivals, parse_sizes

PRODUCTION = parse_sizes("production")
MEAN_SIZE = float(PRODUCTION.draw(np.random.default_rng(0), 20_000).mean())
MLP = (5e-4, 6e-5)
EMBEDDING = (1e-5, 4e-5)


def utilised(seconds: tuple[float, float], share: float, cores: int = 2) -> float:
    """Return the queries/s at which the cores would be busy for this share."""
    return share * cores / (seconds[0] + seconds[1] * MEAN_SIZE)


def served(
    controller: Controller,
    cpu: ServiceLaw,
    qps: float,
    start: OperatingPoint,
    *,
    sla_s: float = 0.042,
    accelerator: ServiceLaw | None = None,
    duration_s: float = 30.0,
    arrivals: str = "poisson",
    seed: int = 1,
    sizes: SizeLaw = PRODUCTION,
) -> tuple[Simulated, np.ndarray]:
    """Run two cores under the controller; return the run and the arrival times."""
    schedule = draw_schedule(seed, parse_arrivals(arrivals), sizes, qps, duration_s=duration_s)
    plan = Plan(start, sla_s)
    controller.add("m", plan, accelerator=accelerator is not None)
    node = Node(2, {"m": cpu}, {} if accelerator is None else {"m": accelerator})
    run = simulate(
        node,
        POLICIES["adaptive"],
        {"m": plan},
        schedule.arrival_s,
        schedule.size,
        "m",
        seed=seed,
        controller=controller,
    )
    return run, schedule.arrival_s


def p95(run: Simulated, arrival_s: np.ndarray, after_s: float, before_s: float = math.inf) -> float:
    inside = (arrival_s >= after_s) & (arrival_s < before_s)
    return float(np.percentile(run.latency_s[inside], 95))


def points(run: Simulated) -> list[OperatingPoint]:
    return [decision.new for _, decision in run.decisions if decision.new != decision.old]


# ---- machines with a known optimum ----


@pytest.mark.parametrize("start", [1, 1024])
def test_a_high_fixed_cost_leads_to_large_batches_from_a_cold_start(start: int) -> None:
    controller = Controller(2)
    run, arrival_s = served(controller, linear(*MLP, sigma=0.1), utilised(MLP, 0.5), OperatingPoint(start))
    last = run.decisions[-1][1]
    assert last.new.batch_size >= 64
    assert p95(run, arrival_s, 20.0) <= 0.042
    assert last.plan.fixed_s == pytest.approx(MLP[0], rel=0.3)
    assert last.plan.per_candidate_s == pytest.approx(MLP[1], rel=0.1)


def test_without_fixed_cost_batches_that_hold_up_others_are_left() -> None:
    controller = Controller(2)
    run, arrival_s = served(
        controller,
        linear(*EMBEDDING, sigma=0.1),
        utilised(EMBEDDING, 0.5),
        OperatingPoint(1024),
        sla_s=0.027,
        duration_s=15.0,
    )
    assert points(run)[-1].batch_size <= 256
    assert p95(run, arrival_s, 8.0) <= 0.027


def test_a_fast_accelerator_is_found_in_steps_and_used() -> None:
    run, arrival_s = served(
        Controller(2),
        linear(*MLP, sigma=0.1),
        utilised(MLP, 1.4),
        OperatingPoint(64),
        accelerator=linear(2e-3, 8e-6, sigma=0.1),
        duration_s=60.0,
    )
    thresholds = [p.offload_from for p in points(run) if p.offload_from is not None]
    assert thresholds[0] > 256  # the first step risks the largest queries only
    assert thresholds[-1] <= 192
    assert p95(run, arrival_s, 45.0) <= 0.042  # 1.4 times what the cores alone could do


def test_a_slow_accelerator_is_tried_and_left() -> None:
    run, _ = served(
        Controller(2),
        linear(*EMBEDDING, sigma=0.1),
        utilised(EMBEDDING, 0.6),
        OperatingPoint(64),
        sla_s=0.027,
        accelerator=linear(0.02, 5e-5, sigma=0.1),
    )
    assert any(p.offload_from is not None for p in points(run))
    assert points(run)[-1].offload_from is None
    assert run.offloaded.mean() < 0.02


def test_without_an_accelerator_nothing_is_ever_offloaded() -> None:
    run, _ = served(Controller(2), linear(*MLP), utilised(MLP, 0.6), OperatingPoint(16), duration_s=15.0)
    assert all(p.offload_from is None for p in points(run))


# ---- change and noise ----


def test_it_follows_a_machine_that_slows_down() -> None:
    """At ten seconds every inference gets a fixed cost of 4 ms: small batches no longer do."""

    def law(rng: Generator) -> Draw:
        before, after = linear(*EMBEDDING, sigma=0.1)(rng), linear(0.004, 4e-5, sigma=0.1)(rng)
        return lambda n, busy, now: (before if now < 10.0 else after)(n, busy, now)

    controller = Controller(2)
    run, arrival_s = served(controller, law, 110.0, OperatingPoint(16), sla_s=0.1, duration_s=60.0)
    assert points(run)[-1].batch_size >= 64
    assert p95(run, arrival_s, 45.0) <= 0.1


def test_it_does_not_flap_under_noise() -> None:
    run, _ = served(
        Controller(2),
        linear(*MLP, sigma=0.4),
        utilised(MLP, 0.5),
        OperatingPoint(128),
        duration_s=60.0,
        seed=4,
    )
    assert len(points(run)) <= 2


def test_a_step_in_the_rate_is_not_taken_for_a_bad_point() -> None:
    qps = utilised(MLP, 0.35)
    run, arrival_s = served(
        Controller(2),
        linear(*MLP, sigma=0.1),
        qps,
        OperatingPoint(128),
        arrivals="step:10,1.8",
        duration_s=30.0,
    )
    assert len(points(run)) <= 2
    assert p95(run, arrival_s, 15.0) <= 0.042


# ---- single decisions ----


def fed(
    controller: Controller, sizes: Sequence[int], run_s: float, latency_s: float, window: int
) -> list[Decision]:
    """Feed one window of one second and return what is decided at its end."""
    for k, n in enumerate(sizes):
        at_s = window + k / len(sizes)
        query = Query("m", n, at_s)
        controller.observe_arrival(query, at_s)
        controller.observe_batch(Batch("m", [Slice(query, 0, n)], n, at_s), run_s * n)
        controller.observe(query, at_s + latency_s)
    return controller.decide(window + 1.0)


def test_a_change_that_makes_the_tail_worse_than_predicted_is_taken_back_at_once_and_not_repeated() -> None:
    controller = Controller(2)
    controller.add("m", Plan(OperatingPoint(8), 0.05))
    explored = fed(controller, [4] * 20 + [100] * 60, 1e-5, 0.01, window=0)
    assert explored[0].new == OperatingPoint(16)
    back = fed(controller, [100] * 80, 1e-5, 0.2, window=1)
    assert back[0].new == OperatingPoint(8)
    assert "steps back" in back[0].reason
    assert back[0].seen_tail_s == pytest.approx(0.2)
    for window in range(2, 20):
        again = fed(controller, [4] * 20 + [100] * 60, 1e-5, 0.01, window)
        assert all(decision.new != OperatingPoint(16) for decision in again)


def test_a_window_with_few_queries_decides_nothing() -> None:
    controller = Controller(2)
    controller.add("m", Plan(OperatingPoint(8), 0.05))
    assert controller.decide(1.0) == []
    assert fed(controller, [10] * 5, 1e-3, 0.01, window=1) == []


def test_a_pinned_model_stays_until_it_is_unpinned() -> None:
    controller = Controller(2)
    pinned = OperatingPoint(2)
    controller.add("m", Plan(OperatingPoint(64), 0.042))
    decision = controller.pin("m", pinned, 0.0)
    assert (decision.old, decision.new, decision.reason) == (OperatingPoint(64), pinned, "pinned")
    assert controller.pinned("m") == pinned
    mix = [4] * 20 + [100] * 60
    assert not any(fed(controller, mix, 1e-4, 0.5, window) for window in range(10))
    controller.unpin("m")
    assert controller.pinned("m") is None
    assert any(fed(controller, mix, 1e-4, 0.01, window) for window in range(10, 20))


def test_an_accelerator_that_goes_is_left_at_once_and_its_return_is_noticed() -> None:
    controller = Controller(2)
    controller.add("m", Plan(OperatingPoint(64, 100), 0.05), accelerator=True)
    gone = controller.set_accelerator("m", False, 3.0)
    assert [d.new for d in gone] == [OperatingPoint(64)]
    assert "gone" in gone[0].reason
    assert controller.set_accelerator("m", False, 4.0) == []
    assert controller.set_accelerator("m", True, 5.0) == []


def test_a_removed_model_is_unknown() -> None:
    controller = Controller(2)
    controller.add("m", Plan(OperatingPoint(64), 0.05))
    controller.remove("m")
    with pytest.raises(KeyError):
        controller.pin("m", OperatingPoint(1), 0.0)


# ---- what it learns and plans with ----


def test_buckets_ascend_and_hold_sizes_within_a_quarter() -> None:
    indices = [bucket(n) for n in range(1, 5000)]
    assert indices == sorted(indices)
    for b in set(indices):
        inside = [n for n in range(1, 5000) if bucket(n) == b]
        assert inside[-1] <= 1.25 * inside[0]


def test_seconds_are_fitted_from_few_batches_and_old_ones_fade() -> None:
    seconds = Seconds()
    for n in (1, 10, 100, 1000):
        for _ in range(10):
            seconds.add(n, 0.001 + 1e-5 * n)
    seconds.end_window(0.5)
    assert seconds.fit.fixed_s == pytest.approx(0.001)
    assert seconds.fit.per_candidate_s == pytest.approx(1e-5)
    for _ in range(6):
        for n in (1, 10, 100, 1000):
            for _ in range(10):
                seconds.add(n, 0.002 + 3e-5 * n)
        seconds.end_window(0.5)
    assert seconds.fit.fixed_s == pytest.approx(0.002, rel=0.05)
    assert seconds.fit.per_candidate_s == pytest.approx(3e-5, rel=0.05)


def test_the_spread_about_the_line_is_learnt() -> None:
    seconds, rng = Seconds(LinearFit(0.001, 1e-5)), np.random.default_rng(0)
    for factor in rng.lognormal(0, 0.3, 5000):
        seconds.add(100, 0.002 * factor)
    assert seconds.sigma == pytest.approx(0.3, rel=0.1)


def test_rate_and_mix_fade_with_the_half_life() -> None:
    mix = SizeMix()
    for window in range(40):
        for _ in range(100 if window < 20 else 300):
            mix.add(10 if window < 20 else 80)
        mix.end_window(1.0, 0.5)
    assert mix.qps == pytest.approx(300, rel=0.01)
    sizes, shares = mix.law()
    assert shares[np.argmin(abs(sizes - 80))] == pytest.approx(1.0, abs=0.01)
    assert shares.sum() == pytest.approx(1.0)


def test_the_planner_ranks_points_as_the_physics_do() -> None:
    mix = SizeMix()
    for n in PRODUCTION.draw(np.random.default_rng(0), 20_000).tolist():
        mix.add(n)
    sizes, shares = mix.law()
    ladder = [OperatingPoint(n) for n in (4, 16, 64, 256, 1024)]
    capacity = Outlook(Machine(2, LinearFit(*MLP), sizes, shares), Sla(95, 0.042), ladder).capacity_qps(400.0)
    assert list(capacity[:4]) == sorted(capacity[:4])
    assert capacity[0] < 0.5 * capacity[3]
    tight, loose = (
        Outlook(Machine(2, LinearFit(*MLP), sizes, shares), Sla(95, s), ladder).capacity_qps(400.0)
        for s in (0.02, 0.08)
    )
    assert (tight <= loose).all()
    tail = Outlook(Machine(2, LinearFit(*MLP), sizes, shares), Sla(95, 0.042), ladder)
    assert (tail.tail_s(20.0) <= tail.tail_s(120.0)).all()
    fast = Machine(2, LinearFit(*MLP), sizes, shares, accelerator=LinearFit(2e-3, 8e-6))
    some = Outlook(fast, Sla(95, 0.042), [OperatingPoint(64), OperatingPoint(64, 128)]).capacity_qps(900.0)
    assert some[1] > 1.5 * some[0]
