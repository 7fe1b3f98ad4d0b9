import json

import grpc
import pytest
import typer
from pyarrow import parquet
from typer.testing import CliRunner

from deeprecsys.errors import InvalidSettingError, UnavailableError
from services.cli.load import load

APP = typer.Typer()
APP.command()(load)


def run(*arguments: str):
    return CliRunner(env={"COLUMNS": "160"}).invoke(APP, arguments)


def test_load_prints_the_table_and_writes_the_json(stand_in_elsewhere, tmp_path):
    path = tmp_path / "result.json"
    outcome = run(
        *("--target", stand_in_elsewhere.target, "--model", "tiny=2", "--model", "other", "--qps", "300"),
        *("--duration", "0.2", "--warmup", "0", "--sizes", "fixed:4", "--arrivals", "uniform"),
        *("--seed", "3", "--users", "shared", "--deadline-ms", "5000", "--json", str(path)),
    )
    assert outcome.exit_code == 0, outcome.output
    for text in (
        "tiny",
        "other",
        "p95 5000",
        "candidates/s",
        "SLA met",
        "driver:",
        "seed 3",
        "too short",
    ):
        assert text in outcome.output
    result = json.loads(path.read_text())
    assert [m["measurement"]["count"] for m in result["models"]] == [40, 20]
    assert result["settings"]["users"] == "shared"
    assert {r.inputs[0].shape[0] for r in stand_in_elsewhere.requests} == {1}


def test_a_closed_loop_has_no_warm_up(stand_in_elsewhere):
    outcome = run(
        *("--target", stand_in_elsewhere.target, "--model", "tiny", "--concurrency", "4", "--queries", "250"),
        *("--sizes", "fixed:4"),
    )
    assert outcome.exit_code == 0, outcome.output
    assert "4 in flight" in outcome.output
    assert len(stand_in_elsewhere.requests) == 251


def test_find_max_prints_its_probes(stand_in_elsewhere):
    outcome = run(
        *("--target", stand_in_elsewhere.target, "--model", "tiny", "--find-max", "--qps", "100"),
        *("--duration", "0.1", "--warmup", "0", "--sizes", "fixed:4"),
    )
    assert outcome.exit_code == 0, outcome.output
    assert "no rate meets the target" in outcome.output
    assert "too short" in outcome.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--qps", "0"), "qps must be above 0, not 0.0"),
        (("--qps", "nan"), "qps must be above 0, not nan"),
        (("--sizes", "zeta"), "unknown size law 'zeta'; known: production"),
        (("--model", "b=heavy"), "must be written NAME or NAME=WEIGHT"),
        (("--model", "b=-1"), "the weight of b must be above 0, not -1.0"),
        (("--pool-mib", "nan"), "pool size must be above 0 MiB"),
        (("--users", "all"), "users must be one of per_candidate, shared"),
        (("--queries", "5"), "closed loop needs both"),
        (("--drivers", "0"), "number of drivers must be above 0, not 0"),
        (("--sweep", "20,10"), "must be written 50,100,200 or LO:HI:N"),
        (("--sweep", "10,20", "--find-max"), "--find-max, --sweep and --mlperf exclude each other"),
        (("--mlperf", "logs", "--find-max"), "--find-max, --sweep and --mlperf exclude each other"),
        (("--mlperf", "logs", "--latencies", "x.parquet"), "--latencies cannot be had of LoadGen"),
        (("--latencies", "nowhere/x.parquet"), "cannot write nowhere/x.parquet"),
    ],
)
def test_an_impossible_setting_is_one_clear_line(arguments, message):
    outcome = run("--model", "a", *arguments)
    assert isinstance(outcome.exception, InvalidSettingError)
    assert message in str(outcome.exception)


def test_a_server_that_is_not_there_is_an_error_of_the_project():
    assert isinstance(run("--target", "127.0.0.1:1", "--model", "a").exception, UnavailableError)


def test_a_sweep_prints_a_row_for_each_rate_and_model_and_writes_its_points(stand_in_elsewhere, tmp_path):
    path, latencies = tmp_path / "sweep.json", tmp_path / "all.parquet"
    stand_in_elsewhere.behave = lambda nth, request: grpc.StatusCode.INTERNAL if nth == 5 else None
    outcome = run(
        *(
            "--target",
            stand_in_elsewhere.target,
            "--model",
            "tiny",
            "--model",
            "other",
            "--sweep",
            "200:400:2",
        ),
        *("--duration", "0.2", "--warmup", "0", "--sizes", "fixed:4", "--arrivals", "uniform"),
        *("--json", str(path), "--latencies", str(latencies)),
    )
    assert outcome.exit_code == 0, outcome.output
    assert [outcome.output.count(name) for name in ("tiny", "other", "INTERNAL 1")] == [2, 2, 1]
    result = json.loads(path.read_text())
    assert result["kind"] == "sweep"
    assert [point["qps"] for point in result["points"]] == [200.0, 400.0]
    for point in result["points"]:
        assert {"qps", "models", "driver", "cut_short", "invalid"} == set(point)
        for model in point["models"]:
            assert {"p50_s", "p95_s", "p99_s", "completed_qps", "invalid"} <= set(model["measurement"])
            assert model["measurement"]["count"] == point["qps"] * 0.1
    assert parquet.read_table(latencies).num_rows == 40 + 80


def test_loadgens_verdict_is_printed_and_written(stand_in_elsewhere, tmp_path):
    path = tmp_path / "mlperf.json"
    outcome = run(
        *("--target", stand_in_elsewhere.target, "--model", "tiny", "--qps", "300", "--duration", "1"),
        *("--warmup", "0", "--sizes", "fixed:4", "--mlperf", str(tmp_path / "logs"), "--json", str(path)),
    )
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(path.read_text())
    assert result["verdict"] == result["loadgen"]["result_validity"] in {"VALID", "INVALID"}
    assert result["verdict"] in outcome.output
    assert (tmp_path / "logs" / "mlperf_log_summary.txt").exists()


def test_the_search_writes_the_latencies_of_the_rate_that_it_found(stand_in_elsewhere, tmp_path):
    latencies = tmp_path / "all.parquet"
    outcome = run(
        *("--target", stand_in_elsewhere.target, "--model", "tiny", "--find-max", "--qps", "100"),
        *("--duration", "0.1", "--warmup", "0", "--sizes", "fixed:4", "--latencies", str(latencies)),
    )
    assert outcome.exit_code == 0, outcome.output
    assert "no rate meets the target" in outcome.output  # every run was too short
    assert parquet.read_table(latencies).num_rows == 0
