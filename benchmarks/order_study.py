"""Which order, and which shape of batches, bears the most load within the tail rule: a study in the simulator.

    python -m benchmarks.order_study [--queries 6000] [--seeds 1]

Every rule meets the same queries (size law ``production``, exponential gaps) on 2, 8 and 28 cores; of each rule its
best batch size counts. First come first served and earliest deadline first are one rule here, since no query brings
its own deadline. Figures are loads: the share of the cores that the candidates alone would keep busy, each with the
fixed cost of one batch a query, so coalescing can exceed 1. Prints a table, writes benchmarks/results/order_study.json.
Takes about ten minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scheduler.latency import LinearFit
from scheduler.measure import Sla, max_qps
from scheduler.plan import POLICIES, OperatingPoint, Plan, Policy
from scheduler.service_law import linear
from scheduler.simulator import Node, simulated_load
from scheduler.sizes import parse_sizes

RESULT = Path(__file__).parent / "results" / "order_study.json"
SIZES = parse_sizes("production")
MEAN_SIZE = float(SIZES.draw(np.random.default_rng(0), 100_000).mean())
P95_SIZE = 337
OURS = POLICIES["adaptive"]

RULES: Mapping[str, Policy] = {
    "first come": replace(OURS, overtaking=0.0),
    "aged 1": replace(OURS, overtaking=1.0),
    "aged 2": replace(OURS, overtaking=2.0),
    "aged 4": OURS,
    "aged 8": replace(OURS, overtaking=8.0),
    "aged 16": replace(OURS, overtaking=16.0),
    "shortest first": replace(OURS, overtaking=1e9),
    "ours, not coalescing": replace(OURS, coalesce=False),
    "ours, not sharing": replace(OURS, cut=False),
    "paper": POLICIES["paper"],
}


@dataclass(frozen=True)
class Case:
    """A model on so many cores under a target."""

    model: str
    fit: LinearFit
    cores: int
    target_s: float


def cases() -> list[Case]:
    """Return the models at targets of 2, 4 and 10 times a lone p95-size query cut over all cores; ncf at 5 ms."""
    found = []
    for cores in (2, 8, 28):
        for name, fit in (("mlp", LinearFit(5e-4, 6e-5)), ("embedding", LinearFit(1e-5, 4e-5))):
            lone_s = fit.run_s(P95_SIZE / cores)
            found += [Case(name, fit, cores, times * lone_s) for times in (2, 4, 10)]
        found.append(Case("ncf", LinearFit(1e-4, 2e-6), cores, 5e-3))
    return found


def load(case: Case, policy: Policy, queries: int, seeds: int) -> float:
    """Return the highest load within the tail rule at the rule's best batch size, the mean over seeds."""
    sla = Sla(95, case.target_s)
    unit_qps = case.cores / case.fit.run_s(MEAN_SIZE)
    node = Node(case.cores, {"m": linear(case.fit.fixed_s, case.fit.per_candidate_s, sigma=0.1)})
    plan = Plan(
        OperatingPoint(1),
        case.target_s,
        case.fit.fixed_s,
        case.fit.per_candidate_s,
        smallest_cut=case.fit.smallest_cut,
    )

    def capacity(batch_size: int, seed: int) -> float:
        measure = simulated_load(node, policy, "m", plan, sla, SIZES, queries=queries, seed=seed)
        found = max_qps(
            lambda qps: measure(OperatingPoint(batch_size), qps),
            sla,
            0.6 * unit_qps,
            tolerance=0.03,
            floor_qps=0.05 * unit_qps,
        )
        return found.qps / unit_qps

    # Targets on many cores are shorter than a large batch takes.
    longest = max(8.0, case.target_s / case.fit.per_candidate_s)
    sizes = [n for n in (16, 64, 256, 1024) if n <= longest]
    return max(float(np.mean([capacity(n, seed) for seed in range(seeds)])) for n in sizes or [8])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cores", type=int, action="append", help="only these")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'':30}" + "".join(f"{name:>22}" for name in RULES))
    for case in cases():
        if arguments.cores and case.cores not in arguments.cores:
            continue
        loads = {
            name: round(load(case, policy, arguments.queries, arguments.seeds), 3)
            for name, policy in RULES.items()
        }
        label = f"{case.model}, {case.cores} cores, {case.target_s * 1e3:.3g} ms"
        print(f"{label:30}" + "".join(f"{value:22.3f}" for value in loads.values()), flush=True)
        rows.append({"model": case.model, "cores": case.cores, "target_s": case.target_s, "loads": loads})
    means = {
        name: round(math.exp(float(np.mean([math.log(max(r["loads"][name], 0.01)) for r in rows]))), 3)
        for name in RULES
    }
    print(f"{'geometric mean':30}" + "".join(f"{value:22.3f}" for value in means.values()))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"cases": rows, "geometric_mean": means}, indent=2) + "\n")


if __name__ == "__main__":
    main()
