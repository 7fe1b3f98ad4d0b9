import json

import grpc
import numpy as np
import pytest

from deeprecsys.errors import (
    InternalError,
    InvalidSettingError,
    ModelNotFoundError,
    UnavailableError,
)
from deeprecsys.tensors import to_array
from services.loadgen.run import find_max, run_load, sweep
from services.loadgen.session import open_session
from services.loadgen.settings import LoadSettings, ModelShare
from services.loadgen.trace_file import read_trace


def settings(stand_in, **changes) -> LoadSettings:
    facts = {
        "target": stand_in.target,
        "models": (ModelShare("tiny"),),
        "qps": 400.0,
        "duration_s": 0.25,
        "warmup_s": 0.05,
        "sizes": "fixed:3",
        "arrivals": "uniform",
        "min_queries": 1,
    }
    return LoadSettings(**{**facts, **changes})


async def drive(asked: LoadSettings):
    async with open_session(asked) as session:
        return await session.run()


async def test_a_run_sends_every_query_once_and_leaves_the_warm_up_out(stand_in):
    result = await drive(settings(stand_in))

    (tiny,) = result.models
    assert len(stand_in.requests) == 121  # the check before the run, then 400/s for 0.3 s
    assert tiny.measurement.count == 100
    assert tiny.codes == {"OK": 100}
    assert tiny.version == "2"
    assert np.isfinite(tiny.samples.latency_s).all()
    assert result.cut_short is None


async def test_two_runs_of_one_seed_send_the_same_queries_and_another_seed_does_not(stand_in):
    sent = []
    for seed in (1, 1, 2):
        stand_in.requests.clear()
        await drive(settings(stand_in, seed=seed, sizes="production", arrivals="poisson", duration_s=0.1))
        sent.append(sorted(r.SerializeToString() for r in stand_in.requests))
    assert sent[0] == sent[1] != sent[2]


async def test_failed_queries_are_counted_by_code_and_are_infinitely_late(stand_in):
    codes = {0: grpc.StatusCode.RESOURCE_EXHAUSTED, 1: grpc.StatusCode.INTERNAL}
    stand_in.behave = lambda nth, request: codes.get(nth % 10) if nth else None

    (tiny,) = (await drive(settings(stand_in, warmup_s=0.0))).models

    assert tiny.codes == {"OK": 80, "RESOURCE_EXHAUSTED": 10, "INTERNAL": 10}
    assert tiny.measurement.failed == 20
    assert tiny.measurement.p95_s == float("inf")
    assert tiny.shortfall == "20 of 100 queries failed"


async def test_models_share_the_rate_by_weight_and_have_results_of_their_own(stand_in):
    asked = settings(stand_in, models=(ModelShare("tiny", 3.0), ModelShare("other", 1.0)), warmup_s=0.0)
    result = await drive(asked)

    assert [(m.model, m.measurement.count) for m in result.models] == [("tiny", 75), ("other", 25)]
    assert [sum(r.model == name for r in stand_in.requests) for name in ("tiny", "other")] == [76, 26]


async def test_sizes_above_what_a_model_takes_are_cut_to_it(stand_in):
    stand_in.models["tiny"].max_candidates = 5
    result = await drive(settings(stand_in, sizes="fixed:9"))
    assert set(result.models[0].samples.size.tolist()) == {5}
    assert result.models[0].pool.max_size == 5


def trace_of(tmp_path, rows):
    path = tmp_path / "trace.csv"
    path.write_text("time,model,size,inputs\n" + "".join(f"{row}\n" for row in rows))
    return read_trace(path)


def replayed(stand_in, trace, **changes) -> LoadSettings:
    models = tuple(ModelShare(name) for name in trace.queries.models)
    return settings(stand_in, **{"models": models, "trace": trace, "warmup_s": 0.0, **changes})


async def test_a_trace_is_replayed_with_its_times_models_and_sizes(stand_in, tmp_path):
    rows = [f"{k},{'other' if k % 4 == 3 else 'tiny'},{2 + k}," for k in range(20)]
    trace = trace_of(tmp_path, rows)
    result = await drive(replayed(stand_in, trace, qps=100.0, duration_s=0.2))

    other, tiny = result.models
    assert tiny.samples.scheduled_s == pytest.approx([k / 100 for k in range(20) if k % 4 != 3])
    assert tiny.samples.size.tolist() == [2 + k for k in range(20) if k % 4 != 3]
    assert (other.model, other.measurement.count, other.qps) == ("other", 5, pytest.approx(25.0))
    assert result.as_dict()["settings"]["trace"]["models"] == {"other": 0.25, "tiny": 0.75}
    json.dumps(result.as_dict(), allow_nan=False)


async def test_recorded_inputs_are_sent_for_their_queries_and_others_are_drawn(stand_in, tmp_path):
    arrays = {"dense": np.full((1, 4), 0.5, np.float32), "ids": np.full((3, 2, 3), 6, np.int32)}
    np.savez(tmp_path / "x.npz", **arrays)
    trace = trace_of(tmp_path, ["0,tiny,3,x.npz", "1,tiny,2,", "2,tiny,3,x.npz"])
    await drive(replayed(stand_in, trace, qps=300.0, duration_s=0.01))

    sent = [{t.name: to_array(t) for t in r.inputs} for r in stand_in.requests[1:]]
    assert [len(inputs["ids"]) for inputs in sent] == [3, 2, 3]
    assert (sent[0]["ids"] == 6).all()
    assert sent[0]["ids"].tobytes() == sent[2]["ids"].tobytes()
    assert sent[1]["dense"].shape == (2, 4)


async def test_a_trace_whose_inputs_were_all_recorded_draws_none(stand_in, tmp_path):
    np.savez(tmp_path / "x.npz", dense=np.zeros((3, 4), np.float32), ids=np.zeros((3, 2, 3), np.int32))
    trace = trace_of(tmp_path, ["0,tiny,3,x.npz", "1,tiny,3,x.npz"])
    (tiny,) = (await drive(replayed(stand_in, trace, qps=100.0, duration_s=0.02))).models
    assert tiny.codes == {"OK": 2}
    assert tiny.pool.requests == 1
    assert tiny.pool.locality is None


def test_a_trace_leaves_no_room_for_weights_other_models_or_a_closed_loop(tmp_path):
    trace = trace_of(tmp_path, ["0,a,3,", "1,b,3,"])
    both = (ModelShare("a"), ModelShare("b"))
    for changes, message in (
        ({"models": both[:1]}, "the models of .* are a, b"),
        ({"models": (ModelShare("a", 2.0), both[1])}, "leave out the weight of a"),
        ({"models": both, "concurrency": 1, "count": 5}, "in open loop"),
    ):
        with pytest.raises(InvalidSettingError, match=message):
            LoadSettings("127.0.0.1:1", trace=trace, **changes)


async def test_a_closed_loop_keeps_its_number_of_queries_in_flight(stand_in):
    asked = settings(stand_in, concurrency=4, count=60, warmup_s=0.0)
    (tiny,) = (await drive(asked)).models

    assert tiny.codes == {"OK": 60}
    assert 1 <= stand_in.most_in_flight <= 4


async def test_a_vanished_server_is_unavailable_by_code_and_ends_the_run_at_the_limit(stand_in):
    stand_in.behave = lambda nth, request: grpc.StatusCode.UNAVAILABLE if nth > 20 else None
    result = await drive(settings(stand_in, warmup_s=0.0, duration_s=5.0, unavailable_limit=10))

    assert result.cut_short == "the server is unavailable: 10 queries in a row failed"
    assert result.models[0].codes == {"OK": 20, "UNAVAILABLE": 10}
    assert "cut short" in result.invalid


async def test_a_server_that_stops_midway_is_counted_as_unavailable(stand_in):
    async with open_session(settings(stand_in, warmup_s=0.0)) as session:
        await stand_in.server.stop(None)
        result = await session.run()
    assert result.models[0].codes == {"UNAVAILABLE": 100}


async def test_the_result_is_plain_json_with_seed_machine_and_null_for_infinity(stand_in):
    stand_in.behave = lambda nth, request: grpc.StatusCode.INTERNAL if nth else None
    result = await drive(settings(stand_in, seed=7))

    plain = json.loads(json.dumps(result.as_dict(), allow_nan=False))

    assert plain["settings"]["seed"] == 7
    assert plain["machine"]["versions"]["grpcio"]
    assert plain["models"][0]["measurement"]["p99_s"] is None
    assert plain["models"][0]["codes"] == {"INTERNAL": 100}
    assert "samples" not in plain["models"][0]
    assert plain["driver"]["cpu_share"] > 0


async def test_a_run_that_is_too_short_for_its_percentile_says_so(stand_in):
    result = await drive(settings(stand_in, min_queries=None))
    assert result.invalid == "too short: 100 queries measured, 200 needed for a p95"


async def test_what_cannot_be_driven_is_refused_before_the_run(stand_in):
    with pytest.raises(ModelNotFoundError, match="no model absent"):
        await drive(settings(stand_in, models=(ModelShare("absent"),)))
    with pytest.raises(UnavailableError):
        await drive(settings(stand_in, target="127.0.0.1:1"))
    stand_in.models["tiny"].sla.Clear()
    with pytest.raises(InvalidSettingError, match="gives no target"):
        await drive(settings(stand_in))
    stand_in.models["tiny"].ready = False
    stand_in.models["tiny"].unready_reason = "no weights"
    with pytest.raises(UnavailableError, match="no weights"):
        await drive(settings(stand_in))
    assert stand_in.requests == []


async def test_a_server_that_answers_something_else_is_found_before_the_run(stand_in):
    stand_in.missing_scores = 1
    with pytest.raises(InternalError, match="answered 3 candidates with 2 scores"):
        await drive(settings(stand_in))


@pytest.mark.parametrize(
    "changes",
    [
        {"qps": 0.0},
        {"qps": -1.0},
        {"qps": float("nan")},
        {"qps": float("inf")},
        {"qps": 1e9},
        {"duration_s": 0.0},
        {"warmup_s": -1.0},
        {"sizes": "zeta"},
        {"arrivals": "poison"},
        {"arrivals": "bursty:8,1.5,1"},
        {"arrivals": "step:0,1e9"},
        {"sizes": "empirical:/nowhere"},
        {"ids": "reuse:/nowhere"},
        {"ids": "zipf:0"},
        {"users": "both"},
        {"deadline_s": 0.0},
        {"sla_s": float("nan")},
        {"concurrency": 3},
        {"concurrency": 0, "count": 5},
        {"channels": 0},
        {"seed": -1},
        {"pool_bytes": 0},
        {"models": ()},
        {"models": (ModelShare("a", 0.0),)},
        {"models": (ModelShare("a", float("nan")),)},
        {"models": (ModelShare("a", float("inf")),)},
        {"models": (ModelShare("", 1.0),)},
        {"models": (ModelShare("a"), ModelShare("a"))},
        {"target": ""},
    ],
)
def test_impossible_settings_are_refused(changes):
    with pytest.raises(InvalidSettingError):
        LoadSettings(**{"target": "127.0.0.1:1", "models": (ModelShare("a"),), **changes})


def test_a_run_brings_its_own_event_loop(stand_in_elsewhere):
    seen = []
    result = run_load(settings(stand_in_elsewhere), seen.append)
    assert result.models[0].codes == {"OK": 100}
    assert seen


def test_a_search_ends_at_the_highest_rate_whose_queries_are_answered(stand_in_elsewhere):
    # Refuses everything once a run has sent more than 100 queries: the capacity is the rate that sends 100.
    seen: list[int] = []
    ends: list[int] = [1]

    def refuse_beyond_100(nth, request):
        return grpc.StatusCode.RESOURCE_EXHAUSTED if nth - ends[-1] >= 100 else None

    stand_in_elsewhere.behave = refuse_beyond_100
    found = find_max(
        settings(stand_in_elsewhere, warmup_s=0.0, qps=300.0),
        tolerance=0.2,
        on_probe=lambda probe: (
            seen.append(probe.measurement.failed),
            ends.append(len(stand_in_elsewhere.requests)),
        ),
    )
    assert found.best is not None
    assert found.best.models[0].measurement == found.capacity.measurement
    assert found.best.qps == found.capacity.qps
    assert 300 <= found.capacity.qps <= 400
    assert seen[:2] == [0, 50]
    assert "queries failed" in found.capacity.why
    assert found.as_dict()["capacity"]["qps"] == found.capacity.qps


def test_a_search_takes_one_model_in_open_loop():
    two = LoadSettings("127.0.0.1:1", (ModelShare("a"), ModelShare("b")))
    with pytest.raises(InvalidSettingError, match="takes one model"):
        find_max(two)


def test_a_sweep_drives_every_rate_in_turn(stand_in_elsewhere):
    seen = []
    found = sweep(
        settings(stand_in_elsewhere, sizes="production", warmup_s=0.0), (100.0, 200.0), on_point=seen.append
    )
    assert [(run.qps, run.models[0].measurement.count) for run in found.points] == [(100.0, 25), (200.0, 50)]
    assert list(found.points) == seen
    assert found.cut_short is None


def test_a_sweep_takes_rates_in_open_loop(stand_in):
    with pytest.raises(InvalidSettingError, match="at least one rate"):
        sweep(settings(stand_in), ())
    with pytest.raises(InvalidSettingError, match="in open loop"):
        sweep(settings(stand_in, concurrency=1, count=1), (10.0,))
