"""The line that follows a run: percentiles and errors by code, drawn on a terminal only."""

import io

import numpy as np
from rich.console import Console

from scheduler.measure import Capacity, Sla
from services.cli.load_output import live_line, print_outcome
from services.loadgen.recording import Progress
from services.loadgen.result import MaxResult
from services.loadgen.settings import LoadSettings, ModelShare
from services.machine import Machine

MACHINE = Machine("a CPU", 2, 1 << 30, "Linux", "3.11", {})

LOOK = Progress(
    2.0, 10.0, 40, 200, {"OK": 38, "INTERNAL": 2}, np.array([0.004] * 36 + [0.0123] * 3 + [np.inf])
)


def drawn(*, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, force_interactive=terminal, width=120)
    with live_line(console) as show:
        show(LOOK)
    return file.getvalue()


def test_the_line_shows_how_far_the_run_is_its_percentiles_and_its_errors() -> None:
    line = drawn(terminal=True)
    for text in ("40/200", "p50 4 ms", "p95 12.3 ms", "p99 none ms", "INTERNAL 2"):
        assert text in line, text
    assert "OK" not in line


def test_nothing_is_drawn_where_nobody_looks() -> None:
    assert drawn(terminal=False).strip() == ""


def test_a_search_that_was_stopped_does_not_say_that_no_rate_meets_the_target() -> None:
    file = io.StringIO()
    settings = LoadSettings("a:1", (ModelShare("ncf"),))
    capacity = Capacity(0.0, None, (), "the search was stopped by the user after 0 probes")
    stopped = MaxResult(settings, MACHINE, "ncf", Sla(95.0, 0.005), capacity, None, "stopped by the user")
    print_outcome(Console(file=file, width=120), stopped)
    assert "cut short: stopped by the user" in file.getvalue()
    assert "no rate was found within the target: the search was stopped" in file.getvalue()
    assert "no rate meets" not in file.getvalue()
