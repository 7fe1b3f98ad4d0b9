"""Queries as the peers want them."""

from __future__ import annotations

import numpy as np
from tritonclient.grpc import service_pb2

from benchmarks.peers import encodings
from deeprecsys.client import build_request

DENSE = np.arange(12, dtype=np.float32).reshape(4, 3)
IDS = np.arange(8, dtype=np.int32).reshape(4, 2)
REQUEST = build_request("linear", {"dense": DENSE, "ids": IDS}).SerializeToString()


def test_a_query_becomes_the_open_protocols_with_its_bytes_as_they_are() -> None:
    infer = service_pb2.ModelInferRequest.FromString(encodings.infer_encoding("score")(REQUEST))
    assert infer.model_name == "linear"
    assert [(i.name, i.datatype, list(i.shape)) for i in infer.inputs] == [
        ("dense", "FP32", [4, 3]),
        ("ids", "INT32", [4, 2]),
    ]
    assert list(infer.raw_input_contents) == [DENSE.tobytes(), IDS.tobytes()]
    assert [output.name for output in infer.outputs] == ["score"]


def test_a_query_becomes_blobs_that_are_as_long_as_they_say() -> None:
    infer = service_pb2.ModelInferRequest.FromString(encodings.blobs_encoding("score")(REQUEST))
    assert [(i.name, i.datatype, list(i.shape)) for i in infer.inputs] == [
        ("dense", "BYTES", [4]),
        ("ids", "BYTES", [4]),
    ]
    for raw, array in zip(infer.raw_input_contents, (DENSE, IDS), strict=True):
        assert int.from_bytes(raw[:4], "little") == array.nbytes
        assert raw[4:] == array.tobytes()


def test_a_query_becomes_its_tensors_one_after_the_other() -> None:
    assert encodings.body(REQUEST) == DENSE.tobytes() + IDS.tobytes()


def infer_answer(shape: list[int], raw: bytes | None) -> bytes:
    answer = service_pb2.ModelInferResponse()
    answer.outputs.add(name="score", datatype="FP32", shape=shape)
    if raw is not None:
        answer.raw_output_contents.append(raw)
    return answer.SerializeToString()


def test_the_scores_of_an_answer_count_if_they_are_there() -> None:
    assert encodings.infer_scores(infer_answer([4, 1], bytes(16))) == 4
    assert encodings.infer_scores(infer_answer([4, 5], bytes(80))) == 4
    assert encodings.infer_scores(infer_answer([4, 1], bytes(12))) == 0
    assert encodings.infer_scores(infer_answer([4, 1], None)) == 0
    assert encodings.infer_scores(b"") == 0
    assert encodings.float_scores(bytes(80), tasks=5) == 4
