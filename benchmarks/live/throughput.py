"""Latency-bounded throughput of the three policies on a live server, and the offline peak beside it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.live.findings import Findings
from benchmarks.live.search import capacity, held
from benchmarks.live.served import served
from benchmarks.serving_cost import drive
from benchmarks.simulated_case import BATCH_SIZES, DATA, likely_qps, load_profile
from scheduler.measure import Sla
from scheduler.plan import POLICIES
from scheduler.simulator import profiled_load
from scheduler.sizes import PRODUCTION_MAX_SIZE, parse_sizes
from scheduler.tune import hill_climb, static_point
from services.cores import usable_cores
from services.models.spec import spec_for

SIZES = "production"
P95_SIZE = int(np.percentile(parse_sizes(SIZES).draw(np.random.default_rng(0), 100_000), 95))
COMPARED = ("static", "paper", "adaptive")
SCALE = 4.0
TUNE_QUERIES = 5000
LONE_QUERIES, PEAK_QUERIES, PEAK_IN_FLIGHT = 60, 1000, 16
LIKELY_SHARE = 0.7
"""A search for the first policy begins at this share of the offline peak; the next ones where the last one ended."""


def lone(repository: Path, model: str) -> dict[str, Any]:
    """Return the seconds of a lone p95-size query cut over all cores, and the offline peak in queries/s.

    The peak is a closed loop of PEAK_IN_FLIGHT queries through Rank, same driver, no target.
    """
    with served(repository, {model: spec_for(model).sla_ms}, "adaptive") as server:
        alone = drive(server.address, model, 1, LONE_QUERIES, f"fixed:{P95_SIZE}")
        server.unpin(model)
        peaks = [
            drive(server.address, model, PEAK_IN_FLIGHT, PEAK_QUERIES, SIZES, seed).measurement.completed_qps
            for seed in range(2)
        ]
    return {"lone_s": alone.measurement.p50_s, "peak_qps": max(peaks)}


def targets_ms(model: str, lone_s: float) -> dict[str, float]:
    """Return the targets that are feasible here: the paper's, unless a lone query misses it, and the scaled one."""
    medium_ms = spec_for(model).sla_ms
    feasible = {"medium": medium_ms} if lone_s * 1e3 <= medium_ms else {}
    return {**feasible, "scaled": SCALE * lone_s * 1e3}


def tuned_offline(model: str, target_s: float) -> int:
    """Return the batch size that `paper` finds: hill climb in the simulator, from this machine's profile."""
    profile, sla = load_profile(DATA / "profiles", model), Sla(95.0, target_s)
    measure = profiled_load(profile, POLICIES["paper"], sla, parse_sizes(SIZES), queries=TUNE_QUERIES)
    start_qps = likely_qps(profile)
    return hill_climb(measure, sla, start_qps, batch_sizes=BATCH_SIZES, thresholds=()).point.batch_size


def study(findings: Findings, repository: Path, model: str, target: str, seed: int) -> None:
    """Measure the three policies at one target."""
    alone = findings.once(f"lone/{model}", lambda: lone(repository, model))
    target_ms = targets_ms(model, alone["lone_s"]).get(target)
    if target_ms is None:
        return
    tuned = findings.once(f"tuned/{model}/{target}", lambda: tuned_offline(model, target_ms / 1e3))
    batch_sizes = {
        "static": static_point(PRODUCTION_MAX_SIZE, usable_cores()).batch_size,
        "paper": tuned,
        "adaptive": None,
    }
    start_qps = LIKELY_SHARE * alone["peak_qps"]
    for policy in reversed(COMPARED):  # the most first, so that the others' searches begin near above
        found = findings.once(
            f"throughput/{model}/{target}/{policy}/{seed}",
            lambda policy=policy, start=start_qps: {  # type: ignore[misc]
                "target_ms": target_ms,
                **capacity(repository, model, target_ms, policy, held(batch_sizes[policy]), start, seed),
            },
        )
        start_qps = found["qps"] or start_qps


def summary(findings: Findings, model: str, target: str) -> dict[str, Any] | None:
    """Return one row: each policy's median over seeds, queries/s; without policies when the target is infeasible.

    None while anything is missing.
    """
    alone = findings.found.get(f"lone/{model}")
    if alone is None:
        return None
    target_ms = targets_ms(model, alone["lone_s"]).get(target)
    row = {"model": model, "target": target, "lone_ms": alone["lone_s"] * 1e3, "peak_qps": alone["peak_qps"]}
    if target_ms is None:
        return row
    for policy in COMPARED:
        prefix = f"throughput/{model}/{target}/{policy}/"
        found = [findings.found[key] for key in sorted(findings.found) if key.startswith(prefix)]
        if not found:
            return None
        rates = sorted(each["qps"] for each in found)
        row[policy] = {
            "qps": float(np.median(rates)),
            "least_qps": rates[0],
            "most_qps": rates[-1],
            "seeds": len(rates),
            "batch_size": found[0]["batch_size"],
            "p99_ms": found[0].get("p99_ms"),
            "slowest_ms": found[0].get("slowest_ms"),
        }
    return row | {"target_ms": target_ms}


def geometric_mean(rows: list[dict[str, Any]], over: str, under: str) -> tuple[float, int]:
    """Return the geometric mean of two policies' ratio, and how many models it covers: those where both are above 0."""
    met = [row for row in rows if over in row and row[over]["qps"] and row[under]["qps"]]
    ratios = [row[over]["qps"] / row[under]["qps"] for row in met]
    return (math.exp(float(np.mean(np.log(ratios)))) if ratios else math.nan), len(ratios)
