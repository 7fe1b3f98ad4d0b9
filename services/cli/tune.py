"""`deeprecsys tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from scheduler.tune import BATCH_SIZES, Tried, Tuned
from services.loadgen.settings import LoadSettings, ModelShare
from services.loadgen.tuning import Finished, tune_live


def tune(
    model: Annotated[str, typer.Argument(help="the model to tune")],
    target: Annotated[str, typer.Option(help="host:port of the running service")] = "127.0.0.1:8500",
    start_qps: Annotated[float, typer.Option(help="rate at which each search begins")] = 50.0,
    duration: Annotated[float, typer.Option(help="seconds of each run")] = 10.0,
    sizes: Annotated[str, typer.Option(help="law of the query sizes")] = "production",
    largest: Annotated[int, typer.Option(help="largest batch size to try", min=1)] = 1024,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="measure every point: the oracle")] = False,
    seed: Annotated[int, typer.Option(help="seed of everything that is drawn", min=0)] = 0,
    finished: Annotated[
        Path | None, typer.Option(help="file of finished measurements; a run with the same one goes on")
    ] = None,
) -> None:
    """Find the batch size with the highest rate within the target, by measuring the running service.

    Every point is driven with the same queries. Ctrl-C loses no finished measurement: the same command goes on. The
    service is left pinned at the best point, and keeps it for its next start where it has a --state-dir.
    """
    console = Console()
    settings = LoadSettings(
        target, (ModelShare(model),), qps=start_qps, duration_s=duration, warmup_s=1.0, sizes=sizes, seed=seed
    )
    path = finished or Path(f".tuning-{model}.jsonl")
    rungs = tuple(size for size in BATCH_SIZES if size <= largest)
    with console.status("measuring") as status:

        def show(tried: Tried) -> None:
            bound = "no more than" if tried.pruned else "bears"
            console.print(
                f"batch size {tried.point.batch_size} {bound} {tried.qps:.1f} queries/s: {tried.why}"
            )
            status.update("measuring the next point")

        tuned = tune_live(
            settings, Finished(path, settings), grid=exhaustive, batch_sizes=rungs, progress=show
        )
    console.print(_table(model, tuned))
    if tuned.qps <= 0:
        console.print("no batch size meets the target at any rate")


def _table(model: str, tuned: Tuned) -> Table:
    table = Table(title=f"{model}: best at batch size {tuned.point.batch_size}, {tuned.measurements} runs")
    for heading in ("batch size", "queries/s within the target", "held back by"):
        table.add_column(heading, justify="left" if heading == "held back by" else "right")
    for tried in sorted(tuned.tried, key=lambda each: each.point.batch_size):
        bound = "< best" if tried.pruned else f"{tried.qps:.1f}"
        table.add_row(str(tried.point.batch_size), bound, tried.why)
    return table
