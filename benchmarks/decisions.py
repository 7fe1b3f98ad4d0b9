"""The controller's decisions over time, SIMULATED from profiles: a step of the load, a compressed day, a cold start.

    python -m benchmarks.decisions [--queries 2000] [MODEL ...]

Each model once on this machine's cores alone and once beside a modelled accelerator (as in benchmarks.tuner_quality),
at target `scaled`, size law `production`. What a hill climb finds is 100 % of the load. The controller begins where a
server begins, at the batch size that timed batches choose (`scheduler.first_plan`), offloading nothing; at a cold start
at 1. Beside it runs the climb's own point, pinned, on the same queries. A window is one second, and its percentile is
noisy: the pinned run shows how much.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.live.windows import share_inside, tails
from benchmarks.simulated_case import Case, Finished, Row, gpu_speedup, load_profile, parser, write
from scheduler.arrivals import parse_arrivals
from scheduler.controller import Controller, Decision
from scheduler.first_plan import first_plan
from scheduler.plan import POLICIES, OperatingPoint
from scheduler.simulator import Simulated, simulate
from scheduler.sizes import parse_sizes
from scheduler.tune import BATCH_SIZES, THRESHOLDS, Tuned, hill_climb
from scheduler.workload import Schedule, draw_schedule

MODELS = ("wnd", "dien")
TARGET, SIZES = "scaled", "production"
SEARCH_SEED, RUN_SEED = 0, 1


@dataclass(frozen=True)
class Scenario:
    """What the load does: a base rate as a share of the tuned point's throughput, and an arrival law.

    ``start``: the batch size that the controller begins at; None for a server's own first.
    """

    name: str
    load: float
    arrivals: str
    duration_s: int
    start: int | None = None


SCENARIOS = (
    Scenario("the load steps from 40 to 90 %", 0.4, "step:30,2.25", 90),
    Scenario("a day in 240 s, 18 to 90 %", 0.9, "diurnal:240,0.2", 240),
    Scenario("cold start at 1, 70 %", 0.7, "poisson", 60, start=1),
)


def follow(case: Case, scenario: Scenario, tuned: Tuned) -> Row:
    """Return one row: by second the arrivals, and of both runs the tails and points; and every decision."""
    schedule = draw_schedule(
        RUN_SEED,
        parse_arrivals(scenario.arrivals),
        parse_sizes(SIZES),
        scenario.load * tuned.qps,
        duration_s=scenario.duration_s,
    )
    model, accelerated = case.profile.model, case.speedup is not None
    start = OperatingPoint(scenario.start or first_batch_size(case))
    controller = Controller(case.profile.cores)
    controller.add(model, replace(case.plan, point=start), accelerator=accelerated)
    steered, pinned = (
        simulate(
            case.node,
            POLICIES["adaptive"],
            {model: replace(case.plan, point=point)},
            schedule.arrival_s,
            schedule.size,
            model,
            seed=RUN_SEED,
            controller=steering,
        )
        for point, steering in ((start, controller), (tuned.point, None))
    )
    arrived = np.bincount(schedule.arrival_s.astype(int), minlength=scenario.duration_s)
    return {
        "model": model,
        "scenario": scenario.name,
        "accelerator": "modelled" if accelerated else None,
        "sla_ms": case.sla.seconds * 1e3,
        "percentile": case.sla.percentile,
        "full_load_qps": tuned.qps,
        "arrivals": scenario.arrivals,
        "base_qps": scenario.load * tuned.qps,
        "arrived_qps": arrived.tolist(),
        "start": _point(start),
        "steered": _run(case, schedule, steered, scenario.duration_s),
        "pinned": _point(tuned.point) | _run(case, schedule, pinned, scenario.duration_s),
        "decisions": [_decision(at_s, decision) for at_s, decision in steered.decisions],
    }


def first_batch_size(case: Case) -> int:
    """Return the batch size that a server would begin with, from the profile's seconds instead of timed batches."""
    points = case.profile.backend("cpu").alone.points
    sizes, seconds = [p.batch_size for p in points], [p.mean_s for p in points]
    return first_plan(sizes, seconds, sla_s=case.sla.seconds, largest_batch=sizes[-1]).point.batch_size


def _run(case: Case, schedule: Schedule, run: Simulated, duration_s: int) -> Row:
    tail_s = tails(schedule.arrival_s, run.latency_s, case.sla.percentile, duration_s)
    return {
        "inside": share_inside(tail_s, case.sla.seconds),
        "tail_ms": [float(s) * 1e3 if np.isfinite(s) else None for s in tail_s],
        "offloaded": float(run.offloaded.mean()),
    }


def _point(point: OperatingPoint) -> Row:
    return {"batch_size": point.batch_size, "offload_from": point.offload_from}


def _decision(at_s: float, decision: Decision) -> Row:
    return {"at_s": at_s, "why": decision.why.value, "reason": decision.reason, **_point(decision.new)}


def show(console: Console, rows: list[Row]) -> None:
    """Print the table."""
    table = Table(title="SIMULATED: share of one-second windows inside the target")
    for heading in ("model", "scenario", "accelerator", "steered", "pinned", "decisions", "ends at"):
        table.add_column(heading)
    for r in rows:
        last = r["decisions"][-1] if r["decisions"] else r["start"]
        table.add_row(
            *(r["model"], r["scenario"], r["accelerator"] or "none"),
            *(f"{r[run]['inside']:.2f}" for run in ("steered", "pinned")),
            *(str(len(r["decisions"])), f"{last['batch_size']}, {last['offload_from']}"),
        )
    console.print(table)


def study(arguments: argparse.Namespace, finished: Finished, model: str, accelerated: bool) -> list[Row]:
    """Return the rows of a model, with or without an accelerator."""
    speedup: Any = gpu_speedup(model) if accelerated else None
    profile = load_profile(arguments.profiles, model)
    case = Case(profile, TARGET, finished, SIZES, arguments.queries, speedup)
    tuned = hill_climb(
        case.measure(POLICIES["adaptive"], SEARCH_SEED),
        case.sla,
        case.start_qps,
        batch_sizes=BATCH_SIZES,
        thresholds=THRESHOLDS if accelerated else (),
    )
    return [follow(case, scenario, tuned) for scenario in SCENARIOS]


def main() -> None:
    options = parser(__doc__, queries=2000)
    options.set_defaults(models=list(MODELS))
    arguments = options.parse_args()
    console, finished = Console(width=150), Finished(arguments.state)
    cases = [(model, accelerated) for model in arguments.models for accelerated in (False, True)]
    rows = [
        row
        for each in track(cases, "decisions", console=console)
        for row in study(arguments, finished, *each)
    ]
    show(console, rows)
    seeds = {"search": SEARCH_SEED, "run": RUN_SEED}
    write("decisions.json", arguments, rows, target=TARGET, sizes=SIZES, seeds=seeds)


if __name__ == "__main__":
    main()
