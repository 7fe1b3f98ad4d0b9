from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deeprecsys import RankClient
from deeprecsys.errors import UnavailableError
from services.cli.server_process import server_process


@pytest.fixture
def server_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Replaces the server by a shell script."""

    def replace(script: str) -> None:
        program = tmp_path / "server"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    return replace


def test_a_server_that_never_serves_says_why(server_that) -> None:
    server_that("echo loading >&2; echo 'error: no room' >&2; echo >&2; exit 3")
    with pytest.raises(UnavailableError) as caught, server_process(Path()):
        pytest.fail("it does not serve")
    assert str(caught.value) == "the server ended before it served, with exit code 3: no room"


def test_a_server_that_dies_in_use_says_why(server_that) -> None:
    server_that("echo listening on 127.0.0.1:1; echo 'error: no room' >&2; exit 3")
    with pytest.raises(UnavailableError) as caught, server_process(Path()) as (_, target):
        raise UnavailableError(f"cannot reach {target}")
    assert str(caught.value) == "the server ended while it was used, with exit code 3: no room"
    assert str(caught.value.__cause__) == "cannot reach 127.0.0.1:1"


def test_a_bad_end_says_why(server_that) -> None:
    server_that("trap 'echo stuck >&2; exit 4' TERM; echo listening on a:1; while :; do sleep 0.01; done")
    with pytest.raises(UnavailableError) as caught, server_process(Path()) as (_, target):
        assert target == "a:1"
    assert str(caught.value) == "the server ended badly, with exit code 4: stuck"


def test_a_server_that_says_nothing_is_named_by_its_exit_code(server_that) -> None:
    server_that("exit 5")
    with pytest.raises(UnavailableError, match="before it served, with exit code 5$"), server_process(Path()):
        pytest.fail("it does not serve")


def test_an_error_while_the_server_lives_stays_what_it_is(
    server_that, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.cli.server_process.DEATH_TIMEOUT_S", 0.05)
    server_that("trap 'exit 0' TERM; echo listening on a:1; while :; do sleep 0.01; done")
    with pytest.raises(UnavailableError, match="^draining$"), server_process(Path()):
        raise UnavailableError("draining")


def test_the_real_server_serves_and_stops(repository: Path) -> None:
    with server_process(repository, ["--warmup-s", "0.02"]) as (child, target), RankClient(target) as client:
        assert {model.name for model in client.models()} == {"linear", "two_task"}
    assert child.returncode == 0


def test_the_real_server_says_why_it_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"before it served.*: .*nowhere"):
        with server_process(tmp_path / "nowhere"):
            pytest.fail("it does not serve")
