"""`deeprecsys profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deeprecsys.errors import InvalidSettingError
from scheduler.latency import LatencyProfile
from services.cores import usable_cores
from services.profiles import write_profile
from services.rank.cpu import CpuEngine
from services.rank.profiling import measure_profile
from services.rank.repository import build_spec, model_directories, read_listing


def profile(
    models: Annotated[list[str] | None, typer.Argument(help="which models; all when none is named")] = None,
    repository: Annotated[Path, typer.Option(help="where the models are")] = Path("model_repository"),
    output: Annotated[Path, typer.Option(help="directory of the profiles, one JSON file a model")] = Path(
        "profiles"
    ),
    seconds: Annotated[
        float, typer.Option(help="seconds for each batch size, alone and busy", min=0.01)
    ] = 0.5,
) -> None:
    """Measure seconds by batch size, on one core and with all cores busy: what tuner and simulator run on.

    Run it on an otherwise quiet machine.
    """
    console = Console()
    present = {directory.name: directory for directory in model_directories(repository)}
    chosen = models or list(present)
    unknown = [name for name in chosen if name not in present]
    if unknown:
        raise InvalidSettingError(
            f"{repository} has no model {unknown[0]}; it has {', '.join(present) or 'none'}"
        )
    for name in chosen:
        found = _measure(console, present[name], seconds)
        write_profile(output / f"{name}.json", found)
        console.print(_table(found))
    console.print(f"written to {output}/")


def _measure(console: Console, directory: Path, seconds: float) -> LatencyProfile:
    listing = read_listing(directory)
    engine = CpuEngine(listing.model_file(listing.versions[0]))
    spec = build_spec(listing, listing.versions[0], engine.ports())
    with console.status(f"{spec.name}") as status:
        return measure_profile(
            engine,
            spec,
            usable_cores(),
            seconds_each=seconds,
            progress=lambda size: status.update(f"{spec.name}: batches of {size}"),
        )


def _table(found: LatencyProfile) -> Table:
    cpu = found.backend("cpu")
    table = Table(title=f"{found.model}: milliseconds a batch, microseconds a candidate")
    for heading in (
        "batch",
        "p50",
        "p95",
        "p99",
        "us/candidate",
        f"p50, {found.cores} cores busy",
        "us/candidate",
    ):
        table.add_column(heading, justify="right")
    for alone, busy in zip(cpu.alone.points, cpu.busy.points, strict=True):
        milliseconds = (f"{s * 1e3:.3f}" for s in (alone.p50_s, alone.p95_s, alone.p99_s))
        each, each_busy = (p.mean_s / p.batch_size * 1e6 for p in (alone, busy))
        table.add_row(
            str(alone.batch_size), *milliseconds, f"{each:.1f}", f"{busy.p50_s * 1e3:.3f}", f"{each_busy:.1f}"
        )
    return table
