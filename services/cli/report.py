"""`deeprecsys report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deeprecsys.errors import InvalidSettingError

DEFAULT = (Path("benchmarks/results"), Path("benchmarks/results/characterisation"))


def report(
    results: Annotated[
        list[Path] | None,
        typer.Argument(
            help="JSON results, or folders of them; benchmarks/results and its characterisation when none is named"
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="the HTML file")] = Path("report.html"),
    png: Annotated[
        Path | None, typer.Option(help="also write every plot as a PNG file into this folder")
    ] = None,
) -> None:
    """Make one HTML file from results: plots and tables, readable anywhere, without a network.

    It reads what `deeprecsys load --json`, `deeprecsys profile` and the benchmarks write. What is not there is named
    with the command that makes it.
    """
    paths = results or [path for path in DEFAULT if path.is_dir()]
    if not paths:
        raise InvalidSettingError("name JSON results or folders of them: there is no benchmarks/results here")
    if output.is_dir():
        raise InvalidSettingError(f"cannot write {output}: it is a directory")
    try:
        from services.report.report import report_of  # noqa: PLC0415 (matplotlib is an extra)
    except ModuleNotFoundError as missing:
        raise InvalidSettingError(
            f'the report needs {missing.name}; install the extra: pip install "deeprecsys[report]"'
        ) from missing
    made = report_of(paths)
    made.write_page(output)
    console = Console()
    console.print(f"{output}: {sum(1 for _ in made.plots)} plots from {made.files} files", markup=False)
    if png is not None:
        written = made.write_pngs(png)
        console.print(f"{png}: {', '.join(path.name for path in written)}", markup=False)
    for absent in made.absent:
        console.print(f"not there: {absent.what}; made by: {absent.command}", markup=False)
