from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.ablation import gains
from benchmarks.simulated_case import (
    BATCH_SIZES,
    DATA,
    TARGETS,
    Borne,
    Case,
    Finished,
    best_of,
    gpu_speedup,
    load_profile,
)
from benchmarks.throughput_bound import bound, offline_peak
from scheduler.measure import Measurement
from scheduler.plan import POLICIES, OperatingPoint
from services.models.spec import SLUGS


def case(tmp_path: Path, target: str = "scaled", model: str = "wnd") -> Case:
    return Case(load_profile(DATA / "profiles", model), target, Finished(tmp_path / "state"), queries=1000)


@pytest.mark.parametrize("model", SLUGS)
def test_every_model_has_a_profile_and_a_speed_up(model: str) -> None:
    assert load_profile(DATA / "profiles", model).model == model
    assert set(gpu_speedup(model)) == {1, 4, 16, 64, 256, 1024}


def test_scaled_is_four_lone_queries_and_so_always_feasible(tmp_path: Path) -> None:
    scaled = case(tmp_path)
    assert scaled.sla.seconds == pytest.approx(4 * scaled.lone_s)
    assert scaled.feasible
    assert case(tmp_path, "low").sla.seconds == pytest.approx(0.0125)


def test_a_target_below_a_lone_query_gets_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "low", 0.1)
    row = bound(load_profile(DATA / "profiles", "dien"), "low", Finished(tmp_path / "state"))
    assert row["lone_ms"] > row["sla_ms"]
    assert "peak_qps" not in row


def test_finished_measurements_outlive_a_run_that_was_killed(tmp_path: Path) -> None:
    def measure(_: OperatingPoint, qps: float) -> Measurement:
        return Measurement(qps, qps, 1.0, 1.0, 1, 0, 1.0, 1.0, 1.0, 1.0, float("inf"), 1.0, True)

    def never(_: OperatingPoint, qps: float) -> Measurement:
        raise AssertionError(f"{qps} was measured before")

    point, path = OperatingPoint(8, 64), tmp_path / "state"
    first = Finished(path).remembering(measure, "wnd")(point, 0.1)
    with path.open("a") as file:
        file.write('{"key": "torn')
    assert Finished(path).remembering(never, "wnd")(point, 0.1) == first
    with pytest.raises(AssertionError, match="before"):
        Finished(path).remembering(never, "rmc1")(point, 0.1)


def test_the_best_of_a_grid_is_not_below_what_it_starts_from(tmp_path: Path) -> None:
    here = case(tmp_path)
    static = Borne(POLICIES["paper"], OperatingPoint(1024), 0.0)
    best = best_of(here, static, [POLICIES["paper"]], seed=0)
    each = [here.capacity(POLICIES["paper"], OperatingPoint(n), 0).qps for n in BATCH_SIZES]
    assert best.qps == pytest.approx(max(each), rel=0.03)


def test_nothing_within_a_target_exceeds_the_peak_without_one(tmp_path: Path) -> None:
    here = case(tmp_path)
    peak, batch_size = offline_peak(here, here.plan)
    assert batch_size in BATCH_SIZES
    assert here.capacity(POLICIES["adaptive"], OperatingPoint(64), 0).qps < peak


def test_a_step_that_meets_no_rate_has_no_gain() -> None:
    rows = [{"qps": {"a": 0.0, "b": 3.0}}, {"qps": {"a": 2.0, "b": 3.0}}]
    assert gains(rows, "b", "a") == [1.5]
