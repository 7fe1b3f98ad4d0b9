"""What makes a simulated node of a live run, and when the two agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.fidelity.calibration import LEAST_BATCHES, Ran, company, curve_of, front_end_s, profile_of
from benchmarks.fidelity.study import LOADS, Simulation, compared, tails
from benchmarks.live.findings import Findings
from scheduler.latency import BackendProfile, LatencyCurve, LatencyPoint, LatencyProfile
from scheduler.measure import Sla
from scheduler.plan import OperatingPoint


def test_company_is_how_many_others_were_at_work_on_average() -> None:
    ran = [Ran(1, 0.0, 4.0), Ran(1, 1.0, 2.0), Ran(1, 6.0, 1.0), Ran(1, 2.0, 2.0)]
    assert company(ran).tolist() == pytest.approx([1.0, 1.5, 0.0, 1.5])


def test_a_profile_tells_batches_that_ran_alone_from_those_beside_others() -> None:
    rng, ran, now = np.random.default_rng(0), [], 0.0
    for _ in range(4000):
        n = int(rng.integers(1, 300))
        if rng.random() < 0.5:
            ran.append(Ran(n, now, 1e-4 + 1e-5 * n))
        else:
            ran += [Ran(n, now, 1e-4 + 2e-5 * n)] * 2
        now += 0.02
    profile = profile_of(ran, 2)
    assert profile.alone.mean_s(200) == pytest.approx(2.1e-3, rel=0.05)
    assert profile.busy.mean_s(200) == pytest.approx(4.1e-3, rel=0.05)
    assert profile.busy.mean_s(20) == pytest.approx(5e-4, rel=0.1)


def test_where_too_few_ran_alone_all_stand_for_them() -> None:
    ran = [Ran(10 + k % 90, k // 2, 1.0) for k in range(400)]
    profile = profile_of(ran, 2)
    assert profile.alone == profile.busy == curve_of(ran)


def test_sizes_with_few_batches_join_the_next_and_disturbed_ones_are_left_out() -> None:
    ran = [Ran(8, 0.0, 0.01)] * 3 + [Ran(16, 0.0, 0.01)] * 30
    ran += [Ran(32, 0.0, 0.005)] * 30 + [Ran(64, 0.0, 0.04)] * 30
    sizes = [point.batch_size for point in curve_of(ran).points]
    assert sizes == [15, 64]
    with pytest.raises(ValueError, match=f"at least {LEAST_BATCHES} are needed"):
        curve_of(ran[:5])


def test_the_front_end_is_what_a_typical_query_takes_outside_the_dispatcher() -> None:
    assert front_end_s(np.array([3.0, 5.0, 90.0]), np.array([2.0, 4.0, 7.0])) == 1.0
    assert front_end_s(np.array([1.0]), np.array([2.0])) == 0.0


def simulation() -> Simulation:
    curve = LatencyCurve(
        tuple(LatencyPoint(n, *(1e-4 + 1e-5 * n,) * 4) for n in (1, 8, 64, 512, 1024)),
    )
    return Simulation(LatencyProfile("m", 2, (BackendProfile("cpu", curve, curve),)), 1e-3)


def test_a_simulated_node_has_the_front_end_of_the_calibration() -> None:
    found = simulation().run("static", OperatingPoint(500), Sla(95.0, 1.0), 1.0, seed=0)
    assert found.p50_s == pytest.approx(1e-3 + 1e-4 + 1e-5 * 66, rel=0.2)


@pytest.mark.parametrize("policy", ["static", "adaptive"])
def test_the_simulated_throughput_is_the_highest_rate_within_the_target(policy: str) -> None:
    node, sla, point = simulation(), Sla(95.0, 0.02), OperatingPoint(128)
    qps = node.bears(policy, point, sla, 300.0)
    assert node.run(policy, point, sla, qps, seed=0).p95_s <= 0.02
    assert node.run(policy, point, sla, 1.1 * qps, seed=0).p99_s > 0.02


def findings(tmp_path: Path, **changed: Any) -> Findings:
    found = Findings(tmp_path / "f.jsonl")
    found.once("adaptive/m/live", lambda: {"qps": 100.0})
    found.once("adaptive/m/simulated", lambda: {"qps": changed.get("qps", 105.0)})
    for load in LOADS:
        lived = [{"p50": v, "p95": 10 * v, "p99": 20 * v} for v in (1.0, 1.01, 1.02)]
        same = {"p50": 1.05, "p95": 10.5, "p99": 90.0, **changed.get(f"at{round(100 * load)}", {})}
        found.once(f"adaptive/m/{load}", lambda lived=lived, same=same: {"live": lived, "simulated": same})
    return found


@pytest.mark.parametrize(
    ("changed", "holds"),
    [
        ({}, True),
        ({"qps": 112.0}, False),
        ({"at30": {"p50": 1.2}}, False),
        ({"at70": {"p95": 8.9}}, False),
        ({"at90": {"p50": 1.3, "p95": 12.5}}, True),
        ({"at90": {"p95": 12.8}}, False),
    ],
)
def test_agreement_is_judged_by_throughput_and_tails_at_each_load(
    changed: dict[str, Any], holds: bool, tmp_path: Path
) -> None:
    row = compared(findings(tmp_path, **changed), "m", "adaptive")
    assert row is not None
    assert row["holds"] is holds


def test_nothing_is_said_before_all_is_measured(tmp_path: Path) -> None:
    assert compared(findings(tmp_path), "m", "static") is None


def test_tails_are_in_milliseconds() -> None:
    found = simulation().run("static", OperatingPoint(500), Sla(95.0, 1.0), 1.0, seed=0)
    assert tails(found)["p95"] == pytest.approx(1e3 * found.p95_s)
