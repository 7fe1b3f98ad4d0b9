"""How near the hill climb comes to the exhaustive grid, and at what cost: SIMULATED, with a modelled accelerator.

    python -m benchmarks.tuner_quality [--queries 2000] [--target scaled] [--policy adaptive] [MODEL ...]

17 batch sizes x 12 thresholds (scheduler.tune's ladders). The accelerator takes one query at a time and runs this
machine's batches as much faster as a GTX 1080 Ti was than a Skylake core (benchmarks/data). Both searches see the same
queries. Then the climb's point and the grid's best are measured again on the same fresh queries, since the best of 204
noisy figures flatters itself: their ratio is the climb's quality (0.97 or more is wanted). The cost is runs over runs,
each of as many queries (a tenth or less is wanted). Goes on where it was interrupted. Two to three minutes a model of
one core.
"""

from __future__ import annotations

import time

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.simulated_case import (
    Case,
    Finished,
    Row,
    geometric_mean,
    gpu_speedup,
    load_profile,
    parser,
    write,
)
from scheduler.plan import POLICIES, OperatingPoint
from scheduler.tune import BATCH_SIZES, THRESHOLDS, Tuned, exhaustive, hill_climb

SEARCH_SEED = 0
FRESH_SEEDS = (101, 102, 103)
FRESH_QUERIES = 10_000


def judge(case: Case, fresh: Case, policy: str) -> Row:
    """Return one row: both points, their throughputs on fresh queries (queries/s, mean of seeds), the runs taken."""
    measure = case.measure(POLICIES[policy], SEARCH_SEED)
    found: dict[str, Tuned] = {
        "climb": hill_climb(measure, case.sla, case.start_qps),
        "grid": exhaustive(measure, case.sla, case.start_qps),
    }
    row: Row = {"model": case.profile.model, "target": case.target, "sla_ms": case.sla.seconds * 1e3}
    for name, tuned in found.items():
        row[f"{name}_batch_size"], row[f"{name}_offload_from"] = (
            tuned.point.batch_size,
            tuned.point.offload_from,
        )
        row[f"{name}_search_qps"], row[f"{name}_runs"] = tuned.qps, tuned.measurements
        row[f"{name}_qps"] = fresh_qps(fresh, policy, tuned)
    row["quality"] = row["climb_qps"] / row["grid_qps"]
    row["cost"] = row["climb_runs"] / row["grid_runs"]
    return row


def fresh_qps(fresh: Case, policy: str, tuned: Tuned) -> float:
    """Return what a point bears on queries that no search has seen, queries/s, the mean over seeds."""
    return float(
        np.mean([fresh.capacity(POLICIES[policy], tuned.point, s, tuned.qps).qps for s in FRESH_SEEDS])
    )


def show(console: Console, rows: list[Row], policy: str) -> None:
    """Print the table."""
    table = Table(title=f"SIMULATED, modelled accelerator, policy {policy}: the climb against the grid")
    for heading in (
        "model",
        "ms",
        "climb",
        "queries/s",
        "grid",
        "queries/s",
        "climb / grid",
        "runs",
        "of",
        "share",
    ):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for r in rows:
        climb, grid = (
            OperatingPoint(r[f"{n}_batch_size"], r[f"{n}_offload_from"]) for n in ("climb", "grid")
        )
        table.add_row(
            *(r["model"], f"{r['sla_ms']:.1f}"),
            *(
                _text(climb),
                f"{r['climb_qps']:.1f}",
                _text(grid),
                f"{r['grid_qps']:.1f}",
                f"{r['quality']:.3f}",
            ),
            *(str(r["climb_runs"]), str(r["grid_runs"]), f"{r['cost']:.3f}"),
        )
    console.print(table)
    console.print(f"climb / grid: geometric mean {geometric_mean([r['quality'] for r in rows])}")


def _text(point: OperatingPoint) -> str:
    return f"{point.batch_size}, {'none' if point.offload_from is None else f'from {point.offload_from}'}"


def main() -> None:
    options = parser(__doc__, queries=2000)
    options.add_argument("--target", default="scaled", choices=("scaled", "medium", "low", "high"))
    options.add_argument("--policy", default="adaptive", choices=tuple(POLICIES))
    arguments = options.parse_args()
    console, finished, rows = Console(width=130), Finished(arguments.state), []
    for model in arguments.models:
        begin, profile, speedup = (
            time.monotonic(),
            load_profile(arguments.profiles, model),
            gpu_speedup(model),
        )
        case, fresh = (
            Case(profile, arguments.target, finished, queries=queries, speedup=speedup)
            for queries in (arguments.queries, FRESH_QUERIES)
        )
        rows.append(judge(case, fresh, arguments.policy))
        last = rows[-1]
        console.print(
            f"{model}: {last['quality']:.3f} at {last['cost']:.3f}, {time.monotonic() - begin:.0f} s"
        )
    show(console, rows, arguments.policy)
    write(
        f"tuner_quality_{arguments.policy}.json",
        arguments,
        rows,
        target=arguments.target,
        ladders={"batch_sizes": BATCH_SIZES, "thresholds": THRESHOLDS},
        fresh={"queries": FRESH_QUERIES, "seeds": FRESH_SEEDS},
    )


if __name__ == "__main__":
    main()
