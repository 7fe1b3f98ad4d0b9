"""How much of the offline peak survives a tail-latency target, at best: SIMULATED from profiles.

    python -m benchmarks.throughput_bound [--queries 10000] [MODEL ...]

The peak: queries/s with all queries waiting from the start and no target, in the server's own batches at the best
batch size. The bound: the most queries/s within the target over first come, shortest first and aged shortest first
(1, 2, 4, 8) at the best batch size, over the peak. Earliest deadline first is first come here: no query brings a
deadline of its own.
The best rule and `adaptive` are measured again on fresh queries, so that the best of many does not flatter itself; the
bound is the higher of the two. Size law `production`. `bound` gives one row, for live figures to stand beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.order_study import RULES as ORDERS
from benchmarks.simulated_case import (
    BATCH_SIZES,
    STATE,
    Borne,
    Case,
    Finished,
    Row,
    best_of,
    climb,
    geometric_mean,
    load_profile,
    parser,
    write,
)
from scheduler.latency import LatencyProfile
from scheduler.plan import POLICIES, OperatingPoint, Plan, Policy
from scheduler.simulator import simulate
from scheduler.sizes import parse_sizes

OURS = POLICIES["adaptive"]
RULES: Mapping[str, Policy] = {
    name: ORDERS[name] for name in ("first come", "aged 1", "aged 2", "aged 4", "aged 8", "shortest first")
}
SEED = 0
FRESH_SEEDS = (101, 102)
MODEL_TARGETS = ("medium", "scaled")


def bound(
    profile: LatencyProfile, target: str, finished: Finished | None = None, queries: int = 10_000
) -> Row:
    """Return one row: peak, bound and `adaptive` in queries/s, and as shares of the peak.

    A row without figures has a target that no policy can meet. ``finished`` keeps measurements; STATE when None.
    """
    case = Case(profile, target, finished or Finished(STATE), queries=queries)
    row: Row = {
        "model": profile.model,
        "target": target,
        "sla_ms": case.sla.seconds * 1e3,
        "lone_ms": case.lone_s * 1e3,
    }
    if not case.feasible:
        return row
    peak, peak_batch_size = offline_peak(case, case.plan)
    # What filling every batch would add: the server stops merging where a batch's fixed cost no longer weighs.
    full, full_batch_size = offline_peak(case, replace(case.plan, per_candidate_s=0.0))
    ours = climb(case, OURS, SEED)
    best = best_of(case, ours, RULES.values(), SEED)
    adaptive_qps = fresh_qps(case, ours)
    bound_qps = max(adaptive_qps, fresh_qps(case, best))
    return row | {
        "peak_qps": peak,
        "peak_batch_size": peak_batch_size,
        "peak_full_batches_qps": full,
        "peak_full_batches_batch_size": full_batch_size,
        "bound_qps": bound_qps,
        "bound_rule": next(name for name, policy in RULES.items() if policy == best.policy),
        "bound_batch_size": best.point.batch_size,
        "adaptive_qps": adaptive_qps,
        "adaptive_batch_size": ours.point.batch_size,
        "bound": bound_qps / peak,
        "adaptive": adaptive_qps / peak,
    }


def offline_peak(case: Case, plan: Plan) -> tuple[float, int]:
    """Return the highest queries/s without a target, and the batch size that gives it."""
    size = parse_sizes(case.sizes).draw(np.random.default_rng(SEED), case.queries)
    model, at_once = case.profile.model, np.zeros(case.queries)

    def peak(batch_size: int) -> float:
        plans = {model: replace(plan, point=OperatingPoint(batch_size))}
        run = simulate(
            case.node, RULES["first come"], plans, at_once, size, model, seed=SEED, max_waiting=1 << 40
        )
        return case.queries / float(run.latency_s.max())

    return max((peak(n), n) for n in BATCH_SIZES)


def fresh_qps(case: Case, borne: Borne) -> float:
    """Return what a policy bears at its point on queries that no search has seen, queries/s, the mean over seeds."""
    start_qps = borne.qps or None
    found = [case.capacity(borne.policy, borne.point, seed, start_qps).qps for seed in FRESH_SEEDS]
    return float(np.mean(found))


def show(console: Console, rows: list[Row]) -> None:
    """Print the table."""
    table = Table(title="SIMULATED: queries/s offline and within the target (batch size)")
    for heading in ("model", "target", "ms", "peak", "best within the target", "adaptive"):
        table.add_column(heading, justify="left" if heading in ("model", "target") else "right")
    for heading in ("bound", "adaptive / peak", "adaptive / bound"):
        table.add_column(heading, justify="right")
    for r in rows:
        cells = [r["model"], r["target"], f"{r['sla_ms']:.1f}"]
        if "peak_qps" not in r:
            table.add_row(*cells, f"infeasible: a lone query takes {r['lone_ms']:.1f} ms")
            continue
        cells.append(f"{r['peak_qps']:.1f} ({r['peak_batch_size']})")
        cells.append(f"{r['bound_qps']:.1f} ({r['bound_rule']}, {r['bound_batch_size']})")
        cells.append(f"{r['adaptive_qps']:.1f} ({r['adaptive_batch_size']})")
        reached = f"{r['adaptive'] / r['bound']:.3f}" if r["bound"] > 0 else "none"
        table.add_row(*cells, f"{r['bound']:.3f}", f"{r['adaptive']:.3f}", reached)
    console.print(table)
    for target in MODEL_TARGETS:
        chosen = [r for r in rows if r["target"] == target and r.get("bound", 0) > 0]
        mean = geometric_mean([r["adaptive"] / r["bound"] for r in chosen])
        console.print(f"{target}: adaptive / bound, geometric mean {mean}")


def main() -> None:
    arguments = parser(__doc__, queries=10_000).parse_args()
    console, finished = Console(width=140), Finished(arguments.state)
    cases = [(model, target) for target in MODEL_TARGETS for model in arguments.models]
    rows = [
        bound(load_profile(arguments.profiles, model), target, finished, arguments.queries)
        for model, target in track(cases, "bounds", console=console)
    ]
    show(console, rows)
    write("throughput_bound.json", arguments, rows, seed=SEED, fresh_seeds=FRESH_SEEDS)


if __name__ == "__main__":
    main()
