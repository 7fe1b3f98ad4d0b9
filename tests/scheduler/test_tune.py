from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from scheduler.measure import Measure, Measurement, Sla
from scheduler.plan import POLICIES, OperatingPoint, Plan
from scheduler.service_law import linear
from scheduler.simulator import Node, simulated_load
from scheduler.sizes import parse_sizes
from scheduler.tune import BATCH_SIZES, THRESHOLDS, Tried, exhaustive, hill_climb, static_point

SLA = Sla(95, 0.1)


def measurement(qps: float, tail_s: float, invalid: str | None = None) -> Measurement:
    tails = (tail_s,) * 5
    return Measurement(qps, qps, 100 * qps, 10.0, 1000, 0, *tails, tail_s, True, invalid)


def machine(capacity_qps: Callable[[OperatingPoint], float], noise: float = 0.0) -> Measure:
    """Return a machine whose tail meets the target exactly up to the capacity, which noise shifts by the point."""

    def measure(point: OperatingPoint, qps: float) -> Measurement:
        rng = np.random.default_rng((point.batch_size, point.offload_from or 0))
        capacity = capacity_qps(point) * (1 + noise * rng.uniform(-1, 1))
        return measurement(qps, 0.09 if qps <= capacity else math.inf)

    return measure


def hump(value: float, best: float, width: float) -> float:
    return math.exp(-((math.log2(value / best) / width) ** 2))


def cpu_only(point: OperatingPoint) -> float:
    return 1000 * hump(point.batch_size, 128, 1.5) if point.offload_from is None else 0.0


def with_accelerator(point: OperatingPoint) -> float:
    """Without offloading 256 is the best batch; with it the large queries are gone and 64 is."""
    if point.offload_from is None:
        return 1000 * hump(point.batch_size, 256, 4)
    return 3000 * hump(point.batch_size, 64, 2) * hump(point.offload_from, 192, 2)


def test_the_climb_finds_the_best_batch_size_without_an_accelerator() -> None:
    tuned = hill_climb(machine(cpu_only), SLA, 50.0, thresholds=())
    assert tuned.point == OperatingPoint(128)
    assert tuned.qps == pytest.approx(1000, rel=0.03)


def test_the_climb_goes_up_until_two_rungs_fall_and_then_about_its_best() -> None:
    tuned = hill_climb(machine(cpu_only), SLA, 50.0, thresholds=())
    sizes = [tried.point.batch_size for tried in tuned.tried]
    assert sizes[:8] == [1, 4, 16, 32, 64, 128, 256, 512]
    assert set(sizes[8:]) <= {96, 192, 256}


def test_one_fall_does_not_stop_it() -> None:
    dip = {1: 100.0, 2: 0.0, 4: 80.0, 8: 0.0, 16: 200.0, 25: 0.0, 32: 150.0, 48: 0.0, 64: 120.0, 96: 900.0}
    tuned = hill_climb(machine(lambda p: dip[p.batch_size]), SLA, 50.0, batch_sizes=tuple(dip), thresholds=())
    assert tuned.point == OperatingPoint(16)


def test_a_point_without_any_feasible_rate_is_no_fall() -> None:
    tuned = hill_climb(machine(lambda p: 500.0 if p.batch_size >= 64 else 0.0), SLA, 50.0, thresholds=())
    assert tuned.point == OperatingPoint(64)


def test_a_target_that_nothing_meets_gives_zero() -> None:
    tuned = hill_climb(machine(lambda _: 0.0), SLA, 50.0)
    assert tuned.qps == 0.0
    assert all("no rate tried meets" in tried.why for tried in tuned.tried)


def test_the_batch_size_is_tuned_again_once_large_queries_are_offloaded() -> None:
    tuned = hill_climb(machine(with_accelerator), SLA, 50.0)
    assert tuned.point == OperatingPoint(64, 192)
    assert 2 <= tuned.rounds <= 3


def test_an_accelerator_that_does_not_help_is_left_alone() -> None:
    tuned = hill_climb(machine(cpu_only), SLA, 50.0)
    assert tuned.point == OperatingPoint(128)


def test_the_climb_comes_close_to_the_grid_at_a_tenth_of_its_measurements() -> None:
    climbed = hill_climb(machine(with_accelerator), SLA, 50.0)
    grid = exhaustive(machine(with_accelerator), SLA, 50.0)
    assert len(grid.tried) == len(BATCH_SIZES) * len(THRESHOLDS)
    assert grid.point == OperatingPoint(64, 192)
    assert climbed.qps >= 0.97 * grid.qps
    assert climbed.measurements <= grid.measurements / 10


def test_an_improvement_inside_the_noise_is_none() -> None:
    flat = {1: 1000.0, 2: 1010.0, 4: 1020.0}
    tuned = hill_climb(
        machine(lambda p: flat[p.batch_size]),
        SLA,
        1000.0,
        batch_sizes=tuple(flat),
        thresholds=(),
        tolerance=0.005,
    )
    assert tuned.point == OperatingPoint(1)


def test_small_improvements_add_up() -> None:
    creeping = {2**k: 1000 * 1.02**k for k in range(6)}
    tuned = hill_climb(
        machine(lambda p: creeping[p.batch_size]),
        SLA,
        1000.0,
        batch_sizes=tuple(creeping),
        thresholds=(),
        tolerance=0.002,
    )
    assert tuned.point.batch_size >= 16


@pytest.mark.parametrize("noise", [0.01, 0.02])
def test_noise_costs_no_more_than_itself(noise: float) -> None:
    tuned = hill_climb(machine(with_accelerator, noise), SLA, 50.0)
    assert with_accelerator(tuned.point) >= 0.9 * 3000


class CountingMachine:
    def __init__(self, stop_after: int) -> None:
        self.left = stop_after
        self.taken: list[tuple[OperatingPoint, float]] = []

    def __call__(self, point: OperatingPoint, qps: float) -> Measurement:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.taken.append((point, qps))
        return machine(with_accelerator)(point, qps)


@pytest.mark.parametrize("stop_after", [1, 7, 40])
def test_an_interrupted_climb_goes_on_where_it_was(stop_after: int) -> None:
    finished: dict[tuple[OperatingPoint, float], Measurement] = {}

    def save(point: OperatingPoint, qps: float, taken: Measurement) -> None:
        finished[point, qps] = taken

    first, second = CountingMachine(stop_after), CountingMachine(10_000)
    with pytest.raises(KeyboardInterrupt):
        hill_climb(first, SLA, 50.0, save=save)
    assert len(finished) == stop_after
    tuned = hill_climb(second, SLA, 50.0, finished=finished, save=save)
    assert tuned == hill_climb(machine(with_accelerator), SLA, 50.0)
    assert not set(first.taken) & set(second.taken)


def test_an_invalid_measurement_says_so_and_is_not_saved() -> None:
    saved: list[float] = []
    tuned = hill_climb(
        lambda _, qps: measurement(qps, 0.01, invalid="too short"),
        SLA,
        50.0,
        batch_sizes=(1, 2),
        thresholds=(),
        save=lambda _, qps, __: saved.append(qps),
    )
    assert tuned.qps == 0.0
    assert "too short" in tuned.tried[0].why
    assert not saved


def test_every_point_is_reported_as_it_is_tried() -> None:
    seen: list[Tried] = []
    tuned = hill_climb(machine(with_accelerator), SLA, 50.0, progress=seen.append)
    assert tuple(seen) == tuned.tried
    grid_seen: list[Tried] = []
    grid = exhaustive(
        machine(cpu_only), SLA, 50.0, batch_sizes=(1, 2), thresholds=(), progress=grid_seen.append
    )
    assert tuple(grid_seen) == grid.tried


def test_nothing_to_try_is_an_error() -> None:
    for tune in (hill_climb, exhaustive):
        with pytest.raises(ValueError, match="at least one batch size"):
            tune(machine(cpu_only), SLA, 1.0, batch_sizes=())


def test_the_static_baseline_splits_the_largest_query_over_all_cores() -> None:
    assert static_point(1000, 40) == OperatingPoint(25)
    assert static_point(1000, 3) == OperatingPoint(334)


def test_the_climb_on_the_simulator_finds_that_a_high_fixed_cost_wants_large_batches() -> None:
    sla = Sla(95, 0.1)
    node = Node(2, {"m": linear(0.004, 1e-5)})
    plan = Plan(OperatingPoint(1), sla.seconds, 0.004, 1e-5)
    measure = simulated_load(
        node, POLICIES["adaptive"], "m", plan, sla, parse_sizes("production"), queries=1000
    )
    ladder = (16, 64, 256, 1024)
    tuned = hill_climb(measure, sla, 200.0, batch_sizes=ladder, thresholds=(), tolerance=0.05)
    grid = exhaustive(measure, sla, 200.0, batch_sizes=ladder, thresholds=(), tolerance=0.05)
    assert tuned.point.batch_size >= 256
    assert tuned.qps >= 0.95 * grid.qps
