"""Admission: whether a Triton server has the CPU's model, by version, inputs and outputs; and loading it there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

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
WARM_UP = 32
"""Candidates of the warm-up query."""


class ModelRefusedError(EngineError):
    """The server has something else under the model's name: sending queries there would be wrong."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What an endpoint takes of a model: these outputs, and at most so many candidates in one inference."""

    outputs: frozenset[str]
    largest_batch: int


async def admit(endpoint: Endpoint, spec: ModelSpec) -> Terms:
    """Load the model where it is not loaded, compare it with ours, score a warm-up query, and return the terms.

    Raises ModelRefusedError, which names what differs, or as :meth:`Endpoint.infer`.
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
        await _warm_up(endpoint, spec, min(largest, WARM_UP))
    except ModelDeadError as dead:
        # The server says ready, and still the model's process is dead: only another one helps.
        try:
            await _unload(endpoint, spec)
            await _load(endpoint, spec)
        except EndpointAwayError as fault:
            raise EndpointAwayError(f"{dead}; loading it anew: {fault}") from fault
        await _warm_up(endpoint, spec, min(largest, WARM_UP))
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


async def _warm_up(endpoint: Endpoint, spec: ModelSpec, size: int) -> None:
    inputs = random_batch(spec, size, np.random.default_rng(0))
    arrays = [inputs[declared.name] for declared in spec.inputs]
    request = infer_request(spec, arrays, 0, size, [spec.score_output], WARM_UP_S)
    response = await endpoint.infer(request, WARM_UP_S)
    (scores,) = read_answer(response, spec, [spec.score_output], size)
    if not np.isfinite(scores).all():
        raise AttemptFailedError("scores of the warm-up query are not finite")
