"""What each part of the scheduler brings, one after the other: SIMULATED from profiles, target `scaled`.

    python -m benchmarks.ablation [--queries 10000] [MODEL ...]

static: batches of 1000 / cores in order of arrival. + split: the batch size by hill climb. + coalesce: slices of
several queries share a batch. + order: by due time and 4 times the remaining seconds. + sharing: workers share what
waits, idle ones evenly. + online: the controller instead of the hill climb, from batch size 32 and the line that a
warm-up gives, measured once it has had 30 s to settle, and compared with `+ sharing` at its tuned batch size on the
same queries. Every step before has its own best batch size. Size law `production`, p95 within the target (p99 within
twice, p99.9 within five times it), one draw of queries: steps below 5 % are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.simulated_case import (
    Case,
    Finished,
    Row,
    climb,
    geometric_mean,
    load_profile,
    parser,
    write,
)
from scheduler.arrivals import POISSON
from scheduler.controller import Controller
from scheduler.measure import Measurement, max_qps, summarise
from scheduler.plan import POLICIES, OperatingPoint, Policy
from scheduler.simulator import simulate
from scheduler.sizes import PRODUCTION_MAX_SIZE, parse_sizes
from scheduler.tune import static_point
from scheduler.workload import draw_schedule

SEED = 0
ONLINE = "+ online"
TUNED: Mapping[str, Policy] = {
    "+ split": POLICIES["paper"],
    "+ coalesce": replace(POLICIES["paper"], coalesce=True),
    "+ order": replace(POLICIES["adaptive"], cut=False),
    "+ sharing": POLICIES["adaptive"],
}
STEPS = ("static", *TUNED, ONLINE)
PINNED = "pinned"
"""Not a step: the tuned batch size on the longer schedule of the online step, which is compared with nothing else."""

BEFORE = {**dict(zip(STEPS[1:], STEPS, strict=False)), ONLINE: PINNED}
COLD_BATCH_SIZE = 32
SETTLE_S = 30.0
MEASURE_S = 10.0
"""At least so long, and at least as long as the queries of the other steps take."""


def ablate(case: Case) -> Row:
    """Return one row: queries/s within the target after each step, and the batch sizes."""
    point = static_point(PRODUCTION_MAX_SIZE, case.profile.cores)
    qps = {"static": case.capacity(POLICIES["static"], point, SEED).qps}
    batch_size = {"static": point.batch_size}
    for step, policy in TUNED.items():
        tuned = climb(case, policy, SEED)
        qps[step], batch_size[step] = tuned.qps, tuned.point.batch_size
    start_qps = qps["+ sharing"] or case.start_qps
    qps[ONLINE], batch_size[ONLINE] = online(case, COLD_BATCH_SIZE, start_qps, steering=True)
    qps[PINNED], batch_size[PINNED] = online(case, batch_size["+ sharing"], start_qps, steering=False)
    return {
        "model": case.profile.model,
        "target": case.target,
        "sla_ms": case.sla.seconds * 1e3,
        "qps": qps,
        "batch_size": batch_size,
    }


def online(case: Case, batch_size: int, start_qps: float, *, steering: bool) -> tuple[float, int]:
    """Return the highest rate within the target from this batch size on, and the batch size it then ended with."""
    ended: dict[float, int] = {}

    def measure(qps: float) -> Measurement:
        measurement, ended[qps] = settled(
            case, batch_size, qps, Controller(case.profile.cores) if steering else None
        )
        return measurement

    found = max_qps(measure, case.sla, start_qps, stride=1.15)
    return found.qps, ended.get(found.qps, batch_size)


def settled(
    case: Case, batch_size: int, qps: float, controller: Controller | None
) -> tuple[Measurement, int]:
    """Run one rate, steered or pinned; return what was measured once settled, and the last batch size."""
    duration_s = SETTLE_S + max(MEASURE_S, case.queries / qps)
    schedule = draw_schedule(SEED, POISSON, parse_sizes(case.sizes), qps, duration_s=duration_s)
    model, plan = case.profile.model, replace(case.plan, point=OperatingPoint(batch_size))
    if controller is not None:
        controller.add(model, plan)
    run = simulate(
        case.node,
        POLICIES["adaptive"],
        {model: plan},
        schedule.arrival_s,
        schedule.size,
        model,
        seed=SEED,
        controller=controller,
    )
    window = SETTLE_S, float(schedule.arrival_s[-1])
    measurement = summarise(case.sla, schedule.arrival_s, run.latency_s, schedule.size, window=window)
    last = run.decisions[-1][1].plan if run.decisions else plan
    return measurement, last.point.batch_size


def gains(rows: list[Row], step: str, before: str) -> list[float]:
    """Return what a step brings over the one before, of every model where both meet the target at some rate."""
    return [r["qps"][step] / r["qps"][before] for r in rows if min(r["qps"][step], r["qps"][before]) > 0]


def show(console: Console, rows: list[Row]) -> None:
    """Print the table: queries/s, in brackets the batch size, then the ratio to the step before."""
    table = Table(
        title="SIMULATED queries/s at `scaled` (batch size) x gain over the step before, online over the tuned point"
    )
    table.add_column("model")
    for heading in ("ms", *STEPS):
        table.add_column(heading, justify="right")
    for r in rows:
        cells = [f"{r['qps'][s]:.1f} ({r['batch_size'][s]})" for s in STEPS]
        ratios = ["", *(f" x{g:.2f}" for s, b in BEFORE.items() for g in gains([r], s, b) or [float("nan")])]
        table.add_row(r["model"], f"{r['sla_ms']:.1f}", *(c + x for c, x in zip(cells, ratios, strict=True)))
    console.print(table)
    for step, before in BEFORE.items():
        console.print(f"{step}: geometric mean {geometric_mean(gains(rows, step, before))}")


def main() -> None:
    arguments = parser(__doc__, queries=10_000).parse_args()
    console, finished = Console(width=160), Finished(arguments.state)
    cases = [
        Case(load_profile(arguments.profiles, model), "scaled", finished, queries=arguments.queries)
        for model in arguments.models
    ]
    rows = [ablate(case) for case in track(cases, "ablation", console=console)]
    show(console, rows)
    write("ablation.json", arguments, rows, seed=SEED, settle_s=SETTLE_S)


if __name__ == "__main__":
    main()
