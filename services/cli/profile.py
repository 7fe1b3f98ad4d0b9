"""`deeprecsys profile`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deeprecsys.errors import InvalidSettingError, RepositoryError
from services.characterise import operators
from services.characterise.ceilings import Ceilings, measure_ceilings
from services.characterise.characterisation import (
    characterise,
    is_finished,
    open_model,
    read_subject,
    write_characterisation,
)
from services.characterise.latency import SIZES, measure_profile
from services.cli.profile_tables import ceilings_table, latency_table, operator_table, summary_table
from services.cores import usable_cores
from services.profiles import write_profile
from services.rank.repository import Listing, model_directories, read_listing


def profile(
    models: Annotated[list[str] | None, typer.Argument(help="which models; all when none is named")] = None,
    repository: Annotated[Path, typer.Option(help="where the models are")] = Path("model_repository"),
    output: Annotated[
        Path, typer.Option(help="directory of the results: <model>.json and <model>.characterisation.json")
    ] = Path("profiles"),
    seconds: Annotated[
        float, typer.Option(help="seconds for each batch size, alone and busy", min=0.01)
    ] = 0.5,
    latency_only: Annotated[
        bool, typer.Option("--latency-only", help="seconds by batch size alone; needs no package onnx")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="leave out models that --output has, measured alike on this machine"),
    ] = False,
) -> None:
    """Characterise models on this machine: seconds by batch size, operators, work, roofline, bottleneck.

    Writes the profile that tuner and simulator run on, and beside it what a report plots. Run it on an otherwise
    quiet machine; the eight models take some minutes. Each model's files are written when it is done: Ctrl-C loses the
    model in hand, and --resume goes on with it.
    """
    if not math.isfinite(seconds):
        raise InvalidSettingError(f"--seconds must be a number of seconds, not {seconds}")
    if latency_only and resume:
        raise InvalidSettingError(
            "--resume goes by the characterisations, which --latency-only does not make"
        )
    listings = _listings(repository, models)
    _check_writable(output)
    console = Console()
    if latency_only:
        _seconds_only(console, listings, output, seconds)
    else:
        _characterise(console, listings, output, seconds, resume=resume)
    console.print(f"written to {output}/")


def _listings(repository: Path, models: Sequence[str] | None) -> list[Listing]:
    """Return the models to measure, each once; InvalidSettingError names one that is not there."""
    try:
        present = {directory.name: directory for directory in model_directories(repository)}
    except RepositoryError as error:
        raise InvalidSettingError(str(error)) from error
    chosen = list(dict.fromkeys(models or present))
    unknown = [name for name in chosen if name not in present]
    if unknown or not chosen:
        missing = unknown[0] if unknown else "at all"
        raise InvalidSettingError(
            f"{repository} has no model {missing}; it has {', '.join(present) or 'none'}"
        )
    found = []
    for name in chosen:
        try:
            found.append(read_listing(present[name]))
        except RepositoryError as error:
            raise RepositoryError(f"{name}: {error}") from error
    return found


def _check_writable(output: Path) -> None:
    """Find out before minutes of measuring that nothing could be written; InvalidSettingError says why."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSettingError(f"--output {output} cannot be a directory: {error.strerror}") from error
    if not os.access(output, os.W_OK | os.X_OK):
        raise InvalidSettingError(f"--output {output} cannot be written to")


def _seconds_only(console: Console, listings: Sequence[Listing], output: Path, seconds: float) -> None:
    with _progress(console, len(listings) * len(SIZES)) as step:
        for listing in listings:
            engine, spec = open_model(listing)
            found = measure_profile(
                engine,
                spec,
                usable_cores(),
                seconds_each=seconds,
                progress=_saying(step, f"{listing.name}: batches of "),
            )
            write_profile(output / f"{listing.name}.json", found)
            console.print(latency_table(found))


def _characterise(
    console: Console, listings: Sequence[Listing], output: Path, seconds: float, *, resume: bool
) -> None:
    subjects = [read_subject(listing) for listing in listings]
    left = []
    for subject in subjects:
        if resume and is_finished(output, subject, seconds):
            console.print(f"{subject.name} is there")
        else:
            left.append(subject)
    if not left:
        return
    all_found = []
    with _progress(console, 6 + len(left) * (len(SIZES) + len(operators.SIZES))) as step:
        ceilings = _ceilings(step)
        console.print(ceilings_table(ceilings))
        for subject in left:
            profile, found = characterise(
                subject,
                ceilings,
                seconds=seconds,
                progress=_saying(step, f"{subject.name}: "),
            )
            write_profile(output / f"{subject.name}.json", profile)
            write_characterisation(output, found)
            console.print(latency_table(profile, found))
            console.print(operator_table(found))
            for name in found.inputs_of_zeros:
                console.print(
                    f"note: {found.model} was fed zeros as {name}: the configuration has no id_rows.{name}"
                )
            all_found.append(found)
    console.print(summary_table(all_found))


def _ceilings(step: Callable[[str], None]) -> tuple[Ceilings, Ceilings]:
    one, every = (
        measure_ceilings(cores, progress=_saying(step, f"the machine, cores {cores}: "))
        for cores in (1, usable_cores())
    )
    return one, every


def _saying(step: Callable[[str], None], prefix: str) -> Callable[[object], None]:
    return lambda what: step(f"{prefix}{what}")


@contextmanager
def _progress(console: Console, steps: int) -> Iterator[Callable[[str], None]]:
    """Show what is being done; the yielded function says what comes next."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("reading", total=steps, completed=-1)  # what is announced is not done yet
        yield lambda what: shown.update(task, advance=1, description=what)
