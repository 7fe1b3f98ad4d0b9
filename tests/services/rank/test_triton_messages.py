"""The bytes that we write are what protobuf would write; answers and metadata that do not fit are said to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from scheduler.measure import Sla
from services.rank.engine import EngineError
from services.rank.model import InputSpec, ModelSpec, OutputSpec
from services.rank.triton_messages import differences, infer_request, read_answer, request_bytes

F32, I32 = np.dtype("<f4"), np.dtype("<i4")
SPEC = ModelSpec(
    "m",
    "3",
    Path(),
    (InputSpec("dense", F32, (2,), user_side=True), InputSpec("ids", I32, (-1,))),
    (OutputSpec("score", F32, (1,)), OutputSpec("logit", F32, (1,))),
    "score",
    (),
    Sla(95, 0.1),
    64,
    whole=False,
)
DENSE = np.array([[1, 2]], F32)
IDS = np.arange(15, dtype=I32).reshape(5, 3)


def test_a_request_holds_the_slice_and_repeats_the_users_side() -> None:
    request = service_pb2.ModelInferRequest.FromString(
        infer_request(SPEC, [DENSE, IDS], 1, 4, ["score", "logit"], 0.25)
    )
    assert (request.model_name, request.model_version) == ("m", "3")
    assert request.parameters["timeout"].int64_param == 250_000
    assert [(i.name, i.datatype, list(i.shape)) for i in request.inputs] == [
        ("dense", "FP32", [3, 2]),
        ("ids", "INT32", [3, 3]),
    ]
    dense, ids = request.raw_input_contents
    np.testing.assert_array_equal(np.frombuffer(dense, F32).reshape(3, 2), np.repeat(DENSE, 3, axis=0))
    np.testing.assert_array_equal(np.frombuffer(ids, I32).reshape(3, 3), IDS[1:4])
    assert [output.name for output in request.outputs] == ["score", "logit"]


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 2_000, 300_000])
def test_lengths_of_every_size_are_read_back(rows: int) -> None:
    ids = np.ones((rows, 2), I32)
    request = service_pb2.ModelInferRequest.FromString(
        infer_request(SPEC, [DENSE, ids], 0, rows, ["score"], 1e-9)
    )
    assert [len(raw) for raw in request.raw_input_contents] == [8 * rows, 8 * rows]
    assert request.parameters["timeout"].int64_param == 1  # 0 would be no limit at all
    assert request_bytes([DENSE, ids], rows) == 16 * rows


def answer(**tensors: np.ndarray) -> service_pb2.ModelInferResponse:
    response = service_pb2.ModelInferResponse()
    for name, array in tensors.items():
        response.outputs.add(name=name, datatype="FP32", shape=array.shape)
        response.raw_output_contents.append(array.astype(F32).tobytes())
    return response


def test_outputs_come_in_the_order_asked_for() -> None:
    scores, logits = np.array([[1], [2]], F32), np.array([[3], [4]], F32)
    found = read_answer(answer(logit=logits, score=scores), SPEC, ["score", "logit"], 2)
    np.testing.assert_array_equal(found, [scores, logits])


def test_an_answer_that_is_not_what_was_asked_for_is_a_fault() -> None:
    good = answer(score=np.ones((2, 1), F32))
    with pytest.raises(EngineError, match='lacks the output "logit"'):
        read_answer(good, SPEC, ["logit"], 2)
    with pytest.raises(EngineError, match=r"FP32 \[2, 1\] for 3 candidates"):
        read_answer(good, SPEC, ["score"], 3)
    good.raw_output_contents[0] = b""  # what NumPy 2 in the server's Python makes of it
    with pytest.raises(EngineError, match="0 bytes"):
        read_answer(good, SPEC, ["score"], 2)
    good.outputs[0].datatype = "INT32"
    with pytest.raises(EngineError, match="is INT32"):
        read_answer(good, SPEC, ["score"], 2)


def metadata(**changes: list[int]) -> service_pb2.ModelMetadataResponse:
    shapes = {"dense": [-1, 2], "ids": [-1, -1], "score": [-1, 1], **changes}
    found = service_pb2.ModelMetadataResponse(name="m", versions=["3"])
    found.inputs.add(name="dense", datatype="FP32", shape=shapes["dense"])
    found.inputs.add(name="ids", datatype="INT32", shape=shapes["ids"])
    found.outputs.add(name="score", datatype="FP32", shape=shapes["score"])
    return found


def test_the_same_model_has_no_differences_though_it_may_leave_outputs_out() -> None:
    assert differences(metadata(), SPEC) == []


def test_each_difference_is_named() -> None:
    assert differences(metadata(), replace(SPEC, version="4")) == ["version 4 is not among 3"]
    assert differences(metadata(), replace(SPEC, inputs=SPEC.inputs[:1])) == ['input "ids" is not known here']
    more = (*SPEC.inputs, InputSpec("extra", F32, (1,)))
    assert differences(metadata(), replace(SPEC, inputs=more)) == ['input "extra" is missing there']
    assert differences(metadata(dense=[-1, 7]), SPEC) == ['input "dense" is [-1, 7] there, [-1, 2] here']
    assert differences(metadata(dense=[2]), SPEC) == ['input "dense" is [2] there, [-1, 2] here']
    assert differences(metadata(ids=[-1, 4]), SPEC) == ['input "ids" is [-1, 4] there, [-1, -1] here']
    other = metadata()
    other.inputs[1].datatype = "INT64"
    other.outputs[0].name = "scores"
    assert differences(other, SPEC) == [
        'input "ids" is INT64 there, INT32 here',
        'output "score" is missing there',
    ]
