"""The arithmetic of the live benchmark, without a server."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.live import throughput
from benchmarks.live.findings import Findings, OutOfTimeError
from benchmarks.live.served import linked
from benchmarks.live.windows import settled_after, share_inside, tails
from services.loadgen.result import Samples


def samples(
    latency_s: float, until_s: float = 60.0, late_until_s: float = 0.0, late_s: float = 9.0
) -> Samples:
    """Return a hundred queries a second of one latency, after ``late_until_s`` seconds of another."""
    at = np.arange(0, until_s, 0.01)
    latencies = np.where(at < late_until_s, late_s, latency_s)
    return Samples(at, latencies, np.ones(len(at), np.int32), np.zeros(len(at), np.int16))


def test_windows_without_queries_are_neither_inside_nor_outside() -> None:
    tail_s = tails(np.array([0.1, 0.2, 2.5]), np.array([0.01, 0.03, 0.5]), 95, 4)
    np.testing.assert_array_equal(tail_s, [0.03, np.nan, 0.5, np.nan])
    assert share_inside(tail_s, 0.1) == 0.5
    with pytest.raises(ValueError, match="no window"):
        share_inside(np.full(3, np.nan), 0.1)


def test_a_service_has_settled_once_thirty_seconds_are_as_good_as_the_best() -> None:
    best = samples(0.1)
    assert settled_after(samples(0.104), best, 95, 0, 60) == 0
    assert settled_after(samples(0.2), best, 95, 0, 60) is None
    # Until 20 s it is late: from 19 s on less than a twentieth of thirty seconds is.
    assert settled_after(samples(0.1, late_until_s=20.0), best, 95, 0, 60) == 19
    assert settled_after(samples(0.1, late_until_s=20.0), best, 95, 15, 60) == 4
    assert settled_after(samples(math.inf), samples(math.inf), 95, 0, 60) is None


def test_findings_are_taken_once_and_outlive_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    assert Findings(path).once("a", lambda: {"qps": 1.0, "tail": math.inf}) == {"qps": 1.0, "tail": None}
    with path.open("a") as file:
        file.write('{"key": "torn')
    again = Findings(path)
    assert again.once("a", lambda: pytest.fail("measured twice")) == {"qps": 1.0, "tail": None}
    again.once("b", lambda: 2)
    assert Findings(path).found == {"a": {"qps": 1.0, "tail": None}, "b": 2}


def test_nothing_is_begun_when_time_is_up(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "live.jsonl", ends_s=time.monotonic() - 1)
    with pytest.raises(OutOfTimeError):
        findings.once("a", lambda: pytest.fail("begun"))


def test_a_row_is_the_median_over_seeds_and_names_an_infeasible_target(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "live.jsonl")
    assert throughput.summary(findings, "wnd", "scaled") is None
    findings.found["lone/wnd"] = {"lone_s": 0.03, "peak_qps": 200.0}
    assert "adaptive" not in throughput.summary(findings, "wnd", "medium")  # 25 ms cannot be met
    for policy, rates in (
        ("static", (0.0,)),
        ("paper", (50.0, 90.0, 60.0)),
        ("adaptive", (100.0, 120.0, 90.0)),
    ):
        for seed, qps in enumerate(rates):
            findings.found[f"throughput/wnd/scaled/{policy}/{seed}"] = {"qps": qps, "batch_size": 64 + seed}
    row = throughput.summary(findings, "wnd", "scaled")
    assert row["target_ms"] == pytest.approx(120.0)
    assert (row["paper"]["qps"], row["adaptive"]["qps"]) == (60.0, 100.0)
    assert (row["adaptive"]["least_qps"], row["adaptive"]["most_qps"]) == (90.0, 120.0)
    assert row["adaptive"]["batch_size"] == 64
    assert throughput.geometric_mean([row], "adaptive", "paper") == (pytest.approx(100 / 60), 1)
    mean, models = throughput.geometric_mean([row], "adaptive", "static")
    assert math.isnan(mean)
    assert models == 0


def test_a_linked_model_differs_in_its_target_only() -> None:
    repository = Path(__file__).parents[2] / "model_repository"
    with linked(repository, {"wnd": 12.5}) as folder:
        theirs, ours = (
            (path / "wnd" / "config.pbtxt").read_text().splitlines() for path in (repository, folder)
        )
    changed = [(a.strip(), b.strip()) for a, b in zip(theirs, ours, strict=True) if a != b]
    assert changed == [('string_value: "25"', 'string_value: "12.5"')]


def test_the_committed_findings_can_be_read() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "live.jsonl"
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert len(keys) == len(set(keys))
    assert set(Findings(path).found) == set(keys)
