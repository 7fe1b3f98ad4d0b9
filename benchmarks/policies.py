"""Latency-bounded throughput of `static`, `paper` and `adaptive`, SIMULATED from profiles (benchmarks/data/profiles).

    python -m benchmarks.policies [--queries 10000] [MODEL ...]

Exponential gaps, p95 within the target (p99 within twice, p99.9 within five times it), the same queries for all.
`static`: batches of 1000 / cores in order of arrival. `paper`: the batch size by hill climb, in order of arrival.
`adaptive`: the batch size by hill climb, coalescing, cutting and ordering by due time and remaining work. Beside the
climbs of both stands the grid's best over the same batch sizes and queries. Targets: the paper's (medium), low (x0.5),
high (x1.5), and `scaled`, four times what a lone p95-size query takes cut over all cores; size laws `production` and
the released lognormal(5.1, 0.2). No front end is simulated, so only the ratios say something; a search ends within 2 %
and each figure rests on one draw of queries, so gains below 5 % are none. Goes on where it was interrupted.
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.simulated_case import (
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
from scheduler.plan import POLICIES
from scheduler.sizes import PRODUCTION_MAX_SIZE
from scheduler.tune import static_point

SEED = 0
LOADS = (
    ("scaled", "production"),
    ("medium", "production"),
    ("low", "production"),
    ("high", "production"),
    ("scaled", "released"),
    ("medium", "released"),
)
"""Targets and size laws."""

TUNED = ("paper", "adaptive")


def study(case: Case) -> Row:
    """Return one row: what each policy bears, queries/s; without figures where no policy can meet the target."""
    row: Row = {
        "model": case.profile.model,
        "target": case.target,
        "sizes": case.sizes,
        "sla_ms": case.sla.seconds * 1e3,
        "lone_ms": case.lone_s * 1e3,
    }
    if not case.feasible:
        return row
    point = static_point(PRODUCTION_MAX_SIZE, case.profile.cores)
    static = Borne(POLICIES["static"], point, case.capacity(POLICIES["static"], point, SEED).qps)
    row |= entries(case, "static", static)
    for name in TUNED:
        tuned = climb(case, POLICIES[name], SEED)
        row |= entries(case, name, tuned)
        best = best_of(case, tuned, [POLICIES[name]], SEED)
        row |= {f"{name}_grid_qps": best.qps, f"{name}_grid_batch_size": best.point.batch_size}
    return row


def entries(case: Case, name: str, borne: Borne) -> Row:
    """Return a policy's entries of a row: queries/s, batch size, and the tail at that rate in milliseconds."""
    row: Row = {f"{name}_qps": borne.qps, f"{name}_batch_size": borne.point.batch_size}
    if borne.qps > 0:
        tail = case.measure(borne.policy, SEED)(borne.point, borne.qps)
        row |= {f"{name}_p99_ms": tail.p99_s * 1e3, f"{name}_slowest_ms": tail.max_s * 1e3}
    return row


def ratios(rows: list[Row], over: str, under: str) -> list[float]:
    """Return over / under of every row that has both."""
    return [row[over] / row[under] for row in rows if row.get(under, 0) > 0]


def show(console: Console, rows: list[Row]) -> None:
    """Print the tables and the means."""
    for target, sizes in LOADS:
        chosen = [row for row in rows if (row["target"], row["sizes"]) == (target, sizes)]
        if not chosen:
            continue
        table = Table(title=f"SIMULATED queries/s within the target (batch size): {target}, sizes {sizes}")
        for heading in ("model", "ms", "static", "paper", "climb / grid", "adaptive", "climb / grid"):
            table.add_column(heading, justify="left" if heading == "model" else "right")
        for heading in ("paper / static", "adaptive / static", "adaptive / paper"):
            table.add_column(heading, justify="right")
        for row in chosen:
            table.add_row(*_cells(row))
        console.print(table)
        for over, under in (("paper", "static"), ("adaptive", "static"), ("adaptive", "paper")):
            mean = geometric_mean(ratios(chosen, f"{over}_qps", f"{under}_qps"))
            console.print(f"{over} / {under}: geometric mean {mean}")


def _cells(row: Row) -> list[str]:
    cells = [row["model"], f"{row['sla_ms']:.1f}"]
    if "static_qps" not in row:
        return [*cells, f"infeasible: a lone query takes {row['lone_ms']:.1f} ms"]
    cells.append(_borne(row, "static"))
    for name in TUNED:
        cells += [_borne(row, name), *_ratio(row, f"{name}_qps", f"{name}_grid_qps", "3")]
    for over, under in (("paper", "static"), ("adaptive", "static"), ("adaptive", "paper")):
        cells += _ratio(row, f"{over}_qps", f"{under}_qps", "2")
    return cells


def _borne(row: Row, name: str) -> str:
    if row[f"{name}_qps"] > 0:
        return f"{row[f'{name}_qps']:.1f} ({row[f'{name}_batch_size']})"
    return f"none (lone: {row['lone_ms']:.1f} ms)"


def _ratio(row: Row, over: str, under: str, digits: str) -> list[str]:
    return [f"{ratio:.{digits}f}" for ratio in ratios([row], over, under)] or ["-"]


def main() -> None:
    arguments = parser(__doc__, queries=10_000).parse_args()
    console, finished = Console(width=140), Finished(arguments.state)
    cases = [
        Case(load_profile(arguments.profiles, model), target, finished, sizes, arguments.queries)
        for target, sizes in LOADS
        for model in arguments.models
    ]
    rows = [study(case) for case in track(cases, "policies", console=console)]
    show(console, rows)
    write("policies_simulated.json", arguments, rows, seed=SEED)


if __name__ == "__main__":
    main()
