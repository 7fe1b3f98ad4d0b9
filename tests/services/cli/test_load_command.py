from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprecsys.errors import InvalidSettingError
from services.cli import load as command
from services.cli import result_files
from services.cli.app import app


@pytest.fixture(autouse=True)
def never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run_load", lambda *_: pytest.fail("ran"))


def refusal(path: Path) -> str:
    outcome = CliRunner().invoke(app, ["load", "--model", "ncf", "--json", str(path)])
    assert isinstance(outcome.exception, InvalidSettingError)
    return str(outcome.exception)


def test_a_result_without_a_directory_is_refused_before_the_run(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "x.json"
    assert refusal(path) == f"cannot write {path}: there is no directory {path.parent}"


def test_a_result_in_the_place_of_a_directory_is_refused_before_the_run(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"cannot write {tmp_path}: it is a directory"


def test_a_result_that_may_not_be_written_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_files.os, "access", lambda *_: False)
    path = tmp_path / "x.json"
    assert refusal(path) == f"cannot write {path}: permission denied"
    assert not path.exists()
