"""A RankRequest as the peers want it, and how many scores their answers have. All happens before or after a run."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from functools import partial

from tritonclient.grpc import service_pb2

from deeprecsys.tensors import DTYPES
from deeprecsys.v1 import rank_pb2
from services.rank.triton_messages import DATATYPES

INFER_METHOD = "/inference.GRPCInferenceService/ModelInfer"


def infer_encoding(score_output: str) -> Callable[[bytes], bytes]:
    """Return what turns a RankRequest into a ModelInferRequest of the Open Inference Protocol, tensors as raw bytes."""
    return partial(_infer_request, score_output=score_output)


def _infer_request(request: bytes, score_output: str) -> bytes:
    query = rank_pb2.RankRequest.FromString(request)
    infer = service_pb2.ModelInferRequest(model_name=query.model)
    for tensor in query.inputs:
        datatype = DATATYPES[DTYPES[tensor.data_type]]
        infer.inputs.add(name=tensor.name, datatype=datatype, shape=tensor.shape)
        infer.raw_input_contents.append(tensor.data)
    infer.outputs.add(name=score_output)
    return bytes(infer.SerializeToString())


def infer_scores(answer: bytes) -> int:
    """Return how many scores a ModelInferResponse has."""
    response = service_pb2.ModelInferResponse.FromString(answer)
    if not response.outputs:
        return 0
    output = response.outputs[0]
    filled = len(response.raw_output_contents[0]) // 4 if response.raw_output_contents else 0
    return int(output.shape[0]) if filled == math.prod(output.shape) else 0


def blobs_encoding(score_output: str) -> Callable[[bytes], bytes]:
    """Return what turns a RankRequest into a ModelInferRequest whose tensors are BYTES, one blob a tensor.

    The first axis stays the candidates, by which MLServer's batching gives each request its part of the scores.
    """
    return partial(_blobs, score_output=score_output)


def _blobs(request: bytes, score_output: str) -> bytes:
    query = rank_pb2.RankRequest.FromString(request)
    infer = service_pb2.ModelInferRequest(model_name=query.model)
    for tensor in query.inputs:
        infer.inputs.add(name=tensor.name, datatype="BYTES", shape=tensor.shape[:1])
        infer.raw_input_contents.append(struct.pack("<I", len(tensor.data)) + tensor.data)
    infer.outputs.add(name=score_output)
    return bytes(infer.SerializeToString())


def body(request: bytes) -> bytes:
    """Return the tensors of a RankRequest one after the other, as they come."""
    return b"".join(tensor.data for tensor in rank_pb2.RankRequest.FromString(request).inputs)


def float_scores(answer: bytes, tasks: int) -> int:
    """Return for how many candidates an answer of float32 scores is, of so many tasks each."""
    return len(answer) // (4 * tasks)
