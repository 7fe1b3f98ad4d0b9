import json

import grpc
import pytest
import typer
from pyarrow import parquet
from typer.testing import CliRunner

from deeprecsys.errors import InvalidSettingError, UnavailableError
from services.cli.app import main
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


def trace_file(tmp_path, rows=40, model=True) -> str:
    path = tmp_path / "trace.csv"
    head, name = ("time,size,model\n", ",tiny") if model else ("time,size\n", "")
    path.write_text(head + "".join(f"{k / 100},{2 + k % 3}{name}\n" for k in range(rows)))
    return str(path)


def test_a_trace_is_replayed_whole_at_its_own_rate_or_so_many_times_as_fast(stand_in_elsewhere, tmp_path):
    where = ("--target", stand_in_elsewhere.target, "--trace", trace_file(tmp_path), "--warmup", "0")
    for more, rate in (
        ((), "100/s, 1 times"),
        (("--speedup", "2"), "200/s, 2 times"),
        (("--qps", "50"), "50/s, 0.5 times"),
    ):
        stand_in_elsewhere.requests.clear()
        outcome = run(*where, *more)
        assert outcome.exit_code == 0, outcome.output
        assert f"trace.csv at {rate} as fast as recorded" in outcome.output.replace("\n", "")
        assert len(stand_in_elsewhere.requests) == 41
    assert "look-ups" in outcome.output


def test_a_replay_longer_than_its_trace_starts_again(stand_in_elsewhere, tmp_path):
    outcome = run(
        *("--target", stand_in_elsewhere.target, "--trace", trace_file(tmp_path, model=False)),
        *("--model", "tiny", "--warmup", "0", "--speedup", "4", "--duration", "0.2"),
    )
    assert outcome.exit_code == 0, outcome.output
    assert len(stand_in_elsewhere.requests) == 81


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sizes", "mlperf"), "--sizes names a law, but {} has its own sizes"),
        (("--arrivals", "poisson"), "--arrivals names a law, but {} has its own arrivals"),
        (("--qps", "5", "--speedup", "2"), "give a trace --qps or --speedup, not both"),
        (("--speedup", "0"), "speedup must be above 0, not 0.0"),
        (("--speedup", "nan"), "speedup must be above 0, not nan"),
        (("--qps", "0"), "qps must be above 0, not 0.0"),
        ((), "{} lasts 0.4 s at 100 queries/s, the warm-up alone 2 s"),
        (("--model", "other"), "{} has no queries of other; it has tiny"),
        (("--model", "tiny=2", "--warmup", "0"), "leave out the weight of tiny"),
        (("--mlperf", "logs", "--warmup", "0"), "it cannot replay {}"),
        (("--concurrency", "2", "--queries", "5", "--warmup", "0"), "a trace is replayed in open loop"),
    ],
)
def test_options_that_a_trace_leaves_no_room_for_are_one_clear_line(tmp_path, arguments, message):
    path = trace_file(tmp_path)
    outcome = run("--target", "127.0.0.1:1", "--trace", path, *arguments)
    assert isinstance(outcome.exception, InvalidSettingError)
    assert message.format(path) in str(outcome.exception)


def test_a_sweep_replays_a_trace_at_each_of_its_rates(stand_in_elsewhere, tmp_path):
    outcome = run(
        *("--target", stand_in_elsewhere.target, "--trace", trace_file(tmp_path), "--warmup", "0"),
        *("--sweep", "100,200", "--duration", "0.1"),
    )
    assert outcome.exit_code == 0, outcome.output
    assert "recorded arrivals" in outcome.output
    assert len(stand_in_elsewhere.requests) == 1 + 10 + 20


def test_a_speedup_without_a_trace_and_a_run_without_a_model_are_refused():
    for arguments, message in (
        (("--model", "a", "--speedup", "2"), "is that of a trace"),
        ((), "at least one model"),
    ):
        outcome = run(*arguments)
        assert isinstance(outcome.exception, InvalidSettingError)
        assert message in str(outcome.exception)


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
        (("--sizes", "fixed:-3"), "fixed needs a whole size of at least 1"),
        (("--arrivals", "bursty:0.5,0.1,1"), "the ratio of the two rates is at least 1"),
        (("--ids", "zipf:nan"), "must be written zipf:EXPONENT"),
        (("--model", "=2"), "a model needs a name"),
        (("--model", "b=nan"), "the weight of b must be above 0, not nan"),
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


@pytest.mark.parametrize(
    ("rows", "option", "message"),
    [
        ("time,size\n1,5\n0.5,5\n", "--trace={}", "{}, row 3, time: 0.5 goes back behind 1"),
        ("", "--trace={}", "{} is empty"),
        (
            "5\n-5\n",
            "--sizes=empirical:{}",
            "{}, row 2, size: -5 is no whole number of candidates of at least 1",
        ),
        (
            "distance,probability\n3,0.5\nnew,0.4\n",
            "--ids=reuse:{}",
            "{}, probability: the probabilities with that of new rows sum to 1, not to 0.9",
        ),
    ],
)
def test_a_bad_file_ends_the_command_with_one_line_and_code_2(
    monkeypatch, capsys, tmp_path, rows, option, message
):
    path = tmp_path / "file.csv"
    path.write_text(rows)
    monkeypatch.setattr("sys.argv", ["deeprecsys", "load", "--model", "a", option.format(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {message.format(path)}\n"
