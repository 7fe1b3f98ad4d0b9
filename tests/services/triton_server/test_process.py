"""A server that does not come up is named by its log; what it started is gone afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deeprecsys.errors import UnavailableError
from services.triton_server.process import TritonProcess, free_ports


@pytest.fixture
def launcher_that(tmp_path: Path) -> Callable[[str], Path]:
    """Replaces the server by a shell script."""

    def write(script: str) -> Path:
        program = tmp_path / "tritonserver"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return program

    return write


def test_a_server_that_ends_shows_its_log(launcher_that, tmp_path: Path) -> None:
    launcher = launcher_that("echo 'no such repository' >&2; exit 3")
    with pytest.raises(UnavailableError, match="exit code 3:\nno such repository"):
        with TritonProcess(launcher, tmp_path):
            pytest.fail("it does not serve")


def test_a_server_that_hangs_shows_its_log_and_is_ended_with_its_children(
    launcher_that, tmp_path: Path
) -> None:
    launcher = launcher_that(f"echo a stub died; sleep 60 & echo $! > {tmp_path}/child; wait")
    process = TritonProcess(launcher, tmp_path)
    with pytest.raises(UnavailableError, match="not ready after 0.3 s:\na stub died"):
        process.start(limit_s=0.3)
    process.close()
    child = int((tmp_path / "child").read_text())
    latest = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < latest


def test_free_ports_differ() -> None:
    assert len({*free_ports(), *free_ports()}) == 6
