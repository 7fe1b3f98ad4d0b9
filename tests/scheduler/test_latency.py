from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.latency import (
    BackendProfile,
    LatencyCurve,
    LatencyPoint,
    LatencyProfile,
    LinearFit,
    accelerated,
    fit_line,
)


def point(n: int, mean_s: float) -> LatencyPoint:
    return LatencyPoint(n, mean_s, 0.95 * mean_s, 1.2 * mean_s, 1.5 * mean_s)


def curve(
    fixed_s: float = 0.001, per_s: float = 1e-4, sizes: tuple[int, ...] = (1, 4, 16, 64)
) -> LatencyCurve:
    return LatencyCurve(tuple(point(n, fixed_s + per_s * n) for n in sizes))


def profile() -> LatencyProfile:
    return LatencyProfile("wnd", 2, (BackendProfile("cpu", curve(), curve(per_s=1.5e-4)),))


def test_seconds_between_and_beyond_the_measured_sizes_lie_on_straight_lines() -> None:
    for n in (1, 2, 10, 64, 200):
        assert curve().mean_s(n) == pytest.approx(0.001 + 1e-4 * n)
        assert curve().p99_s(n) == pytest.approx(1.5 * (0.001 + 1e-4 * n))
    assert curve().table_s(3) == pytest.approx([0.0, 0.0011, 0.0012, 0.0013])


def test_below_the_first_size_seconds_never_fall_below_its_share() -> None:
    steep = LatencyCurve((point(8, 0.008), point(16, 0.032)))
    assert steep.mean_s(1) == pytest.approx(0.001)
    assert steep.mean_s(8) == pytest.approx(0.008)


def test_a_curve_of_one_point_grows_in_proportion_beyond_it() -> None:
    one = LatencyCurve((point(8, 0.008),))
    assert one.mean_s(4) == pytest.approx(0.008)
    assert one.mean_s(80) == pytest.approx(0.08)
    assert one.fit() == LinearFit(0.0, pytest.approx(0.001))


@given(st.floats(0, 1e-2), st.floats(1e-7, 1e-3))
def test_a_straight_line_is_fitted_exactly(fixed_s: float, per_s: float) -> None:
    fit = curve(fixed_s, per_s).fit()
    assert fit.fixed_s == pytest.approx(fixed_s, rel=1e-6, abs=1e-9)
    assert fit.per_candidate_s == pytest.approx(per_s, rel=1e-6)


def test_neither_part_of_a_fit_is_negative() -> None:
    n, weight = np.array([1.0, 10.0]), np.ones(2)
    assert fit_line(n, np.array([0.001, 0.1]), weight).fixed_s == 0.0
    falling = fit_line(n, np.array([0.2, 0.1]), weight)
    assert falling.per_candidate_s == 0.0
    assert 0.1 < falling.fixed_s < 0.2


def test_cutting_stops_paying_where_a_slice_is_worth_twice_one_more_batch() -> None:
    assert LinearFit(0.001, 0.0001).smallest_cut == 20
    assert LinearFit(0.0, 0.0001).smallest_cut == 1
    assert LinearFit(0.001, 0.0).smallest_cut > 1000


def test_a_profile_survives_json() -> None:
    assert LatencyProfile.from_dict(json.loads(json.dumps(profile().to_dict()))) == profile()


def test_a_backend_that_was_not_measured_is_named() -> None:
    with pytest.raises(ValueError, match=r"wnd has no backend 'gpu'; it has cpu"):
        profile().backend("gpu")


def change(path: str, value: Any) -> dict[str, Any]:
    data: dict[str, Any] = copy.deepcopy(json.loads(json.dumps(profile().to_dict())))
    *parents, last = path.split("/")
    at: Any = data
    for key in parents:
        at = at[int(key) if key.isdigit() else key]
    if value is None:
        del at[last]
    else:
        at[int(last) if last.isdigit() else last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model", None, "profile: model is missing"),
        ("cores", "two", "profile: cores is 'two'"),
        ("cores", 0, "cores must be at least 1"),
        ("backends", [], "at least one"),
        ("backends/0/busy", None, "cpu: busy is missing"),
        ("backends/0/modelled", 1, "cpu: modelled"),
        ("backends/0/alone/points", [], "cpu, alone: a latency curve has at least one point"),
        ("backends/0/alone/points/1/p99_s", None, "cpu, alone, point 1: p99_s is missing"),
        ("backends/0/alone/points/1/p95_s", 9.0, "batch size 4: p50_s, p95_s and p99_s must ascend"),
        ("backends/0/alone/points/1/mean_s", -1.0, "batch size 4: mean_s must be finite and above 0"),
        ("backends/0/alone/points/1/mean_s", float("nan"), "batch size 4: mean_s must be finite"),
        ("backends/0/alone/points/1/batch_size", 1, "batch sizes 1 and 1: batch sizes must ascend"),
        ("backends/0/alone/points/1/batch_size", 0, "batch size 0"),
        ("backends/0/alone/points/3/batch_size", 640, "batch sizes 16 and 640: a gap"),
        ("backends/0/alone/points/3/mean_s", 0.001, "batch sizes 16 and 64: mean_s falls"),
        ("backends/0/alone/points/0/speed", 1.0, r"point 0: unknown entries \['speed'\]"),
    ],
)
def test_a_profile_that_cannot_be_true_is_refused_naming_the_entry(
    path: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LatencyProfile.from_dict(change(path, value))


def test_a_backend_measured_twice_is_refused() -> None:
    cpu = profile().backends[0]
    with pytest.raises(ValueError, match="each backend once"):
        LatencyProfile("wnd", 2, (cpu, cpu))


def test_a_modelled_accelerator_divides_by_the_speedup_and_says_that_it_is_modelled() -> None:
    cpu = profile().backends[0]
    fast = accelerated(cpu, {1: 0.5, 16: 2.0})
    assert fast.modelled
    assert not cpu.modelled
    assert fast.alone.mean_s(1) == pytest.approx(cpu.alone.mean_s(1) / 0.5)
    assert fast.alone.points[1].mean_s >= cpu.alone.mean_s(4) / 1.25 - 1e-12
    assert fast.alone.mean_s(64) == pytest.approx(cpu.alone.mean_s(64) / 2.0)
    with pytest.raises(ValueError, match="speed-up"):
        accelerated(cpu, {})
