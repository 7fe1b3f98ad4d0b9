"""The arithmetic of the offload benchmark, without a server."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.live.findings import Findings
from benchmarks.live.search import held
from benchmarks.offload import lone, tables, targets, threshold
from benchmarks.offload.accelerators import Spent, modelled_gpu
from services.models.spec import SLUGS


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    return Findings(tmp_path / "offload.jsonl")


def printed(table: object) -> str:
    console = Console(width=220)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_offloading_pays_from_the_size_after_which_the_device_never_loses_again() -> None:
    sizes = (1, 16, 64, 256)
    assert lone.pays_from(sizes, (1, 2, 4, 8), (3, 3, 3, 3)) == 64
    assert lone.pays_from(sizes, (1, 4, 4, 8), (3, 3, 5, 3)) == 256  # it wins at 16, and loses at 64
    assert lone.pays_from(sizes, (4, 4, 4, 4), (3, 3, 3, 3)) == 1
    assert lone.pays_from(sizes, (1, 2, 4, 8), (3, 3, 5, 8)) is None  # as fast is not faster


@pytest.mark.parametrize("model", SLUGS)
def test_the_modelled_gpu_is_labelled_and_loses_at_one_candidate(model: str) -> None:
    device = modelled_gpu(model)
    assert device.modelled
    assert device.alone.points[0].batch_size == 1


def measured(p50_s: float, **changes: float) -> dict[str, float]:
    row = {"p50_s": p50_s, "mean_s": p50_s, "rank_cpu_s": 0.001, "triton_cpu_s": 0.0, "requests": 0}
    return {**row, "triton_s": 0.0, "compute_s": 0.0, **changes}


def test_a_hop_is_split_into_what_triton_computes_the_rest_of_triton_and_the_way(findings: Findings) -> None:
    assert lone.hop_rows(findings, "wnd") == []
    findings.found["bare/wnd"] = {"100": 0.005}
    offloaded = measured(0.0085, mean_s=0.009, triton_s=0.007, compute_s=0.006, triton_cpu_s=0.0065)
    findings.found["hop/wnd/grpc"] = {"100": {"cpu": measured(0.004), "offloaded": offloaded}}
    (row,) = lone.hop_rows(findings, "wnd")
    assert (row["size"], row["transport"]) == (100, "grpc")
    assert row["overhead_ms"] == pytest.approx(3.5)
    assert row["compute_ms"] == pytest.approx(6.0)
    assert row["rest_of_triton_ms"] == pytest.approx(1.0)
    assert row["outside_ms"] == pytest.approx(2.0)
    assert "3.50" in printed(tables.hop_table([row]))


def test_a_crossover_stands_beside_what_the_profile_has_and_how_late_the_waits_were(
    findings: Findings,
) -> None:
    device = modelled_gpu("wnd").alone
    findings.found["crossover/wnd/paced"] = {
        str(n): {
            "cpu": measured(cpu_s),
            "offloaded": measured(0.004, compute_s=device.mean_s(n) + 0.0002),
        }
        for n, cpu_s in ((1, 0.001), (64, 0.005), (256, 0.006), (1000, 0.025))
    }
    row = lone.crossover_row(findings, "wnd")
    assert row is not None
    assert row["measured_from"] == 64
    assert row["predicted_from"] == 256
    assert row["late_ms"] == pytest.approx(0.2)
    assert "PACED" in printed(tables.crossover_table([row]))


def sweep_found(findings: Findings, kind: str, **rates: float) -> None:
    for t in threshold.SWEEP:
        qps = rates.get(f"t{threshold.name(t)}", 0.0)
        findings.found[f"threshold/{kind}/wnd/{threshold.name(t)}"] = {"qps": qps, "no_more_than": 99.0}


def test_choices_are_judged_by_fresh_measurements_of_the_sweeps_best(findings: Findings) -> None:
    sweep_found(findings, "paced", tnone=100.0, t384=120.0, t64=150.0)
    assert threshold.summary(findings, "wnd", "paced") is None
    prefix = "threshold/paced/wnd"
    findings.found[f"{prefix}/tuner"] = {"qps": 148.0, "offload_from": 128, "runs": 17}
    findings.found[f"{prefix}/adaptive"] = {"qps": 126.0, "offload_from": 192}
    findings.found[f"{prefix}/fresh 64"] = {"qps": 140.0}
    findings.found[f"{prefix}/fresh 128"] = {"qps": 133.0}
    row = threshold.summary(findings, "wnd", "paced")
    assert row is not None
    assert (row["best"], row["tuner"]) == ("64", "128")
    assert row["tuner_over_best"] == pytest.approx(0.95)
    assert row["adaptive_over_best"] == pytest.approx(0.9)
    shown = printed(tables.threshold_table([row], "paced"))
    assert "PACED" in shown
    assert "<= 99.0" in shown
    assert "PACED" not in printed(tables.threshold_table([{**row, "accelerator": "real"}], "real"))


def test_the_sweeps_best_chosen_is_the_same_measurement(findings: Findings) -> None:
    sweep_found(findings, "real", tnone=100.0)
    prefix = "threshold/real/wnd"
    findings.found[f"{prefix}/tuner"] = {"qps": 97.0, "offload_from": None, "runs": 9}
    findings.found[f"{prefix}/adaptive"] = {"qps": 99.0, "offload_from": None}
    findings.found[f"{prefix}/fresh none"] = {"qps": 98.0}
    row = threshold.summary(findings, "wnd", "real")
    assert row is not None
    assert row["tuner_over_best"] == 1.0


def test_the_tuner_climbs_the_thresholds_of_the_sweep_from_all_to_none() -> None:
    assert threshold.TUNED[0] == 1
    assert threshold.TUNED[-1] is None
    assert set(threshold.TUNED) == set(threshold.SWEEP)


def test_a_point_is_held_by_flags_and_none_leaves_it_free() -> None:
    assert held(64, 128) == ["--batch-size", "64", "--offload-from", "128"]
    assert held(64) == ["--batch-size", "64"]
    assert held(None) == []


def target_row(model: str, static: float, adaptive: float, paced: float) -> dict[str, Any]:
    rates = {"static": static, "adaptive": adaptive, "paced": paced}
    return {"model": model, "target": "medium", "target_ms": 25.0, "offload_from": None, **rates}


def test_the_mean_names_the_models_that_it_leaves_out() -> None:
    rows = [target_row("wnd", 50.0, 100.0, 200.0), target_row("rmc1", 100.0, 100.0, 100.0)]
    rows.append(target_row("dien", 0.0, 10.0, 20.0))
    mean, met, left_out = targets.means(rows, "paced", "static")
    assert mean == pytest.approx(2.0)
    assert (met, left_out) == (["wnd", "rmc1"], ["dien"])
    (line,) = tables.means_lines(rows)
    assert "over 2 models, without dien" in line
    assert "PACED" in line
    assert "5.1" in line
    assert "none" in printed(tables.targets_table(rows))
    assert math.isnan(targets.means([], "paced", "static")[0])


def test_a_target_is_summed_up_once_all_configurations_are_known(findings: Findings) -> None:
    for configuration, qps in (("paced", 30.0), ("adaptive", 20.0)):
        key = f"targets/wnd/low/{configuration}"
        findings.found[key] = {"qps": qps, "target_ms": 12.5, "offload_from": 64}
    assert targets.summary(findings, "wnd", "low") is None
    findings.found["targets/wnd/low/static"] = {"qps": 10.0, "target_ms": 12.5, "offload_from": None}
    row = targets.summary(findings, "wnd", "low")
    assert row is not None
    assert (row["static"], row["adaptive"], row["paced"]) == (10.0, 20.0, 30.0)
    assert (row["target_ms"], row["offload_from"]) == (12.5, 64)


def test_what_triton_counted_is_a_difference() -> None:
    assert Spent(9, 5, 3.0, 2.0).since(Spent(4, 3, 1.0, 0.5)) == Spent(5, 2, 2.0, 1.5)


def test_the_committed_findings_can_be_read() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "offload.jsonl"
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert keys
    assert len(keys) == len(set(keys))
    assert set(Findings(path).found) == set(keys)
