"""The real LoadGen drives a live server that speaks RankService, and its verdict is taken as it is."""

import json
from collections import Counter

import grpc
import pytest

from deeprecsys.errors import InternalError, InvalidSettingError, ModelNotFoundError
from services.loadgen import mlperf
from services.loadgen.mlperf import read_detail_log, run_mlperf
from services.loadgen.settings import LoadSettings, ModelShare


def settings(stand_in, **changes) -> LoadSettings:
    facts = {
        "target": stand_in.target,
        "models": (ModelShare("tiny"),),
        "qps": 100.0,
        "duration_s": 1.0,
        "warmup_s": 0.2,
        "sizes": "fixed:3",
        "min_queries": 50,
        "sla_s": 2.0,
        "seed": 3,
    }
    return LoadSettings(**{**facts, **changes})


def test_loadgen_sends_queries_of_the_run_and_its_verdict_and_logs_are_kept(stand_in_elsewhere, tmp_path):
    stand_in_elsewhere.models["tiny"].max_candidates = 900
    looks = []
    result = run_mlperf(
        settings(stand_in_elsewhere, sizes="production"), tmp_path / "new" / "logs", looks.append
    )

    assert (result.verdict, result.cut_short, result.errors) == ("VALID", None, {})
    queries = result.loadgen["result_query_count"]
    assert 50 <= queries == result.codes["OK"]
    sent = [request.inputs[0].shape[0] for request in stand_in_elsewhere.requests]
    assert len(sent) > 1 + queries  # the check of the connection, and the warm-up
    assert len(set(sent)) > 20
    assert result.loadgen["result_95.00_percentile_latency_ns"] < 2e9
    assert "Result is : VALID" in (tmp_path / "new" / "logs" / "mlperf_log_summary.txt").read_text()
    assert looks
    plain = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert (plain["kind"], plain["verdict"], plain["settings"]["seed"]) == ("mlperf", "VALID", 3)


def test_a_server_that_is_too_slow_is_invalid(stand_in_elsewhere, tmp_path):
    result = run_mlperf(settings(stand_in_elsewhere, sla_s=1e-6), tmp_path)
    assert result.verdict == "INVALID"
    assert result.loadgen["result_perf_constraints_met"] is False


def test_failed_queries_are_counted_by_code_and_cannot_pass_for_quick_answers(stand_in_elsewhere, tmp_path):
    stand_in_elsewhere.behave = lambda nth, request: (
        grpc.StatusCode.RESOURCE_EXHAUSTED if nth and nth % 4 == 0 else None
    )
    result = run_mlperf(settings(stand_in_elsewhere, sla_s=0.5), tmp_path)
    refused = result.codes["RESOURCE_EXHAUSTED"]
    assert refused >= 10
    assert result.loadgen["result_overlatency_query_count"] >= refused
    assert result.verdict == "INVALID"


def test_a_vanished_server_ends_the_test_without_a_verdict_and_keeps_the_counts(stand_in_elsewhere, tmp_path):
    stand_in_elsewhere.behave = lambda nth, request: grpc.StatusCode.UNAVAILABLE if nth > 40 else None
    asked = settings(stand_in_elsewhere, duration_s=600.0, warmup_s=0.0, unavailable_limit=5)
    result = run_mlperf(asked, tmp_path)
    assert result.verdict is None
    assert result.cut_short == "the server is unavailable: 5 queries in a row failed"
    assert Counter(result.codes) == Counter({"OK": 40, "UNAVAILABLE": result.codes["UNAVAILABLE"]})


def test_what_loadgen_has_no_place_for_is_refused_before_the_run(stand_in_elsewhere, tmp_path, monkeypatch):
    for changes, message in (
        ({"models": (ModelShare("tiny"), ModelShare("other"))}, "takes one model"),
        ({"concurrency": 2, "count": 4}, "in open loop"),
        ({"drivers": 2}, "drives it alone"),
        ({"arrivals": "uniform"}, "arrivals are poisson, not uniform"),
        ({"duration_s": 1e-5}, "at least 1 ms"),
    ):
        with pytest.raises(InvalidSettingError, match=message):
            run_mlperf(settings(stand_in_elsewhere, **changes), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSettingError, match="cannot use"):
        run_mlperf(settings(stand_in_elsewhere), tmp_path / "file")
    with pytest.raises(ModelNotFoundError):
        run_mlperf(settings(stand_in_elsewhere, models=(ModelShare("absent"),)), tmp_path)
    monkeypatch.setattr(mlperf, "find_spec", lambda name: None)
    with pytest.raises(InvalidSettingError, match=r"pip install 'deeprecsys\[mlperf\]'"):
        run_mlperf(settings(stand_in_elsewhere), tmp_path)
    assert stand_in_elsewhere.requests == []


def test_a_log_without_a_verdict_is_an_error(tmp_path):
    with pytest.raises(InternalError, match="left no verdict"):
        read_detail_log(tmp_path / "absent.txt")
    cut = tmp_path / "cut.txt"
    cut.write_text(':::MLLOG {"key": "loadgen_version", "value": "6"}\nnoise\n')
    with pytest.raises(InternalError, match="left no verdict"):
        read_detail_log(cut)
