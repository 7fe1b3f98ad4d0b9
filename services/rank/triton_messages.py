"""Triton's messages: a query as the bytes of a ModelInferRequest, its answer as arrays, its metadata compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from deeprecsys.tensors import Array
from services.rank.engine import EngineError
from services.rank.model import InputSpec, ModelSpec, OutputSpec
from services.rank.shared_memory import aligned
from services.rank.triton_memory import Block

DATATYPES: Mapping[np.dtype[np.generic], str] = {
    np.dtype("?"): "BOOL",
    np.dtype("u1"): "UINT8",
    np.dtype("<u2"): "UINT16",
    np.dtype("<u4"): "UINT32",
    np.dtype("<u8"): "UINT64",
    np.dtype("i1"): "INT8",
    np.dtype("<i2"): "INT16",
    np.dtype("<i4"): "INT32",
    np.dtype("<i8"): "INT64",
    np.dtype("<f2"): "FP16",
    np.dtype("<f4"): "FP32",
    np.dtype("<f8"): "FP64",
}

_LENGTH_DELIMITED = 2
_RAW_FIELD = service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number
_RAW_TAG = bytes([_RAW_FIELD << 3 | _LENGTH_DELIMITED])


def request_bytes(inputs: Sequence[Array], size: int) -> int:
    """Return the bytes of a query's tensors, those of the user's side repeated for each of ``size`` candidates."""
    return sum(array.nbytes // len(array) * size for array in inputs)


def block_bytes(inputs: Sequence[Array], rows: int) -> int:
    """Return the bytes of shared memory that ``rows`` candidates of a query take, each tensor aligned."""
    return sum(aligned(array.nbytes // len(array) * rows) for array in inputs)


def infer_request(
    spec: ModelSpec,
    inputs: Sequence[Array],
    start: int,
    stop: int,
    outputs: Sequence[str],
    timeout_s: float,
    block: Block | None = None,
) -> bytes:
    """Return the message that asks Triton to score the candidates ``start`` to ``stop`` (exclusive) of a query.

    ``inputs``: in the model's order, first axis the query's size, or 1 for the user's side, which is repeated since
    Triton takes equal first axes only. ``timeout_s``: at most so long the request waits in Triton's queue. ``block``:
    at least :func:`block_bytes` of shared memory that the tensors are written to; None puts them into the message.

    The tensors are copied once, from where they lie into the message: protobuf's own classes would copy them three
    times, and a message may be joined from the encodings of its fields.
    """
    rows = stop - start
    header = service_pb2.ModelInferRequest(model_name=spec.name, model_version=spec.version)
    header.parameters["timeout"].int64_param = max(1, round(timeout_s * 1e6))
    for declared, array in zip(spec.inputs, inputs, strict=True):
        shape = (rows, *array.shape[1:])
        header.inputs.add(name=declared.name, datatype=DATATYPES[declared.dtype], shape=shape)
    for name in outputs:
        header.outputs.add(name=name)
    if block is not None:
        _write(header, inputs, start, stop, block)
        return bytes(header.SerializeToString())
    pieces: list[Any] = [header.SerializeToString()]
    for array in inputs:
        taken = array.tobytes() * rows if len(array) == 1 else array[start:stop]
        pieces += (_RAW_TAG, _varint(array.nbytes // len(array) * rows), taken)
    return b"".join(pieces)


def _write(header: Any, inputs: Sequence[Array], start: int, stop: int, block: Block) -> None:
    """Copy the slice into shared memory, and say in the header where each tensor lies."""
    offset, rows = 0, stop - start
    for tensor, array in zip(header.inputs, inputs, strict=True):
        nbytes = array.nbytes // len(array) * rows
        place = block.data[offset : offset + nbytes].view(array.dtype).reshape(rows, *array.shape[1:])
        np.copyto(place, array if len(array) == 1 else array[start:stop])
        tensor.parameters["shared_memory_region"].string_param = block.region
        tensor.parameters["shared_memory_byte_size"].int64_param = nbytes
        tensor.parameters["shared_memory_offset"].int64_param = block.offset + offset
        offset += aligned(nbytes)


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def read_answer(response: Any, spec: ModelSpec, outputs: Sequence[str], rows: int) -> list[Array]:
    """Return views of a ModelInferResponse's outputs, in the order asked for, each with the first axis ``rows``.

    EngineError where they are not what was asked for.
    """
    places = {tensor.name: place for place, tensor in enumerate(response.outputs)}
    contents = response.raw_output_contents
    declared = {output.name: output for output in spec.outputs}
    arrays = []
    for name in outputs:
        place = places.get(name)
        if place is None or place >= len(contents):
            raise EngineError(f'Triton\'s answer lacks the output "{name}"')
        arrays.append(_array(response.outputs[place], contents[place], declared[name], rows))
    return arrays


def _array(tensor: Any, data: bytes, declared: OutputSpec, rows: int) -> Array:
    shape = tuple(tensor.shape)
    fits = len(shape) == 1 + len(declared.shape) and all(
        want in (-1, got) for want, got in zip(declared.shape, shape[1:], strict=True)
    )
    if tensor.datatype != DATATYPES[declared.dtype] or shape[:1] != (rows,) or not fits:
        raise EngineError(
            f'Triton\'s output "{declared.name}" is {tensor.datatype} {list(shape)} for {rows} candidates'
        )
    try:
        return np.frombuffer(data, dtype=declared.dtype).reshape(shape)
    except ValueError as error:
        raise EngineError(
            f'Triton\'s output "{declared.name}" has {len(data)} bytes for {list(shape)}'
        ) from error


def differences(metadata: Any, spec: ModelSpec) -> list[str]:
    """Return what in a ModelMetadataResponse would keep this version from being scored there, in words; none is good.

    Outputs that Triton leaves out are no difference, except the score: queries that ask for them stay on the CPU.
    """
    found = []
    if spec.version not in metadata.versions:
        found.append(f"version {spec.version} is not among {', '.join(metadata.versions) or 'none'}")
    theirs = {tensor.name: tensor for tensor in metadata.inputs}
    ours = {declared.name: declared for declared in spec.inputs}
    found += [f'input "{name}" is not known here' for name in theirs if name not in ours]
    found += [f'input "{name}" is missing there' for name in ours if name not in theirs]
    found += _disagreeing("input", ours.values(), theirs)
    theirs = {tensor.name: tensor for tensor in metadata.outputs}
    if spec.score_output not in theirs:
        found.append(f'output "{spec.score_output}" is missing there')
    return found + _disagreeing("output", spec.outputs, theirs)


def _disagreeing(kind: str, ours: Iterable[InputSpec | OutputSpec], theirs: Mapping[str, Any]) -> list[str]:
    found = []
    for declared in ours:
        tensor = theirs.get(declared.name)
        if tensor is None:
            continue
        here, there = (-1, *declared.shape), tuple(tensor.shape)
        if tensor.datatype != DATATYPES[declared.dtype]:
            found.append(
                f'{kind} "{declared.name}" is {tensor.datatype} there, {DATATYPES[declared.dtype]} here'
            )
        elif len(here) != len(there) or any(t not in (-1, h) for h, t in zip(here, there, strict=True)):
            found.append(f'{kind} "{declared.name}" is {list(there)} there, {list(here)} here')
    return found
