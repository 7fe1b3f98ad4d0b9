"""The command line: `deeprecsys export | serve | rank | load | tune | profile | simulate | report | status | demo`."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from deeprecsys.errors import DeepRecSysError, InvalidQueryError, InvalidSettingError
from services.cli.demo import demo
from services.cli.export import export
from services.cli.load import load
from services.cli.profile import profile
from services.cli.rank import rank
from services.cli.report import report
from services.cli.serve import serve
from services.cli.simulate import simulate
from services.cli.status import status
from services.cli.tune import tune

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Recommendation ranking served inside a tail-latency target.",
)
for command in (export, serve, rank, load, tune, profile, simulate, report, status, demo):
    app.command()(command)


def main() -> None:
    """Run the command line; an expected error is one line on standard error and an exit code of 1 or 2."""
    try:
        app()
    except (InvalidSettingError, InvalidQueryError) as error:
        _fail(error, 2)
    except DeepRecSysError as error:
        _fail(error, 1)


def _fail(error: DeepRecSysError, code: int) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {error}", markup=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
