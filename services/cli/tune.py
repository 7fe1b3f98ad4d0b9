"""`deeprecsys tune`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deeprecsys.errors import InvalidSettingError
from scheduler.measure import Sla
from scheduler.plan import POLICIES, OperatingPoint
from scheduler.simulator import profiled_load
from scheduler.tune import BATCH_SIZES, THRESHOLDS, Tried, Tuned, hill_climb
from scheduler.tune import exhaustive as every_point
from services.loadgen.law_files import size_law
from services.loadgen.settings import LoadSettings, ModelShare
from services.loadgen.tuning import Finished, tune_live
from services.profiles import read_profile


def tune(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="the model to tune")],
    target: Annotated[str, typer.Option(help="host:port of the running service")] = "127.0.0.1:8500",
    start_qps: Annotated[float, typer.Option(help="rate at which each search begins")] = 50.0,
    duration: Annotated[float, typer.Option(help="seconds of each run")] = 10.0,
    sizes: Annotated[str, typer.Option(help="law of the query sizes")] = "production",
    largest: Annotated[int, typer.Option(help="largest batch size to try", min=1)] = 1024,
    cpu_only: Annotated[
        bool, typer.Option("--cpu-only", help="tune the batch size alone, though there is an accelerator")
    ] = False,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="measure every point: the oracle")] = False,
    seed: Annotated[int, typer.Option(help="seed of everything that is drawn", min=0)] = 0,
    finished: Annotated[
        Path | None, typer.Option(help="file of finished measurements; a run with the same one goes on")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="simulate from this file of `deeprecsys profile`; no service is asked")
    ] = None,
    sla_ms: Annotated[float | None, typer.Option(help="simulated: p95 target in milliseconds")] = None,
    policy: Annotated[str, typer.Option(help=f"simulated: {', '.join(POLICIES)}")] = "adaptive",
    queries: Annotated[int, typer.Option(help="simulated: queries of each run", min=1000)] = 10_000,
) -> None:
    """Find the operating point with the highest rate within the target, by measuring the running service.

    The batch size is tuned first; where the service has an accelerator, then the query size from which queries go
    there, then both again until nothing changes. Every point is driven with the same queries. Ctrl-C loses no finished
    measurement: the same command goes on. The service is left pinned at the best point, and keeps it for its next start
    where it has a --state-dir. With --profile the same search is simulated, in seconds and without an accelerator;
    serve its result with --batch-size.
    """
    console = Console()
    if profile is not None:
        _refuse(
            context,
            ("target", "duration", "cpu_only", "finished"),
            "measures a service: leave it out with --profile",
        )
        tuned = _simulated(
            model, profile, sla_ms, policy, sizes, start_qps, largest, exhaustive, seed, queries
        )
        _print(console, f"{model}, SIMULATED", tuned)
        return
    _refuse(context, ("sla_ms", "policy", "queries"), "is for a simulated search: it needs --profile")
    settings = LoadSettings(
        target, (ModelShare(model),), qps=start_qps, duration_s=duration, warmup_s=1.0, sizes=sizes, seed=seed
    )
    path = finished or Path(f".tuning-{model}.jsonl")
    with console.status("measuring") as status:

        def show(tried: Tried) -> None:
            bound = "no more than" if tried.pruned else "bears"
            console.print(f"{_text(tried.point)} {bound} {tried.qps:.1f} queries/s: {tried.why}")
            status.update("measuring the next point")

        tuned = tune_live(
            settings,
            Finished(path, settings),
            grid=exhaustive,
            batch_sizes=_rungs(largest),
            thresholds=() if cpu_only else THRESHOLDS,
            progress=show,
        )
    _print(console, model, tuned)


def _refuse(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Raise InvalidSettingError for an option that was given and would have no effect."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InvalidSettingError(f"--{name.replace('_', '-')} {why}")


def _print(console: Console, title: str, tuned: Tuned) -> None:
    console.print(_table(title, tuned))
    if tuned.qps <= 0:
        console.print("no point meets the target at any rate")


def _text(point: OperatingPoint) -> str:
    offloaded = "" if point.offload_from is None else f", offloading from {point.offload_from}"
    return f"batch size {point.batch_size}{offloaded}"


def _rungs(largest: int) -> tuple[int, ...]:
    return tuple(size for size in BATCH_SIZES if size <= largest)


def _simulated(
    model: str,
    path: Path,
    sla_ms: float | None,
    policy: str,
    sizes: str,
    start_qps: float,
    largest: int,
    grid: bool,
    seed: int,
    queries: int,
) -> Tuned:
    """Tune one simulated node of this profile; InvalidSettingError names what does not fit."""
    profile = read_profile(path)
    if profile.model != model:
        raise InvalidSettingError(f"{path} is the profile of {profile.model}, not of {model}")
    if sla_ms is None or not 0 < sla_ms < math.inf:
        raise InvalidSettingError("--sla-ms must be given, above 0 and finite, with --profile")
    if not 0 < start_qps < math.inf:
        raise InvalidSettingError(f"--start-qps must be above 0 and finite, not {start_qps:g}")
    if policy not in POLICIES:
        raise InvalidSettingError(f"--policy must be one of {', '.join(POLICIES)}, not {policy}")
    law = size_law(sizes)
    sla = Sla(95.0, sla_ms / 1e3)
    measure = profiled_load(profile, POLICIES[policy], sla, law, queries=queries, seed=seed)
    search = every_point if grid else hill_climb
    return search(measure, sla, start_qps, batch_sizes=_rungs(largest), thresholds=())


def _table(model: str, tuned: Tuned) -> Table:
    latest = {tried.point: tried for tried in tuned.tried}  # a climb may pass a rung twice
    offloads = any(point.offload_from is not None for point in latest)
    table = Table(title=f"{model}: best at {_text(tuned.point)}, {tuned.measurements} runs")
    headings = ("batch size", *(("offload from",) if offloads else ()), "queries/s within the target")
    for heading in headings:
        table.add_column(heading, justify="right")
    table.add_column("held back by")
    for point, tried in sorted(
        latest.items(), key=lambda item: (item[0].offload_from or 0, item[0].batch_size)
    ):
        bound = "< best" if tried.pruned else f"{tried.qps:.1f}"
        threshold = (str(point.offload_from or "none"),) if offloads else ()
        table.add_row(str(point.batch_size), *threshold, bound, tried.why)
    return table
