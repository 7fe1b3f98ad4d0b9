"""`deeprecsys export`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deeprecsys.errors import InvalidSettingError
from services.models import export as exporting
from services.models import gpu_repository as gpu_repositories
from services.models.parity import Parity
from services.models.spec import SLUGS, spec_for
from services.models.triton_config import GpuSettings


def export(
    models: Annotated[
        list[str] | None, typer.Argument(help="which of the eight; all when none is named")
    ] = None,
    repository: Annotated[Path, typer.Option(help="where the models go")] = Path("model_repository"),
    scale: Annotated[str, typer.Option(help="rows of the tables: tiny, laptop or paper")] = "laptop",
    seed: Annotated[int, typer.Option(help="seed of the weights", min=0)] = 0,
    version: Annotated[int, typer.Option(help="version number to publish", min=1)] = 1,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="change a number of the specification: NAME=VALUE, or NAME=A,B,... or NAME="
        ),
    ] = None,
    gpu_repository: Annotated[
        Path | None,
        typer.Option(help="also write a repository that only a GPU can load, with the same model files"),
    ] = None,
    gpu_instances: Annotated[int, typer.Option(help="there: instances of a model on each GPU", min=1)] = 1,
    tensorrt: Annotated[bool, typer.Option("--tensorrt", help="there: run on TensorRT")] = False,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="there: capture CUDA graphs; needs --tensorrt")
    ] = False,
) -> None:
    """Build, check and publish recommendation models as ONNX files in Triton's layout.

    A version that is there already is left alone. A model that fails its check is not published.
    """
    gpu = GpuSettings(gpu_instances, tensorrt, cuda_graphs)
    if gpu_repository is None and gpu != GpuSettings():
        raise InvalidSettingError(
            "settings of a GPU need --gpu-repository: the ordinary one loads everywhere"
        )
    slugs, overrides = models or list(SLUGS), override or []
    gpu_repositories.check(gpu)
    results = run_export(Console(stderr=True), slugs, repository, scale, seed, version, overrides)
    print_exported(Console(), results, repository)
    if gpu_repository is not None:
        specs = [spec_for(slug, scale, **_overrides(overrides)) for slug in slugs]
        gpu_repositories.write_gpu_repository(specs, version, repository, gpu_repository, gpu)
        Console().print(f"for GPUs: {gpu_repository}", markup=False)


def run_export(
    console: Console,
    slugs: list[str],
    repository: Path,
    scale: str,
    seed: int = 0,
    version: int = 1,
    overrides: list[str] | None = None,
) -> tuple[exporting.Exported, ...]:
    """Export, with a progress bar where somebody watches; raises as ``services.models.export.export`` does."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as progress:
        task = progress.add_task("export", total=len(slugs))

        def show(step: exporting.Progress) -> None:
            progress.update(task, description=f"{step.slug}: {step.step}", completed=step.model - 1)

        return exporting.export(
            slugs, repository, scale, seed, version, overrides=_overrides(overrides or []), progress=show
        )


def print_exported(console: Console, results: tuple[exporting.Exported, ...], repository: Path) -> None:
    """Print what was published and what the check found."""
    table = Table(title=f"models in {repository}")
    for heading in ("model", "version", "tables MB", "largest error", "score spread", "seconds"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for result in results:
        checked = ("already there", "") if result.parity is None else _checked(result.parity)
        table.add_row(
            result.slug,
            str(result.version),
            f"{result.table_bytes / 1e6:.0f}",
            *checked,
            f"{result.seconds:.1f}",
        )
    console.print(table)


def _checked(parity: Parity) -> tuple[str, str]:
    return f"{parity.max_error:.1e}", f"{parity.score_std:.2f}"


def _overrides(pairs: list[str]) -> dict[str, object]:
    overrides: dict[str, object] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InvalidSettingError(f'--set takes NAME=VALUE, not "{pair}"')
        overrides[name.strip()] = _value(text.strip())
    return overrides


def _value(text: str) -> object:
    """Read a number, a word, several of them separated by commas, or nothing: an empty list."""
    if "," in text or not text:
        return tuple(_single(part.strip()) for part in text.split(",") if part.strip())
    return _single(text)


def _single(text: str) -> int | float | str:
    """Read a whole number, else a finite fraction, else a word."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
