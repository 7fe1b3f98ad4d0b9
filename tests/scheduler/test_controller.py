"""The controller on synthetic machines whose optimum is known, with the simulator as the world."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.random import Generator

from scheduler.arrivals import POISSON, parse_arrivals
from scheduler.batching import Batcher
from scheduler.controller import Controller, Decision, Why
from scheduler.latency import LinearFit
from scheduler.learning import DeviceSeconds, Seconds, SizeMix, bucket
from scheduler.measure import Sla
from scheduler.plan import POLICIES, OperatingPoint, Plan
from scheduler.planner import Machine, Outlook, Question, forecast
from scheduler.query import Batch, Query, Slice
from scheduler.service_law import Draw, ServiceLaw, linear
from scheduler.simulator import Node, Simulated, simulate
from scheduler.sizes import SizeLaw, parse_sizes
from scheduler.workload import draw_schedule

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


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_busy_accelerator_is_not_taken_for_a_slow_one(seed: int) -> None:
    """What queries wait for each other there is no part of what it takes: it is kept where it bears the most."""
    law, share = (2e-3, 1.2e-5), 1.3
    run, arrival_s = served(
        Controller(2),
        linear(*MLP, sigma=0.1),
        utilised(MLP, share),
        OperatingPoint(64),
        accelerator=linear(*law, sigma=0.1),
        duration_s=60.0,
        arrivals="step:20,1.5",
        seed=seed,
    )
    left = points(run)[-1].offload_from
    assert left is not None
    assert 64 <= left <= 128
    assert p95(run, arrival_s, 45.0) <= 0.042


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


def test_batches_that_are_cheaper_only_when_large_are_found_from_a_cold_start() -> None:
    """Seconds per candidate fall by a third above 128: the line through smaller batches says that they do not."""
    plan = Plan(OperatingPoint(32), 0.084, 2e-4, 1.2e-4)  # as warm-up timed it
    bend = np.array([1, 32, 128, 256, 1024]), np.array([2e-4, 5.5e-3, 19e-3, 26e-3, 104e-3])

    def law(_rng: Generator) -> Draw:
        return lambda n, _busy, _now: float(np.interp(n, *bend))

    schedule = draw_schedule(1, POISSON, PRODUCTION, 105.0, duration_s=40.0)
    controller = Controller(2)
    controller.add("m", plan)
    run = simulate(
        Node(2, {"m": law}),
        POLICIES["adaptive"],
        {"m": plan},
        schedule.arrival_s,
        schedule.size,
        "m",
        controller=controller,
    )
    assert points(run)[-1].batch_size >= 256
    assert p95(run, schedule.arrival_s, 20.0) <= 0.084


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


def test_a_cold_start_at_single_candidates_under_load_is_over_in_seconds() -> None:
    run, arrival_s = served(
        Controller(2), linear(*MLP, sigma=0.1), utilised(MLP, 0.6), OperatingPoint(1), duration_s=40.0
    )
    assert points(run)[-1].batch_size >= 64
    assert p95(run, arrival_s, 12.0) <= 0.042


def test_queries_that_double_in_size_are_followed() -> None:
    schedule = draw_schedule(3, POISSON, PRODUCTION, utilised(MLP, 0.35), duration_s=40.0)
    size = np.where(schedule.arrival_s < 15.0, schedule.size, np.minimum(2 * schedule.size, 1000))
    controller, plan = Controller(2), Plan(OperatingPoint(64), 0.06)
    controller.add("m", plan)
    node = Node(2, {"m": linear(*MLP, sigma=0.1)})
    run = simulate(
        node, POLICIES["adaptive"], {"m": plan}, schedule.arrival_s, size, "m", controller=controller
    )
    assert p95(run, schedule.arrival_s, 25.0) <= 0.06


def test_a_day_of_load_in_a_minute_keeps_the_target() -> None:
    run, arrival_s = served(
        Controller(2),
        linear(*MLP, sigma=0.1),
        utilised(MLP, 0.3),
        OperatingPoint(64),
        arrivals="diurnal:60,0.6",
        duration_s=120.0,
    )
    assert p95(run, arrival_s, 10.0) <= 0.042
    assert len(points(run)) <= 6


# ---- several models ----


def test_two_models_under_one_controller_keep_their_targets() -> None:
    """Each is planned for what the other leaves of the cores."""
    controller = Controller(2)
    laws = {"mlp": MLP, "embedding": EMBEDDING}
    sla_s = {"mlp": 0.06, "embedding": 0.04}
    arrival_s, size, model = [], [], []
    for k, (name, seconds) in enumerate(laws.items()):
        schedule = draw_schedule(k, POISSON, PRODUCTION, utilised(seconds, 0.3), duration_s=30.0)
        arrival_s.append(schedule.arrival_s)
        size.append(schedule.size)
        model += [name] * len(schedule)
    plans = {name: Plan(OperatingPoint(16), sla_s[name]) for name in laws}
    for name, plan in plans.items():
        controller.add(name, plan)
    order = np.argsort(np.concatenate(arrival_s), kind="stable")
    at_s, of = np.concatenate(arrival_s)[order], [model[k] for k in order]
    node = Node(2, {name: linear(*seconds, sigma=0.1) for name, seconds in laws.items()})
    run = simulate(
        node, POLICIES["adaptive"], plans, at_s, np.concatenate(size)[order], of, controller=controller
    )
    for name in laws:
        late = at_s >= 10.0
        mine = late & np.array([each == name for each in of])
        assert np.percentile(run.latency_s[mine], 95) <= sla_s[name]
    assert {decision.model for _, decision in run.decisions} == set(laws)


def test_what_other_models_take_of_the_cores_lowers_what_a_point_bears() -> None:
    sizes, shares = np.array([10.0, 100.0, 400.0]), np.array([0.3, 0.5, 0.2])
    points = (OperatingPoint(64), OperatingPoint(256))
    alone, shared, crowded = (
        forecast(
            Question(
                "m", Machine(2, LinearFit(*MLP), sizes, shares, elsewhere=busy), Sla(95, 0.06), points, 50.0
            )
        )
        for busy in (0.0, 0.8, 5.0)
    )
    assert (shared.capacity_qps < 0.75 * alone.capacity_qps).all()
    assert (shared.tail_s > alone.tail_s).all()
    assert (crowded.capacity_qps <= shared.capacity_qps).all()


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


def asked(controller: Controller, now: float = 2.0) -> Question:
    """Feed a window of arrivals and return the question that it raises."""
    for k in range(200):
        controller.observe_arrival(Query("m", 100, now - 2 + 0.01 * k), now - 2 + 0.01 * k)
    _, (question,) = controller.react(now)
    return question


def known() -> Controller:
    """Return a controller whose model was timed before: it plans in its first window."""
    controller = Controller(2)
    controller.add("m", Plan(OperatingPoint(8), 0.05, 5e-4, 6e-5))
    return controller


def test_an_answer_in_time_is_settled_on_once() -> None:
    controller = known()
    question = asked(controller)
    decision = controller.settle(question, forecast(question), 2.1)
    assert decision is not None
    assert decision.new.batch_size > 8
    assert controller.settle(question, forecast(question), 2.2) is None


def test_after_a_step_back_nothing_is_predicted_of_the_point_that_is_back() -> None:
    controller = known()
    question = asked(controller)
    controller.settle(question, forecast(question), 2.1)
    predicted_s = controller.seen("m").predicted_s
    assert predicted_s > 0
    (back,) = fed(controller, [100] * 80, 1e-5, 0.2, window=3)
    assert back.why is Why.WORSE
    assert back.predicted_tail_s == predicted_s  # by which the point that is left was chosen
    assert math.isnan(controller.seen("m").predicted_s)


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda c: c.pin("m", OperatingPoint(8), 2.1),
        lambda c: (c.pin("m", OperatingPoint(8), 2.1), c.unpin("m")),
        lambda c: c.retune("m"),
        lambda c: c.remove("m"),
        lambda c: c.set_accelerator("m", False, 2.1),
        lambda c: c.set_accelerator("m", True, 2.1),
    ],
)
def test_an_answer_that_comes_too_late_changes_nothing(meanwhile: Callable[[Controller], object]) -> None:
    """The planner is another process: it may answer a question that no longer stands."""
    controller = known()
    question = asked(controller)
    meanwhile(controller)
    assert controller.settle(question, forecast(question), 2.2) is None


def test_an_idle_model_stays_where_it_is() -> None:
    controller = Controller(2)
    controller.add("m", Plan(OperatingPoint(128), 0.05))
    for window in range(4):
        fed(controller, [100] * 80, 1e-5, 0.01, window)
    assert not any(controller.decide(float(second)) for second in range(5, 120))


def test_exploring_keeps_within_what_the_model_accepts() -> None:
    controller = Controller(2)
    controller.add("m", Plan(OperatingPoint(8), 0.05, largest_batch=12))
    (explored,) = fed(controller, [100] * 80, 1e-5, 0.01, 0)
    assert explored.new == OperatingPoint(12)


def test_a_late_model_tries_larger_batches_than_any_known_up_to_half_its_target() -> None:
    """A line through small batches cannot see that larger ones are cheaper."""
    for run_s, tried in ((1e-4, [OperatingPoint(256)]), (3e-4, [OperatingPoint(128)]), (1e-3, [])):
        controller = Controller(2)
        controller.add("m", Plan(OperatingPoint(64), 0.1))
        controller.observe_arrival(Query("m", 400, 0.0), 0.0)
        made = fed(controller, [4, 20, 64] * 40, run_s, 0.2, 0)
        assert [d.new for d in made if "explores" in d.reason] == tried
        again = fed(controller, [4, 20, 64] * 40, run_s, 0.2, 1)  # batches have not become any larger
        assert not [d.new for d in again if "explores" in d.reason]


def test_a_first_guess_about_larger_batches_does_not_keep_a_late_model_from_trying_them() -> None:
    controller = Controller(2)
    controller.add("m", Plan(OperatingPoint(64), 0.1, 1e-5, 1e-4))
    controller.observe_arrival(Query("m", 400, 0.0), 0.0)
    made = fed(controller, [4, 20, 64] * 40, 1e-4, 0.2, 0)
    assert [d.new for d in made if "explores" in d.reason] == [OperatingPoint(256)]


def test_a_retune_forgets_what_was_learnt_but_neither_pin_nor_accelerator() -> None:
    controller = Controller(2)
    controller.add("m", Plan(OperatingPoint(64, 100), 0.05), accelerator=True)
    controller.pin("m", OperatingPoint(32, 100), 1.0)
    controller.retune("m")
    assert controller.pinned("m") == OperatingPoint(32, 100)
    assert [d.new for d in controller.set_accelerator("m", False, 2.0)] == [OperatingPoint(32)]


def test_a_pin_decides_what_the_accelerator_returns_to() -> None:
    controller = Controller(2)
    controller.add("m", Plan(OperatingPoint(64, 50), 0.05), accelerator=True)
    controller.set_accelerator("m", False, 1.0)
    assert controller.pin("m", OperatingPoint(32), 2.0).new == OperatingPoint(32)
    assert controller.set_accelerator("m", True, 3.0) == []
    controller.set_accelerator("m", False, 4.0)
    assert controller.pin("m", OperatingPoint(32, 80), 5.0).new == OperatingPoint(32)
    assert [d.new for d in controller.set_accelerator("m", True, 6.0)] == [OperatingPoint(32, 80)]


def judged(ending: str) -> LinearFit | None:
    """What the planner is told of an accelerator that answers half its queries in 5 ms, the rest being ``ending``.

    The CPU answers those 50 ms after they arrived.
    """
    controller, batcher = Controller(2), Batcher(1, POLICIES["adaptive"])
    plan = Plan(OperatingPoint(512, 100), 0.1)
    controller.add("m", plan, accelerator=True)
    batcher.set_plan("m", plan)
    for k in range(100):
        now, large = k / 100, Query("m", 100 + 3 * k, k / 100)
        controller.observe_arrival(large, now)
        batcher.arrive(large, now)
        if k % 2:
            batcher.offload_finished(large)
            controller.observe(large, now + 0.005)
            continue
        (run,) = batcher.offload_failed(large, now + 0.04, tried=ending != "not sent")
        batcher.finish(run.worker, now + 0.05)
        controller.observe_batch(run.batch, 0.01)
        if ending == "left by a dead one":
            controller.set_accelerator("m", False, now)
        controller.observe(large, now + 0.05)
        controller.set_accelerator("m", True, now)
    for size in (4, 20, 64):
        controller.observe_batch(Batch("m", [], size, 0.5), 1e-4 * size)
    (question,) = controller.react(1.0)[1]
    return question.machine.accelerator


@pytest.mark.parametrize(
    ("ending", "mean_s"), [("failed there", 0.0275), ("not sent", 0.005), ("left by a dead one", 0.005)]
)
def test_an_accelerator_is_judged_by_what_became_of_all_that_it_was_sent(ending: str, mean_s: float) -> None:
    fit = judged(ending)
    assert fit is not None
    assert fit.run_s(250) == pytest.approx(mean_s, rel=0.05)


def test_no_step_back_leads_onto_an_accelerator_that_is_gone() -> None:
    controller = Controller(2)
    controller.add("m", Plan(OperatingPoint(64, 64), 0.05), accelerator=True)
    controller.set_accelerator("m", False, 0.0)
    for window in range(6):
        for decision in fed(controller, [100] * 80, 1e-5, 0.2, window):
            assert decision.new.offload_from is None


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
    back = controller.set_accelerator("m", True, 5.0)
    assert [d.new for d in back] == [OperatingPoint(64, 100)]
    assert "back" in back[0].reason


def test_an_accelerator_that_was_not_used_comes_and_goes_without_a_decision() -> None:
    controller = Controller(2)
    controller.add("m", Plan(OperatingPoint(64), 0.05), accelerator=True)
    assert controller.set_accelerator("m", False, 3.0) == []
    assert controller.set_accelerator("m", True, 4.0) == []


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


@pytest.mark.parametrize("load", [0.1, 0.5, 0.95])
def test_what_an_accelerator_takes_is_told_apart_from_what_queries_wait_for_it(load: float) -> None:
    rng, law = np.random.default_rng(3), LinearFit(0.002, 1e-5)
    sizes = rng.integers(50, 900, 2000).tolist()
    gaps_s = rng.exponential(np.mean([law.run_s(n) for n in sizes]) / load, len(sizes))
    device, free_s = DeviceSeconds(), 0.0
    for query, (n, sent_s) in enumerate(zip(sizes, np.cumsum(gaps_s).tolist(), strict=True)):
        free_s = max(free_s, sent_s) + law.run_s(n)
        device.add_answer(n, sent_s, free_s)
        if query % 200 == 199:
            device.end_window(0.9)
    assert device.fit.fixed_s == pytest.approx(law.fixed_s, rel=0.05)
    assert device.fit.per_candidate_s == pytest.approx(law.per_candidate_s, rel=0.05)


def test_queries_that_share_a_batch_of_the_accelerator_count_as_one_of_their_size() -> None:
    law, device = LinearFit(0.002, 1e-5), DeviceSeconds()
    for k, n in enumerate((50, 400, 900, 200)):
        device.add_answer(n, k, k + law.run_s(n))
    device.end_window(1.0)
    known = device.weight
    device.add_answer(300, 10.0, 10.0 + law.run_s(300))
    # These were sent meanwhile, ran together, and were told of one after the other.
    done_s = 10.0 + law.run_s(300) + law.run_s(100 + 500 + 20)
    for n, told_s in ((100, 0.0), (500, 1e-4), (20, 2e-4)):
        device.add_answer(n, 10.001, done_s + told_s)
    device.end_window(1.0)
    assert device.weight == known + 2
    assert device.largest == pytest.approx(900)
    assert device.count[bucket(620)] == 1.0
    assert device.fit.run_s(620) == pytest.approx(law.run_s(620), rel=0.05)


def test_until_an_accelerator_is_known_only_queries_that_did_not_wait_say_what_it_takes() -> None:
    device = DeviceSeconds()
    device.add_answer(100, 0.0, 0.01)
    device.add_answer(100, 0.005, 0.0101)
    device.end_window(1.0)
    assert device.weight == 1
    assert device.fit.run_s(100) == pytest.approx(0.01)


def test_queries_given_up_in_the_queue_of_an_accelerator_do_not_make_it_slow() -> None:
    device = DeviceSeconds()
    for k in range(20):
        device.add_answer(200, 0.1 * k, 0.1 * k + 0.01)
        if k % 3 == 2:
            device.add_failed(200, 0.1 * k, 0.1 * k + 0.09)
    device.end_window(1.0)
    assert device.fit.run_s(200) == pytest.approx(0.01, rel=0.02)


def test_queries_given_up_do_not_make_an_accelerator_slow_whose_answers_share_batches() -> None:
    device = DeviceSeconds()
    for k in range(40):
        for _ in range(4):
            device.add_answer(200, 0.5 * k, 0.5 * k + 0.02)
        device.add_failed(200, 0.5 * k, 0.5 * k + 0.15)
        if k % 4 == 3:
            device.end_window(0.7)
    assert device.fit.run_s(800) == pytest.approx(0.02, rel=0.05)
    assert device.fit.run_s(200) <= 0.021


def test_sizes_that_an_accelerator_mostly_fails_on_count_as_what_offloading_them_took() -> None:
    device = DeviceSeconds()
    for k in range(40):
        device.add_answer(100, 0.1 * k, 0.1 * k + 0.01)
        if k % 2:
            device.add_failed(800, 0.1 * k, 0.1 * k + 0.09)
    device.end_window(1.0)
    assert device.fit.run_s(800) == pytest.approx(0.09, rel=0.1)
    assert device.fit.run_s(100) == pytest.approx(0.01, rel=0.5)


def test_the_spread_about_the_line_is_learnt() -> None:
    seconds, rng = Seconds(LinearFit(0.001, 1e-5)), np.random.default_rng(0)
    for factor in rng.lognormal(0, 0.3, 5000):
        seconds.add(100, 0.002 * factor)
    assert seconds.sigma == pytest.approx(0.3, rel=0.1)


def test_batches_are_seen_while_there_are_enough_of_them_or_of_larger_ones() -> None:
    seconds = Seconds(LinearFit(0.0, 1e-4))
    for _ in range(20):
        seconds.add(64, 1e-2)
    assert seconds.seen(16)
    assert seconds.seen(64)
    assert not seconds.seen(128)
    seconds.end_window(0.4)
    assert not seconds.seen(64)


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
