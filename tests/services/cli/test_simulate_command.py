"""`deeprecsys simulate`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprecsys.errors import InvalidSettingError
from services.cli import app as command_line
from services.cli.app import app

FLEET = """
peak_qps = 400
router = "power-of-two"
[day]
trough = 0.5
points = 2
warmup_s = 0.2
duration_s = 0.5
least_rounds = 1
most_rounds = 1
[[models]]
name = "rmc1"
sla_ms = 100
[[nodes]]
kind = "skylake-like"
count = 2
"""


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.toml"
    path.write_text(FLEET)
    return path


def test_a_fleet_is_simulated_into_a_table_and_json_and_said_to_be_modelled(
    fleet: Path, tmp_path: Path
) -> None:
    arguments = ["simulate", str(fleet), "--processes", "1", "--seed", "5", "--out", "result.json"]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    assert "SIMULATED, 2 nodes, kinds modelled" in outcome.output
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["kind"] == "SIMULATED"
    assert len(result["parts"]) == 2
    assert result["days"][0]["models"]["rmc1"]["parts_met"] == 2
    assert len((tmp_path / ".simulate-small.jsonl").read_text().splitlines()) == 2
    again = CliRunner().invoke(app, [*arguments[:-1], "again.json"])
    assert again.exit_code == 0
    assert json.loads((tmp_path / "again.json").read_text()) == result


def test_a_bad_file_is_one_line_and_exit_code_2(
    fleet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.write_text(FLEET.replace("count = 2", "count = 0"))
    monkeypatch.setattr("sys.argv", ["deeprecsys", "simulate", str(fleet)])
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    assert caught.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said == [f"error: {fleet}: nodes.0.count: Input should be greater than or equal to 1"]


@pytest.mark.parametrize("option", ["--out", "--state"])
def test_a_file_that_cannot_be_written_is_said_before_anything_is_simulated(
    fleet: Path, tmp_path: Path, option: str
) -> None:
    outcome = CliRunner().invoke(app, ["simulate", str(fleet), "--processes", "1", option, "no/where.json"])
    assert isinstance(outcome.exception, InvalidSettingError)
    assert "cannot write no/where.json: there is no directory no" in str(outcome.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


def test_hours_without_a_query_are_no_part_that_missed_the_target(fleet: Path) -> None:
    night = "curve = [[0, 0], [6, 0], [12, 1], [24, 0]]\npoints = 4\nduration_s = 0.6"
    fleet.write_text(FLEET.replace("trough = 0.5\npoints = 2", night).replace("\nduration_s = 0.5", ""))
    outcome = CliRunner().invoke(app, ["simulate", str(fleet), "--processes", "1", "--out", "result.json"])
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(Path("result.json").read_text())
    assert [part["queries"] > 0 for part in result["parts"]] == [False, False, True, True]
    (day,) = result["days"]
    assert (day["parts"], day["models"]["rmc1"]["parts"], day["models"]["rmc1"]["parts_met"]) == (4, 2, 2)


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_its_option_says_what_to_install(fleet: Path) -> None:
    outcome = CliRunner().invoke(app, ["simulate", str(fleet), "--ray", "auto"])
    assert isinstance(outcome.exception, InvalidSettingError)
    assert "pip install 'deeprecsys[ray]'" in str(outcome.exception)


@pytest.mark.slow
def test_an_interrupted_command_ends_its_processes_and_goes_on(fleet: Path, tmp_path: Path) -> None:
    fleet.write_text(FLEET.replace("points = 2", "points = 40").replace("duration_s = 0.5", "duration_s = 6"))
    code = "from services.cli.app import main; main()"
    arguments = [sys.executable, "-c", code, "simulate", str(fleet), "--processes", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    run = subprocess.Popen(
        arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    state = tmp_path / ".simulate-small.jsonl"
    until = time.monotonic() + 60
    while not state.exists() and time.monotonic() < until:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=30)
    assert run.returncode != 0
    done = len(state.read_text().splitlines())
    assert 1 <= done < 40, output
