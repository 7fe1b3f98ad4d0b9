"""Latency-bounded throughput of `static`, `paper` and `adaptive`, SIMULATED from this machine's profiles.

    deeprecsys profile && python -m benchmarks.policies [--profiles profiles] [MODEL ...]

Size law `production`, exponential gaps, p95 within the target (p99 within twice, p99.9 within five times), the same
draws for all. `static`: batches of 1000 / cores in order of arrival. `paper`: the batch size by hill climb, in order of
arrival. `adaptive`: the batch size by hill climb, coalescing, cutting and ordering by due time and remaining work. Two
targets: the paper's, and `scaled`, four times what a lone p95-size query takes cut over all cores. No front end is
simulated, so only the ratios say something; a search ends within 2 % and a run is short, so gains below 5 % are none.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from scheduler.latency import LatencyProfile
from scheduler.measure import Capacity, Measure, Sla, max_qps
from scheduler.plan import POLICIES, OperatingPoint, Plan
from scheduler.service_law import measured
from scheduler.simulator import Node, simulated_load
from scheduler.tune import hill_climb, static_point
from scheduler.workload import parse_sizes
from services.machine import describe_machine
from services.models.spec import SLUGS, spec_for

RESULT = Path(__file__).parent / "results" / "policies_simulated.json"
SIZES = parse_sizes("production")
P95_SIZE = int(np.percentile(SIZES.draw(np.random.default_rng(0), 100_000), 95))
LARGEST_QUERY = 1000
BATCH_SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
QUERIES = 4_000
SEEDS = (0, 1, 2)


def study(profile: LatencyProfile, target: str) -> dict[str, Any]:
    """Return one row: the throughput of each policy at one target, queries/s, the median over seeds."""
    cpu = profile.backend("cpu")
    fit = cpu.busy.fit()
    lone_s = cpu.busy.mean_s(math.ceil(P95_SIZE / profile.cores))
    sla = Sla(95.0, 4 * lone_s if target == "scaled" else spec_for(profile.model).sla_ms / 1e3)
    row: dict[str, Any] = {
        "model": profile.model,
        "target": target,
        "sla_ms": sla.seconds * 1e3,
        "lone_ms": lone_s * 1e3,
    }
    if lone_s > sla.seconds:
        return row
    plan = Plan(OperatingPoint(1), sla.seconds, fit.fixed_s, fit.per_candidate_s, fit.smallest_cut)
    node = Node(profile.cores, {profile.model: measured(cpu, profile.cores)})
    start_qps = 0.5 * profile.cores / fit.run_s(100)

    def load(policy: str, seed: int) -> Measure:
        return simulated_load(
            node, POLICIES[policy], profile.model, plan, sla, SIZES, queries=QUERIES, seed=seed
        )

    def capacity(policy: str, point: OperatingPoint, seed: int) -> Capacity:
        measure = load(policy, seed)
        return max_qps(lambda qps: measure(point, qps), sla, start_qps)

    points = {"static": static_point(LARGEST_QUERY, profile.cores)}
    for policy in ("paper", "adaptive"):
        points[policy] = hill_climb(
            load(policy, SEEDS[0]), sla, start_qps, batch_sizes=BATCH_SIZES, thresholds=()
        ).point
    for policy, point in points.items():
        found = [capacity(policy, point, seed) for seed in SEEDS]
        row[policy] = float(np.median([each.qps for each in found]))
        row[f"{policy}_batch_size"] = point.batch_size
        last = found[0].measurement
        row[f"{policy}_p99_ms"] = None if last is None else last.p99_s * 1e3
    return row


def geometric_mean(rows: list[dict[str, Any]], over: str, under: str) -> str:
    ratios = [row[over] / row[under] for row in rows if row.get(under, 0) > 0]
    return f"{math.exp(np.mean(np.log(ratios))):.2f} over {len(ratios)} models" if ratios else "none"


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"simulated queries/s within the target, median of {len(SEEDS)} seeds (batch size)")
    for heading in ("model", "target", "ms", "static", "paper", "adaptive", "adaptive / static", "/ paper"):
        table.add_column(heading, justify="left" if heading in ("model", "target") else "right")
    for row in rows:
        cells = [row["model"], row["target"], f"{row['sla_ms']:.1f}"]
        if "static" not in row:
            table.add_row(*cells, f"infeasible: a lone query takes {row['lone_ms']:.1f} ms", "", "", "", "")
            continue
        cells += [f"{row[p]:.1f} ({row[p + '_batch_size']})" for p in ("static", "paper", "adaptive")]
        ratios = (
            f"{row['adaptive'] / row[p]:.2f}" if row[p] > 0 else "static meets none"
            for p in ("static", "paper")
        )
        table.add_row(*cells, *ratios)
    console.print(table)
    for target in ("medium", "scaled"):
        chosen = [row for row in rows if row["target"] == target and "static" in row]
        for over, under in (("paper", "static"), ("adaptive", "static"), ("adaptive", "paper")):
            console.print(f"{target}: {over} / {under}, geometric mean {geometric_mean(chosen, over, under)}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--profiles", type=Path, default=Path("profiles"))
    parser.add_argument("models", nargs="*", default=SLUGS)
    arguments = parser.parse_args()
    console = Console(width=130)
    profiles = []
    for name in arguments.models:
        data = json.loads((arguments.profiles / f"{name}.json").read_text())
        data.pop("machine")
        profiles.append(LatencyProfile.from_dict(data))
    cases = [(profile, target) for target in ("medium", "scaled") for profile in profiles]
    rows = [study(profile, target) for profile, target in track(cases, console=console)]
    show(console, rows)
    machine = dataclasses.asdict(describe_machine())
    RESULT.write_text(
        json.dumps({"machine": machine, "queries": QUERIES, "seeds": SEEDS, "rows": rows}, indent=2) + "\n"
    )
    console.print(f"written to {RESULT.name}")


if __name__ == "__main__":
    main()
