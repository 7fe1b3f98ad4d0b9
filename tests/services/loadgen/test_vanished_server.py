"""A real server that is killed in the middle of a run: counted by code, to the end or to the stated number."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deeprecsys.errors import UnavailableError
from services.cli.server_process import server_process
from services.loadgen.recording import Progress
from services.loadgen.result import LoadResult
from services.loadgen.run import run_load
from services.loadgen.settings import LoadSettings, ModelShare


@pytest.fixture
def served(repository: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with pytest.raises(UnavailableError, match="exit code -9"):
        with server_process(repository, ["--warmup-s", "0.02"]) as (child, target):
            yield child, target


def killed_at_once(served, **changes) -> LoadResult:
    """Drive at 100 queries/s and kill the server after a second."""
    child, target = served
    asked = LoadSettings(
        target,
        (ModelShare("linear"),),
        qps=100,
        warmup_s=0.0,
        sizes="fixed:2",
        arrivals="uniform",
        min_queries=1,
        **changes,
    )

    def kill(look: Progress) -> None:
        if look.codes:
            child.kill()

    return run_load(asked, kill)


@pytest.mark.parametrize("drivers", [1, 2])
def test_the_run_goes_on_to_its_end_where_nothing_else_was_asked_for(served, drivers):
    result = killed_at_once(served, duration_s=2.5, unavailable_limit=None, drivers=drivers)
    (linear,) = result.models
    assert result.cut_short is None
    assert set(linear.codes) == {"OK", "UNAVAILABLE"}
    assert linear.measurement.count == 250
    assert linear.measurement.failed == linear.codes["UNAVAILABLE"] >= 50
    assert "queries failed" in linear.shortfall


def test_the_run_stops_after_the_stated_number(served):
    result = killed_at_once(served, duration_s=600.0, unavailable_limit=20)
    assert result.cut_short == "the server is unavailable: 20 queries in a row failed"
    assert result.models[0].codes["UNAVAILABLE"] >= 20
    assert result.models[0].codes["OK"] >= 50
