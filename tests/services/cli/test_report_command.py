"""`deeprecsys report`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.app import app
from tests.services.report.conftest import PROFILES, load_run, sweep

ROOT = Path(__file__).parents[3]


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.cli.app", "report", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def test_a_page_and_its_pngs_are_written_and_what_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(sweep()))
    page, folder = tmp_path / "new" / "page.html", tmp_path / "docs"
    arguments = ["report", str(tmp_path / "sweep.json"), "--output", str(page), "--png", str(folder)]
    outcome = CliRunner().invoke(app, arguments, terminal_width=400)
    assert outcome.exit_code == 0, outcome.output
    assert page.read_text().startswith("<!doctype html>")
    assert [path.name for path in folder.iterdir()] == ["load.png"]
    said = " ".join(outcome.stdout.split())
    assert "1 plots from 1 files" in said
    assert "not there: profiles; made by: deeprecsys profile" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.json", None, "No such file"),
        ("broken.json", "{", "is not JSON"),
        ("other.json", '{"a": 1}', "is no result that the report knows"),
        ("run.json", json.dumps(load_run() | {"qps": "fast"}), "qps: Input should be a valid number"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, content: str | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    done = run(str(path), "--output", str(tmp_path / "page.html"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {'cannot read ' if content is None else ''}{path}")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_a_page_that_cannot_be_written_is_one_line_too(tmp_path: Path) -> None:
    done = run(str(PROFILES), "--output", str(tmp_path))
    assert (done.returncode, done.stderr) == (2, f"error: cannot write {tmp_path}: it is a directory\n")


def test_without_results_it_says_what_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = CliRunner().invoke(app, ["report"])
    assert "there is no benchmarks/results here" in str(outcome.exception)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "services.report.report", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for name in [name for name in sys.modules if name.startswith("services.report.")]:
        monkeypatch.delitem(sys.modules, name)
    outcome = CliRunner().invoke(app, ["report", str(PROFILES), "--output", str(tmp_path / "page.html")])
    assert 'pip install "deeprecsys[report]"' in str(outcome.exception)
