"""`deeprecsys simulate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from services.cli.result_files import check_writable, write_json
from services.fleet.day import whole_days
from services.fleet.fleet_file import read_fleet
from services.fleet.on_ray import on_ray
from services.fleet.processes import on_processes
from services.fleet.sweep import Row, run_sweep


def simulate(
    fleet: Annotated[Path, typer.Argument(help="the fleet file, TOML")],
    seed: Annotated[int, typer.Option(help="seed of everything that is drawn", min=0)] = 0,
    processes: Annotated[int, typer.Option(help="processes of this machine; 0: one per CPU", min=0)] = 0,
    ray: Annotated[str | None, typer.Option(help="address of a Ray cluster that simulates instead")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the result")] = None,
    state: Annotated[
        Path | None, typer.Option(help="file of finished parts; a run with the same one goes on")
    ] = None,
) -> None:
    """Simulate a fleet through a day, with the very batcher and controller of the server.

    Every part of the day is simulated until p95 and p99 of every model are known as well as the file asks. Ctrl-C loses
    no finished part: the same command goes on. The result is the same from the same file and seed, wherever it runs.
    """
    state = state or Path(f".simulate-{fleet.stem}.jsonl")
    cases = read_fleet(fleet)
    check_writable(state)
    check_writable(out)
    runner = on_ray(ray) if ray is not None else on_processes(processes or os.cpu_count() or 1)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("simulating", total=len(cases))
        rows = run_sweep(
            cases,
            seed,
            state,
            runner,
            lambda done, of: progress.update(task, completed=done, total=of),
        )
    days = whole_days(rows)
    write_json(out, {"kind": "SIMULATED", "fleet": fleet.name, "seed": seed, "days": days, "parts": rows})
    Console().print(_table(days))


def _table(days: list[Row]) -> Table:
    labels = list(days[0]["labels"])
    origins = sorted({origin for day in days for origin in day["origins"]})
    table = Table(title=f"SIMULATED, {days[0]['nodes']} nodes, kinds {' and '.join(origins)}")
    for heading in (*labels, "model"):
        table.add_column(heading)
    for heading in ("p50 ms", "p95 ms", "p99 ms", "target ms", "parts within", "failed", "cores busy", "W"):
        table.add_column(heading, justify="right")
    for day in days:
        for model, seen in day["models"].items():
            table.add_row(
                *(str(day["labels"][name]) for name in labels),
                model,
                *(_number(seen[name]) for name in ("p50_ms", "p95_ms", "p99_ms")),
                f"{seen['sla_ms']:g}",
                f"{seen['parts_met']} of {seen['parts']}",
                f"{100 * seen['failed_share']:.2g} %",
                f"{100 * day['busy']:.0f} %",
                f"{day['watts']:.0f}",
            )
    unknown = sum(day["parts"] - day["known"] for day in days)
    if unknown:
        table.caption = (
            f"{unknown} parts are not known as well as asked for: raise day.most_rounds or day.duration_s"
        )
    return table


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
