from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.fleet import simulate_fleet
from scheduler.fleet_arrivals import draw
from scheduler.fleet_result import FleetSeen, known, student
from scheduler.fleet_rounds import simulate_until_known, widest
from scheduler.fleet_spec import Event, FleetSpec, Traffic, Trouble, rolling_restart
from scheduler.measure import Sla
from scheduler.routers import ROUTERS
from scheduler.sketch import LatencySketch
from tests.scheduler.fleets import backend, group, kind, spec

EVERY_ROUTER = sorted(ROUTERS)


def tails(seen: FleetSeen, *percents: float) -> list[float]:
    return [seen.latency("m").percentile(p) for p in percents]


def arrived(made: FleetSpec, seed: int) -> int:
    """How many queries arrive at a fleet after the warm-up."""
    everywhere = [(t, np.ones_like, 1.0) for t in made.traffic]
    arrivals = draw(made, np.random.default_rng([seed, 1]), everywhere)
    return int((arrivals.arrival_s >= made.warmup_s).sum())


troubles = st.lists(
    st.builds(
        Event,
        st.sampled_from(list(Trouble)),
        st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True).map(tuple),
        st.floats(0.0, 0.5),
        st.floats(0.6, 2.0),
        st.just(3.0),
    ),
    max_size=3,
)


@settings(max_examples=40, deadline=None)
@given(troubles, st.sampled_from(EVERY_ROUTER), st.integers(0, 1000), st.sampled_from([0.0, 1e-3]))
def test_each_query_is_routed_once_and_answered_or_counted_as_failed(
    events: list[Event], router: str, seed: int, front_end_s: float
) -> None:
    groups = (group(4, kind(front_end_s=front_end_s)),)
    made = spec(4, 100.0, groups=groups, events=tuple(events), router=router, duration_s=0.8, warmup_s=0.2)
    seen = simulate_fleet(made, seed, together=True)
    latency = seen.latency("m")
    assert seen.queries == latency.count == arrived(made, seed)
    answered = latency.count - latency.failed
    assert (latency.percentile(100) < math.inf) == (latency.failed == 0 and answered > 0)
    if not any(e.trouble is Trouble.FAILED for e in events) and not seen.unrouted:
        assert latency.failed == 0  # a drained node finishes what it has


@pytest.mark.parametrize(
    ("router", "together"), [("random", False), *((router, True) for router in EVERY_ROUTER)]
)
def test_a_node_that_is_away_gets_nothing_and_the_others_get_its_part(router: str, together: bool) -> None:
    gone = (Event(Trouble.FAILED, (1,), -1.0), Event(Trouble.DRAINED, (2,), -1.0))
    seen = simulate_fleet(spec(4, 100.0, events=gone, router=router), 1, together=together)
    assert [node.node for node in seen.nodes if node.queries] == [0, 3]
    assert not seen.unrouted
    assert seen.queries == pytest.approx(800, rel=0.15)


@pytest.mark.parametrize("together", [False, True])
def test_queries_for_which_no_node_is_there_are_counted_as_failed(together: bool) -> None:
    gone = Event(Trouble.DRAINED, (0, 1), 1.0, 2.0)
    seen = simulate_fleet(spec(2, 200.0, events=(gone,)), 1, together=together)
    assert seen.unrouted["m"] == pytest.approx(400, rel=0.2)
    assert seen.latency("m").failed == seen.unrouted["m"]


@pytest.mark.parametrize("together", [False, True])
def test_what_a_failed_node_has_is_lost_and_what_a_drained_one_has_is_not(together: bool) -> None:
    crowded = spec(2, 420.0, duration_s=1.5)

    def failed(trouble: Trouble) -> int:
        events = (Event(trouble, (0,), 1.0, 1.2),)
        return simulate_fleet(replace(crowded, events=events), 1, together=together).latency("m").failed

    assert failed(Trouble.DRAINED) == 0
    assert failed(Trouble.FAILED) > 0


@pytest.mark.parametrize("together", [False, True])
def test_a_slow_node_is_slow_and_only_while_it_is(together: bool) -> None:
    slow = Event(Trouble.SLOW, (0,), 0.0, 9.0, 2.0)
    seen = simulate_fleet(spec(3, 100.0, events=(slow,)), 1, together=together)
    p50 = [node.latency["m"].percentile(50) for node in seen.nodes]
    assert p50[0] > 1.7 * max(p50[1:])
    late = simulate_fleet(spec(3, 100.0, events=(replace(slow, from_s=5.0),)), 1, together=together)
    assert tails(late, 50, 99) == tails(simulate_fleet(spec(3, 100.0), 1, together=together), 50, 99)


@pytest.mark.parametrize("router", EVERY_ROUTER)
def test_a_run_is_the_same_from_the_same_seed(router: str) -> None:
    made = spec(4, events=rolling_restart(range(4), 0.5, 0.3), router=router, noise=0.1, steered=True)
    one, again, other = (simulate_fleet(made, seed) for seed in (3, 3, 4))
    assert tails(one, 50, 95, 99) == tails(again, 50, 95, 99)
    assert [node.queries for node in one.nodes] == [node.queries for node in again.nodes]
    assert tails(one, 50, 95) != tails(other, 50, 95)


def test_a_spec_and_its_result_can_be_sent_to_another_process() -> None:
    made = pickle.loads(pickle.dumps(spec(3, sampled=2)))
    seen = pickle.loads(pickle.dumps(simulate_fleet(made, 1)))
    assert tails(seen, 50, 99) == tails(simulate_fleet(spec(3, sampled=2), 1), 50, 99)


def test_nodes_alone_show_what_nodes_together_show_under_random_routing() -> None:
    made = spec(12, 300.0, noise=0.05, duration_s=6.0)
    alone = [simulate_fleet(made, [1, k]) for k in range(6)]
    together = [simulate_fleet(made, [2, k], together=True) for k in range(6)]
    for p in (50.0, 95.0, 99.0):
        one, other = (known([seen.latency("m") for seen in rounds], p) for rounds in (alone, together))
        assert abs(one.seconds - other.seconds) < 1.5 * (one.half_width_s + other.half_width_s)
    assert alone[0].busy == pytest.approx(together[0].busy, rel=0.05)


def test_sampled_nodes_stand_for_the_fleet() -> None:
    made = spec(200, 300.0, noise=0.1, duration_s=1.0)
    whole = simulate_fleet(made, 1).latency("m")
    samples = [simulate_fleet(replace(made, sampled=20), [2, k]) for k in range(10)]
    assert all(len(seen.nodes) == 20 and seen.of_nodes == 200 for seen in samples)
    assert len({tuple(node.node for node in seen.nodes) for seen in samples}) == 10
    for p in (50.0, 95.0):
        found = known([seen.latency("m") for seen in samples], p)
        assert abs(found.seconds - whole.percentile(p)) < 2 * found.half_width_s
        assert found.relative < 0.15


def test_two_choices_beat_random_at_the_tail_and_knowing_all_nodes_beats_two() -> None:
    def p99(router: str) -> float:
        return simulate_fleet(spec(10, 330.0, router=router, duration_s=5.0), 1).latency("m").percentile(99)

    least, two, random = p99("least-outstanding"), p99("power-of-two"), p99("random")
    assert two < 0.8 * random
    assert least < two


def test_a_larger_machine_gets_more_queries_unless_weights_say_otherwise() -> None:
    groups = (group(2), group(1, kind(8)))
    seen = simulate_fleet(spec(3, 100.0, groups=groups, router="power-of-two"), 1)
    assert seen.nodes[2].queries / seen.queries == pytest.approx(8 / 12, abs=0.06)
    even = tuple(replace(g, weight=1.0) for g in groups)
    seen = simulate_fleet(spec(3, 100.0, groups=even), 1)
    assert seen.nodes[2].queries / seen.queries == pytest.approx(1 / 3, abs=0.06)


def test_models_go_only_to_nodes_that_serve_them() -> None:
    both, one = group(1, kind(models=("m", "n"))), group(2)
    traffic = (Traffic("m", 1.0, Sla(95.0, 0.1)), Traffic("n", 1.0, Sla(95.0, 0.1)))
    for router in EVERY_ROUTER:
        seen = simulate_fleet(spec(3, 100.0, groups=(one, both), traffic=traffic, router=router), 1)
        assert [sorted(node.latency) for node in seen.nodes] == [["m"], ["m"], ["m", "n"]]


def test_an_accelerator_answers_the_large_queries_and_costs_its_power() -> None:
    device = kind(accelerator={"m": backend(1e-3, 1e-6, "accelerator")}, accelerator_slots=1)
    device = replace(device, watts=20.0, idle_watts=8.0, accelerator_watts=70.0, accelerator_idle_watts=7.0)
    offloading = group(2, device)
    points = {model: replace(point, offload_from=200) for model, point in offloading.points.items()}
    seen = simulate_fleet(spec(2, groups=(replace(offloading, points=points),)), 1)
    node = seen.nodes[0]
    assert 0.05 < node.offloaded / node.queries < 0.3
    assert 0 < node.accelerator_busy < 0.2
    assert node.watts == pytest.approx(8 + 12 * node.busy + 7 + 63 * node.accelerator_busy)
    assert seen.watts == pytest.approx(2 * np.mean([n.watts for n in seen.nodes]))


def test_utilisation_is_the_work_over_the_cores() -> None:
    seen = simulate_fleet(spec(4, duration_s=8.0), 1)
    work = 200 * (2e-4 * 2.3 + 4e-5 * 103)  # 103 candidates a query, cut over both cores or coalesced
    assert seen.busy == pytest.approx(work / 2, rel=0.12)


def test_working_off_what_waits_at_the_end_is_no_part_of_the_utilisation() -> None:
    device = kind(accelerator={"m": backend(2e-3, 1e-5, "accelerator")}, accelerator_slots=1)
    drowned = group(2, device)
    points = {model: replace(point, offload_from=60) for model, point in drowned.points.items()}
    for together in (False, True):
        made = spec(2, 4000.0, groups=(replace(drowned, points=points),))
        for node in simulate_fleet(made, 1, together=together).nodes:
            assert 0.9 < node.busy <= 1.0
            assert 0.9 < node.accelerator_busy <= 1.0


def test_a_lost_node_works_no_further() -> None:
    lost = Event(Trouble.FAILED, (0, 1), 1.0)
    for together in (False, True):
        seen = simulate_fleet(spec(2, 4000.0, events=(lost,)), 1, together=together)
        assert [node.busy for node in seen.nodes] == pytest.approx([0.4, 0.4], abs=0.02)


def test_the_front_end_holds_queries_up_in_both_ways_of_running() -> None:
    groups = (group(4, kind(front_end_s=2e-3)),)
    for together in (False, True):
        quick, slow = (
            simulate_fleet(made, 1, together=together).latency("m").percentile(50)
            for made in (spec(4, 100.0), spec(4, 100.0, groups=groups))
        )
        assert slow - quick == pytest.approx(2e-3, rel=0.35)


def test_noise_makes_nodes_differ_and_a_node_stays_what_it_is() -> None:
    made = spec(300, noise=0.2)
    assert np.log(made.slowness()).std() == pytest.approx(0.2, rel=0.15)
    assert made.slowness() == replace(made, start_s=7.0).slowness()
    assert made.slowness() != replace(made, noise_seed=1).slowness()
    assert spec(3).slowness() == [1.0] * 3


def test_a_controller_on_each_node_mends_a_batch_size_that_is_far_off() -> None:
    made = spec(2, 250.0, groups=(group(2, batch_size=1),), policy="adaptive", duration_s=8.0, warmup_s=6.0)
    left = simulate_fleet(made, 1)
    steered = simulate_fleet(replace(made, steered=True), 1)
    assert [node.decisions for node in left.nodes] == [0, 0]
    assert min(node.decisions for node in steered.nodes) > 0
    assert tails(steered, 95)[0] < 0.7 * tails(left, 95)[0]


def test_rounds_are_added_until_the_tails_are_known() -> None:
    made = spec(2, duration_s=1.0)
    rounds = simulate_until_known(made, [1], within=0.08, least=3, most=60)
    assert 3 < len(rounds) < 60
    assert widest(rounds) <= 0.08 < widest(rounds[:-1])
    assert len(simulate_until_known(made, [1], within=1e-6, least=2, most=4)) == 4


def test_the_interval_of_known_holds_the_truth_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        rounds = []
        for _ in range(6):
            sketch = LatencySketch()
            sketch.add(rng.exponential(1.0, 800))
            rounds.append(sketch)
        found = known(rounds, 95.0)
        held += abs(found.seconds - math.log(20)) <= found.half_width_s
    assert 0.9 <= held / 200 <= 0.99


def test_students_law() -> None:
    assert student(4) == pytest.approx(2.776, rel=0.005)
    assert student(10) == pytest.approx(2.228, rel=0.001)
    assert student(1000) == pytest.approx(1.962, rel=0.001)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"qps": 0.0}, "qps must be above 0"),
        ({"groups": ()}, "at least one node"),
        ({"traffic": (Traffic("x", 1.0, Sla(95.0, 0.1)),)}, "x is served by no group"),
        ({"traffic": (Traffic("m", 0.0, Sla(95.0, 0.1)),)}, "share must be above 0"),
        ({"events": (Event(Trouble.FAILED, (9,), 0.0),)}, "node"),
        ({"events": (Event(Trouble.FAILED, (0,), 2.0, 1.0),)}, "ends after it begins"),
        ({"duration_s": 0.0}, "duration_s must be above 0"),
        ({"noise": -1.0}, "noise"),
        ({"sampled": 0}, "sampled"),
    ],
)
def test_a_fleet_that_cannot_be_run_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        spec(2, **change)


def test_unknown_names_and_sampling_under_a_coupled_router_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown policy 'fifo'; known: static, paper, adaptive"):
        simulate_fleet(spec(2, policy="fifo"), 1)
    with pytest.raises(ValueError, match="unknown router 'best'; known: random"):
        simulate_fleet(spec(2, router="best"), 1)
    with pytest.raises(ValueError, match="cannot stand for a fleet with the router power-of-two"):
        simulate_fleet(spec(2, router="power-of-two", sampled=1), 1)
