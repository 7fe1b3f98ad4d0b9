"""`deeprecsys profile`: what it writes, what it shows, what it refuses."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deeprecsys.errors import InvalidSettingError, RepositoryError
from services.characterise.ceilings import measure_ceilings
from services.characterise.characterisation import characterisation_path, read_characterisation
from services.cli import profile as command
from services.cli.app import app
from services.profiles import read_profile
from tests.conftest import write_model
from tests.services.characterise import graphs
from tests.services.characterise.test_operators import BAGS_CONFIG
from tests.services.rank.test_server_life import cli


@pytest.fixture
def bags(repository: Path) -> Path:
    write_model(repository, "bags", graphs.bags().SerializeToString(), BAGS_CONFIG)
    return repository


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real measurement on a table and a matrix that take no time."""
    small = functools.partial(measure_ceilings, table_bytes=1 << 21, matrices=(32,), repeats=2)
    monkeypatch.setattr(command, "measure_ceilings", small)


def run(*arguments: object) -> Any:
    words = ["profile", "--seconds", "0.01", *map(str, arguments)]
    return CliRunner().invoke(app, words, env={"COLUMNS": "200"})


def refusal(*arguments: object) -> Exception:
    outcome = run(*arguments)
    assert outcome.exception is not None
    assert not isinstance(outcome.exception, SystemExit), outcome.output
    return outcome.exception


def test_each_model_gets_a_profile_and_a_characterisation_that_can_be_read_back(
    bags: Path, tmp_path: Path
) -> None:
    outcome = run("bags", "linear", "bags", "--repository", bags, "--output", tmp_path / "p")
    assert outcome.exit_code == 0, outcome.output
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "bags.characterisation.json",
        "bags.json",
        "linear.characterisation.json",
        "linear.json",
    ]
    found = read_characterisation(characterisation_path(tmp_path / "p", "bags"))
    assert (found.model, found.version, found.work.macs) == ("bags", "1", 65)
    profile = read_profile(tmp_path / "p" / "bags.json")
    alone = {rate.batch_size: rate for rate in found.rates if rate.cores == 1}
    assert alone[64].mean_s == profile.backend("cpu").alone.mean_s(64)
    assert alone[64].candidates_per_s == pytest.approx(64 / alone[64].mean_s)
    assert alone[64].flops_per_s == pytest.approx(64 * 130 / alone[64].mean_s)
    busy = [rate for rate in found.rates if rate.batch_size == 64][1]
    assert busy.candidates_per_s == pytest.approx(profile.cores * 64 / busy.mean_s)
    assert [shares.breakdown.batch_size for shares in found.operators] == [1, 16, 64]
    assert found.bottleneck == found.operators[-1].bottleneck
    assert [ceilings.cores for ceilings in found.ceilings] == [1, profile.cores]
    for shown in ("us/candidate", "candidates/s", "GFLOP/s", "SparseLengthsSum", "bottleneck", "of its roof"):
        assert shown in outcome.output


def test_a_run_is_resumed_model_by_model_and_only_with_what_was_measured_alike(
    bags: Path, tmp_path: Path
) -> None:
    arguments = ("--repository", bags, "--output", tmp_path / "p", "--resume")
    assert run("bags", *arguments).exit_code == 0
    path = characterisation_path(tmp_path / "p", "bags")
    before = path.read_bytes()
    outcome = run("bags", "linear", *arguments)
    assert "bags is there" in outcome.output
    assert "linear is there" not in outcome.output
    assert path.read_bytes() == before
    data = json.loads(before)
    path.write_text(json.dumps({**data, "seconds": 7.0}))
    assert "bags is there" not in run("bags", *arguments).output
    assert read_characterisation(path).seconds == 0.01


def test_the_seconds_alone_need_no_package_onnx(
    bags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    arguments = ("bags", "--repository", bags, "--output", tmp_path / "p")
    error = refusal(*arguments)
    assert isinstance(error, InvalidSettingError)
    assert "deeprecsys[profile], or give --latency-only" in str(error)
    outcome = run(*arguments, "--latency-only")
    assert outcome.exit_code == 0, outcome.output
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["bags.json"]


def test_what_cannot_be_measured_is_refused_before_anything_is(bags: Path, tmp_path: Path) -> None:
    in_bags = ("--repository", bags, "--output", tmp_path / "p")
    assert "has no model nope; it has bags, linear, two_task" in str(refusal("bags", "nope", *in_bags))
    assert "model repository" in str(refusal("--repository", tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    assert "has no model at all" in str(refusal("--repository", tmp_path / "empty"))
    (tmp_path / "file").write_text("")
    wrong = ("--repository", bags, "--output", tmp_path / "file")
    assert "cannot be a directory" in str(refusal("bags", *wrong))
    assert isinstance(refusal("bags", *wrong), InvalidSettingError)
    assert "--resume goes by" in str(refusal("bags", *in_bags, "--resume", "--latency-only"))
    assert "--seconds must be" in str(refusal("bags", *in_bags, "--seconds", "inf"))
    for seconds in ("0", "nan", "-1", "long"):
        assert run("bags", *in_bags, "--seconds", seconds).exit_code == 2
    (bags / "bags" / "1" / "model.onnx").unlink()
    error = refusal("linear", "bags", *in_bags)
    assert isinstance(error, RepositoryError)
    assert "bags: 1/model.onnx is missing" in str(error)
    assert not list((tmp_path / "p").iterdir())


def test_a_model_whose_ids_have_no_stated_range_is_measured_with_zeros_and_says_so(
    bags: Path, tmp_path: Path
) -> None:
    (bags / "bags" / "config.pbtxt").write_text("max_batch_size: 8")
    outcome = run("bags", "--repository", bags, "--output", tmp_path / "p")
    assert "bags was fed zeros as ids: the configuration has no id_rows.ids" in outcome.output
    found = read_characterisation(characterisation_path(tmp_path / "p", "bags"))
    assert found.inputs_of_zeros == ("ids",)
    assert found.bottleneck == found.operators[0].bottleneck  # no batch of 16 or 64 is allowed


def test_a_damaged_characterisation_is_named_with_its_entry(bags: Path, tmp_path: Path) -> None:
    run("bags", "--repository", bags, "--output", tmp_path / "p")
    path = characterisation_path(tmp_path / "p", "bags")
    data = json.loads(path.read_text())
    for changed, message in (
        ({**data, "schema": 2}, "has schema 2; this version reads 1"),
        ({**data, "bottleneck": {}}, r"bottleneck\.classes: Field required"),
        ({**data, "work": {**data["work"], "macs": "many"}}, r"work\.macs: "),
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(InvalidSettingError, match=message):
            read_characterisation(path)
    path.write_text("{")
    with pytest.raises(InvalidSettingError, match="Invalid JSON"):
        read_characterisation(path)
    with pytest.raises(InvalidSettingError, match="No such file"):
        read_characterisation(tmp_path / "none.json")


def test_a_wrong_model_ends_the_process_with_one_line_and_code_2(bags: Path, tmp_path: Path) -> None:
    done = cli("profile", "nope", "--repository", str(bags), "--output", str(tmp_path / "p"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
