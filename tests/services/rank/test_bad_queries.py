"""Every way in which a query can be wrong: a clear error that names the field, and nobody else is hurt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto

from deeprecsys import AsyncRankClient
from deeprecsys.client import build_request
from deeprecsys.errors import InvalidQueryError, MessageTooLargeError, ModelNotFoundError, OverloadedError
from deeprecsys.tensors import to_tensor
from deeprecsys.v1 import rank_pb2, rank_pb2_grpc
from services.logs import configure_logs
from tests.conftest import cast_sum_model, write_model

N = 5
Change = Callable[[rank_pb2.RankRequest], object]


def valid_request() -> rank_pb2.RankRequest:
    dense = np.linspace(0, 1, 3 * N, dtype=np.float32).reshape(N, 3)
    ids = np.arange(2 * N, dtype=np.int32).reshape(N, 2) % 8
    return build_request("linear", {"dense": dense, "ids": ids}, request_id="q1")


def set_tensor(index: int, array: np.ndarray) -> Change:
    def change(request: rank_pb2.RankRequest) -> None:
        request.inputs[index].CopyFrom(to_tensor(request.inputs[index].name, array))

    return change


def with_value(index: int, value: float) -> Change:
    def change(request: rank_pb2.RankRequest) -> None:
        tensor = request.inputs[index]
        dtype = np.float32 if index == 0 else np.int32
        array = np.frombuffer(tensor.data, dtype).copy()
        array[3] = value
        tensor.data = array.tobytes()

    return change


CASES: dict[str, tuple[Change, str, str]] = {
    "missing input": (lambda r: r.inputs.pop(), "inputs[ids]", "is missing"),
    "extra input": (
        lambda r: r.inputs.append(to_tensor("age", np.zeros((N, 1), np.float32))),
        "inputs[2].name",
        '"age" is none of the model\'s inputs: dense, ids',
    ),
    "input twice": (lambda r: r.inputs.append(r.inputs[0]), "inputs[2].name", '"dense" is given twice'),
    "wrong dtype": (
        set_tensor(0, np.zeros((N, 3), np.float64)),
        "inputs[dense].data_type",
        "must be FLOAT32, not FLOAT64",
    ),
    "dtype not set": (
        lambda r: r.inputs[0].ClearField("data_type"),
        "inputs[dense].data_type",
        "must be FLOAT32, not 0",
    ),
    "wrong shape": (
        set_tensor(0, np.zeros((N, 4), np.float32)),
        "inputs[dense].shape",
        "must be [N, 3], not [5, 4]",
    ),
    "wrong rank": (
        set_tensor(1, np.zeros(2 * N, np.int32)),
        "inputs[ids].shape",
        "must be [N, 2], not [10]",
    ),
    "negative shape": (
        lambda r: r.inputs[0].shape.__setitem__(0, -5),
        "inputs[dense].shape",
        "must be [N, 3], not [-5, 3]",
    ),
    "huge shape": (
        lambda r: r.inputs[0].shape.__setitem__(0, 1 << 62),
        "inputs[dense].shape",
        "must be [N, 3], not [4611686018427387904, 3]",
    ),
    "shape beyond the bytes": (
        lambda r: r.inputs[0].shape.__setitem__(0, 1 << 30),
        "inputs[dense].data",
        "has 60 bytes; the shape [1073741824, 3] takes 12884901888 bytes",
    ),
    "thousands of inputs": (
        lambda r: [r.inputs.add(name="x") for _ in range(5000)],
        "inputs",
        "has 5002 tensors; the model takes 2",
    ),
    "thousands of outputs": (
        lambda r: r.outputs.extend(["x"] * 5000),
        "outputs",
        "names 5000 outputs; the model has 2",
    ),
    "thousands of axes": (
        lambda r: r.inputs[0].shape.extend([1] * 5000),
        "inputs[dense].shape",
        "must be [N, 3], not [5, 3, 1]",
    ),
    "too few bytes": (
        lambda r: setattr(r.inputs[0], "data", r.inputs[0].data[:-1]),
        "inputs[dense].data",
        "has 59 bytes; the shape [5, 3] takes 60 bytes",
    ),
    "zero candidates": (
        set_tensor(0, np.zeros((0, 3), np.float32)),
        "inputs[dense].shape",
        "axis 0 must be at least 1: the query has no candidates",
    ),
    "too many candidates": (
        set_tensor(0, np.zeros((101, 3), np.float32)),
        "inputs[dense].shape",
        "axis 0 is 101; a query may have 100 candidates",
    ),
    "inputs of different N": (
        set_tensor(1, np.zeros((N - 1, 2), np.int32)),
        "inputs[ids].shape",
        "axis 0 is 4, but the query has 5 candidates; it must be 5, or 1 to hold for all",
    ),
    "NaN": (with_value(0, np.nan), "inputs[dense].data", "must be finite: it holds NaN or infinity"),
    "infinity": (with_value(0, -np.inf), "inputs[dense].data", "must be finite: it holds NaN or infinity"),
    "negative id": (with_value(1, -1), "inputs[ids].data", "holds an id outside 0 to 7 in column 1"),
    "id past its own column": (
        with_value(1, 8),
        "inputs[ids].data",
        "holds an id outside 0 to 7 in column 1",
    ),
    "top_k negative": (lambda r: setattr(r, "top_k", -1), "top_k", "must be 0 for all, or more; it is -1"),
    "unknown task": (
        lambda r: setattr(r, "task", "buy"),
        "task",
        '"buy" is unknown: the model has a single, unnamed task',
    ),
    "unknown output": (
        lambda r: r.outputs.append("embedding"),
        "outputs[0]",
        '"embedding" is none of the model\'s outputs: score, logit',
    ),
    "candidate ids of another N": (
        lambda r: setattr(r, "candidate_ids", b"\0" * 32),
        "candidate_ids",
        "has 32 bytes; 5 candidates take 40 bytes of INT64",
    ),
    "request id too long": (
        lambda r: setattr(r, "request_id", "x" * 129),
        "request_id",
        "must have at most 128 bytes",
    ),
    "unknown priority": (lambda r: setattr(r, "priority", 77), "priority", "77 is not a Priority"),
}


async def test_each_fault_is_answered_with_its_field_and_its_rule(repository, running) -> None:
    async with (
        running(repository, max_candidates=100) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = rank_pb2_grpc.RankServiceStub(channel)
        for name, (change, field, rule) in CASES.items():
            request = valid_request()
            change(request)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Rank(request)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
            violations = violations_of(refused.value)
            assert (field, rule) in violations, (name, violations)
        assert len((await stub.Rank(valid_request())).ranking.data) == 8 * N


def violations_of(error: grpc.aio.AioRpcError) -> list[tuple[str, str]]:
    metadata = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad_request)
    assert (info.reason, info.domain) == ("INVALID_QUERY", "deeprecsys")
    return [(v.field, v.description) for v in bad_request.field_violations]


async def test_all_faults_of_one_query_are_named_together(repository, running) -> None:
    async with running(repository) as address, AsyncRankClient(address) as client:
        with pytest.raises(InvalidQueryError) as refused:
            await client.rank("linear", {"dense": np.full((2, 3), np.nan, np.float32)}, top_k=-2, task="x")
        fields = [violation.field for violation in refused.value.violations]
        assert fields == ["inputs[ids]", "inputs[dense].data", "task", "top_k"]


async def test_an_unknown_model_or_version_is_answered_with_the_known_ones(repository, running) -> None:
    async with running(repository) as address, AsyncRankClient(address) as client:
        with pytest.raises(
            ModelNotFoundError, match='"nope" is not served here; known models: linear, two_task'
        ):
            await client.rank("nope", {})
        with pytest.raises(ModelNotFoundError, match='no version "7"; known versions: 1'):
            await client.rank("linear", {}, version="7")
        with pytest.raises(ModelNotFoundError):
            await client.model("nope")


async def test_a_finite_query_whose_sum_overflows_is_served(repository, running) -> None:
    async with running(repository) as address, AsyncRankClient(address) as client:
        dense = np.full((2, 3), 3e38, np.float32)
        answer = await client.rank("linear", {"dense": dense, "ids": np.zeros((2, 2), np.int32)})
        assert answer.scores.tolist() == [1.0, 1.0]


async def test_a_message_of_exactly_the_limit_passes_and_one_byte_more_is_refused(
    repository, running
) -> None:
    limit = 4096
    request = valid_request()
    padded = rank_pb2.RankRequest()
    padded.CopyFrom(request)
    padded.request_id = ""
    # An unknown field of the right length: what a newer client might send.
    filler = limit - padded.ByteSize() - 4
    exact = padded.SerializeToString() + bytes([0xFA, 0x7F]) + varint(filler) + b"\0" * filler
    assert len(exact) == limit
    async with running(repository, max_message_bytes=limit) as address:
        async with grpc.aio.insecure_channel(address) as channel:
            send = channel.unary_unary(
                "/deeprecsys.v1.RankService/Rank",
                request_serializer=lambda raw: raw,
                response_deserializer=rank_pb2.RankResponse.FromString,
            )
            assert (await send(exact)).model == "linear"
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await send(exact + b"\x50\x00")
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        async with AsyncRankClient(address) as client:
            with pytest.raises(MessageTooLargeError):
                await client.rank("linear", {"dense": np.zeros((500, 3), np.float32)})
            with pytest.raises(InvalidQueryError):
                await client.rank("linear", {"dense": "no numbers"})


def varint(number: int) -> bytes:
    assert 128 <= number < 16384
    return bytes([number & 0x7F | 0x80, number >> 7])


async def test_wrong_queries_do_not_alter_the_answers_of_their_neighbours(repository, running) -> None:
    changes = [change for change, _, _ in CASES.values()]
    async with (
        running(repository, max_candidates=100) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = rank_pb2_grpc.RankServiceStub(channel)
        alone = await stub.Rank(valid_request())

        async def wrong(change: Change) -> grpc.StatusCode:
            request = valid_request()
            change(request)
            try:
                await stub.Rank(request)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        calls = [wrong(change) for change in changes for _ in range(5)]
        right = [stub.Rank(valid_request()) for _ in range(50)]
        codes, answers = await asyncio.gather(asyncio.gather(*calls), asyncio.gather(*right))
        assert set(codes) == {grpc.StatusCode.INVALID_ARGUMENT}
        assert all(answer.scores == alone.scores and answer.ranking == alone.ranking for answer in answers)


async def test_garbage_on_the_wire_is_refused_and_the_next_query_is_served(repository, running) -> None:
    async with running(repository) as address, grpc.aio.insecure_channel(address) as channel:
        send = channel.unary_unary("/deeprecsys.v1.RankService/Rank")
        with pytest.raises(grpc.aio.AioRpcError):
            await send(b"\xff" * 100)
        assert await send(valid_request().SerializeToString())


async def test_an_internal_fault_shows_no_internals_and_its_trace_is_logged(
    repository, running, monkeypatch, caplog
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("services.rank.servicer.decode", broken)
    async with running(repository) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await rank_pb2_grpc.RankServiceStub(channel).Rank(valid_request())
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    shown = f"{failed.value.details()} {json.dumps(str(failed.value.trailing_metadata()))}"
    assert "secret" not in shown
    assert "ZeroDivisionError: secret" in caplog.text


async def test_a_fault_logs_nothing_of_what_the_caller_sent(repository, running, monkeypatch, capfd) -> None:
    def broken(request: object, *_: object) -> None:
        raise ZeroDivisionError

    configure_logs("console")
    monkeypatch.setattr("services.rank.servicer.decode", broken)
    request = valid_request()
    request.inputs[0].name = "private-feature"
    async with running(repository) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await rank_pb2_grpc.RankServiceStub(channel).Rank(request)
    log = capfd.readouterr().err
    assert "ZeroDivisionError" in log
    assert "request_id=q1" in log
    assert "private-feature" not in log


async def test_the_request_id_comes_back(repository, running) -> None:
    async with running(repository) as address, grpc.aio.insecure_channel(address) as channel:
        assert (await rank_pb2_grpc.RankServiceStub(channel).Rank(valid_request())).request_id == "q1"


async def test_an_id_check_holds_for_the_smallest_types(tmp_path, running) -> None:
    write_model(
        tmp_path,
        "bytes",
        cast_sum_model(TensorProto.UINT8),
        'max_batch_size: 8 parameters { key: "id_rows.ids" value { string_value: "256,10" } }',
    )
    async with running(tmp_path) as address, AsyncRankClient(address) as client:
        right = np.array([[255, 9]], np.uint8)
        assert (await client.rank("bytes", {"ids": right})).scores.tolist() == [264.0]
        with pytest.raises(InvalidQueryError, match="outside 0 to 9 in column 1"):
            await client.rank("bytes", {"ids": np.array([[0, 10]], np.uint8)})


async def test_more_queries_than_the_server_takes_at_once_are_refused_and_health_still_answers(
    repository, running
) -> None:
    big = {"dense": np.zeros((4000, 3), np.float32), "ids": np.zeros((4000, 2), np.int32)}
    async with (
        running(repository, max_queries=1, batch_size=1) as address,
        AsyncRankClient(address) as client,
    ):
        outcomes = await asyncio.gather(
            *(client.rank("linear", big) for _ in range(8)), return_exceptions=True
        )
        refused = [o for o in outcomes if isinstance(o, OverloadedError)]
        assert len(refused) >= 1
        assert all(r.retry_after_s and "queries are being answered already" in str(r) for r in refused)
        assert sum(not isinstance(o, BaseException) for o in outcomes) == 8 - len(refused) >= 1
        async with grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            assert (await client.rank("two_task", {"dense": np.ones((1, 2), np.float32)})).model == "two_task"
            watch.cancel()
