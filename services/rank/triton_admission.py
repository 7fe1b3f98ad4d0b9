"""Admission: whether a Triton server has the CPU's model, by version, inputs and outputs; and loading it there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from deeprecsys.tensors import Array
from services.rank.catalogue import ServedModel
from services.rank.engine import EngineError
from services.rank.model import ModelSpec
from services.rank.triton_endpoint import (
    AttemptFailedError,
    Endpoint,
    EndpointAwayError,
    ModelAbsentError,
    ModelDeadError,
)
from services.rank.triton_messages import differences, infer_request, read_answer
from services.rank.warmup import random_batch

ASK_S = 1.5
"""What a question may take: a server that hangs is asked again soon, and one that goes on is found within 5 s."""
WARM_UP_S = 5.0
"""What a warm-up inference may take once the server has answered questions. Triton takes seconds to notice that a
model's process is dead, and asking again meanwhile would only begin anew."""
LOAD_S = 120.0
ROUNDING = 1e-3
"""What scores may always differ by, as a share of the largest: a sample may have no spread."""

SAMPLE = 32
"""Candidates of the query that is scored for comparison; it warms the model up, too."""


class ModelRefusedError(EngineError):
    """The server has something else under the model's name: sending queries there would be wrong."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What an endpoint takes of a model: these outputs, and at most so many candidates in one inference."""

    outputs: frozenset[str]
    largest_batch: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A random query, its inputs in the model's order, and the CPU's scores of it, [n, ...]."""

    inputs: list[Array]
    scores: Array


def take_sample(model: ServedModel) -> Sample:
    """Score a sample of at most SAMPLE candidates on the CPU; blocks for one inference. Raises EngineError."""
    spec = model.spec
    inputs = random_batch(spec, min(spec.largest_batch, SAMPLE), np.random.default_rng(0))
    (scores,) = model.engine.run(inputs, [spec.score_output])
    if not np.isfinite(scores).all():
        raise EngineError("the CPU's own scores of a sample are not finite: there is nothing to compare with")
    return Sample([inputs[declared.name] for declared in spec.inputs], scores)


async def admit(endpoint: Endpoint, spec: ModelSpec, sample: Sample, tolerance: float) -> Terms:
    """Load the model where it is not loaded, compare it and its scores with ours, and return the terms.

    ``tolerance``: how far its scores of the sample may be from the CPU's, as a share of their spread. Raises
    ModelRefusedError, which names what differs, or as :meth:`Endpoint.infer`.
    """
    metadata = await _metadata(endpoint, spec)
    differing = differences(metadata, spec)
    if differing:
        raise ModelRefusedError("; ".join(differing))
    request = service_pb2.ModelConfigRequest(name=spec.name, version=spec.version)
    config = (await endpoint.call("ModelConfig", request, ASK_S)).config
    if spec.whole and 0 < config.max_batch_size < spec.largest_batch:
        raise ModelRefusedError(f"max_batch_size is {config.max_batch_size} there; here no query is split")
    largest = min(spec.largest_batch, config.max_batch_size or spec.largest_batch)
    try:
        await _compare(endpoint, spec, sample, largest, tolerance)
    except ModelDeadError as dead:
        # The server says ready, and still the model's process is dead: only another one helps.
        try:
            await _unload(endpoint, spec)
            await _load(endpoint, spec)
        except EndpointAwayError as fault:
            raise EndpointAwayError(f"{dead}; loading it anew: {fault}") from fault
        await _compare(endpoint, spec, sample, largest, tolerance)
    return Terms(frozenset(tensor.name for tensor in metadata.outputs), largest)


async def _metadata(endpoint: Endpoint, spec: ModelSpec) -> Any:
    request = service_pb2.ModelMetadataRequest(name=spec.name, version=spec.version)
    try:
        return await endpoint.call("ModelMetadata", request, ASK_S)
    except ModelAbsentError:
        refusal = await _refusal_to_load(endpoint, spec)
    try:
        return await endpoint.call("ModelMetadata", request, ASK_S)
    except ModelAbsentError:
        pass
    try:
        # It may have the model, but not this version: the answer names those that it has.
        return await endpoint.call("ModelMetadata", service_pb2.ModelMetadataRequest(name=spec.name), ASK_S)
    except ModelAbsentError as absent:
        raise refusal or absent from None


async def _refusal_to_load(endpoint: Endpoint, spec: ModelSpec) -> EngineError | None:
    """Load the model; return why it was not, which modes other than explicit always have a reason for."""
    try:
        await _load(endpoint, spec)
    except (EndpointAwayError, AttemptFailedError) as fault:
        return fault
    return None


async def _load(endpoint: Endpoint, spec: ModelSpec) -> None:
    """Load over the repository API, which mode explicit allows."""
    request = service_pb2.RepositoryModelLoadRequest(model_name=spec.name)
    await endpoint.call("RepositoryModelLoad", request, LOAD_S)


async def _unload(endpoint: Endpoint, spec: ModelSpec) -> None:
    request = service_pb2.RepositoryModelUnloadRequest(model_name=spec.name)
    await endpoint.call("RepositoryModelUnload", request, LOAD_S)


async def _compare(
    endpoint: Endpoint, spec: ModelSpec, sample: Sample, largest: int, tolerance: float
) -> None:
    """Have the sample scored there; ModelRefusedError where the scores are not the CPU's."""
    size = min(largest, len(sample.scores))
    request = infer_request(spec, sample.inputs, 0, size, [spec.score_output], WARM_UP_S)
    response = await endpoint.infer(request, WARM_UP_S)
    (scores,) = read_answer(response, spec, [spec.score_output], size)
    if not np.isfinite(scores).all():
        raise AttemptFailedError("scores of the sample are not finite")
    ours = sample.scores.astype(np.float64)
    allowed = tolerance * float(np.ptp(ours)) + ROUNDING * float(np.abs(ours).max())
    apart = float(np.abs(scores.astype(np.float64) - ours[:size]).max())
    if not apart <= allowed:
        raise ModelRefusedError(
            f"its scores of a sample are up to {apart:.3g} from those here, and {allowed:.3g} is allowed: "
            "it has other weights under the same name and version, or a coarser precision than --triton-tolerance"
        )
