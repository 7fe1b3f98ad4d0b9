"""From a RankRequest to arrays: views of the message's bytes, checked. No message object goes further than this."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.errors import FieldViolation, InvalidQueryError
from deeprecsys.tensors import DATA_TYPES, Array, data_type_name
from deeprecsys.v1 import rank_pb2
from services.rank.model import InputSpec, ModelSpec

MAX_REQUEST_ID_BYTES = 128
MAX_VIOLATIONS = 16
MAX_EXTRA = 16
"""So many names too many are looked at one by one; more are refused by their number."""
MAX_AXIS = (1 << 31) - 1

_UNSIGNED: dict[int, np.dtype[np.unsignedinteger[Any]]] = {
    size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)
}
_PRIORITIES = frozenset(rank_pb2.Priority.values())


@dataclass(frozen=True, slots=True)
class DecodedQuery:
    """One valid query of ``size`` candidates.

    ``inputs``: in the order of the model's specification, first axis ``size`` or 1. ``task``: the column of the
    score output that ranks. ``candidate_ids``: int64 [size] or None. ``outputs``: names beside the scores, each once.
    """

    size: int
    inputs: tuple[Array, ...]
    top_k: int
    task: int
    candidate_ids: NDArray[np.int64] | None
    outputs: tuple[str, ...]
    request_id: str = ""


class _Violations(list[FieldViolation]):
    """What is wrong with one query, in the order of the fields; no more than an error's metadata can hold."""

    def note(self, field: str, rule: str) -> None:
        if len(self) < MAX_VIOLATIONS:
            self.append(FieldViolation(field, rule))


def decode(request: rank_pb2.RankRequest, spec: ModelSpec, max_candidates: int) -> DecodedQuery:
    """Return the checked arrays of a query; InvalidQueryError names every field that breaks a rule.

    Checked: names, types, shapes, byte lengths, the number of candidates, finite values, id ranges, top_k, the task,
    the outputs and the candidate ids.
    """
    violations = _Violations()
    arrays = _inputs(request.inputs, spec, violations)
    size = _size(arrays, spec.inputs, max_candidates, violations)
    for array, declared in zip(arrays, spec.inputs, strict=True):
        if array is not None and array.size:
            _check_values(array, declared, violations)
    task = _task(request.task, spec, violations)
    candidate_ids = _candidate_ids(request.candidate_ids, size, violations)
    if request.top_k < 0:
        violations.note("top_k", f"must be 0 for all, or more; it is {request.top_k}")
    if len(request.request_id.encode()) > MAX_REQUEST_ID_BYTES:
        violations.note("request_id", f"must have at most {MAX_REQUEST_ID_BYTES} bytes")
    if request.priority not in _PRIORITIES:
        violations.note("priority", f"{request.priority} is not a Priority")
    outputs = _outputs(request.outputs, spec, violations)
    if violations:
        raise InvalidQueryError(violations)
    inputs = tuple(array for array in arrays if array is not None)
    return DecodedQuery(size, inputs, request.top_k, task, candidate_ids, outputs, request.request_id)


def _inputs(
    tensors: Sequence[rank_pb2.Tensor], spec: ModelSpec, violations: _Violations
) -> list[Array | None]:
    """Return a view for each input of the model; None where it is missing or malformed."""
    sent: dict[str, rank_pb2.Tensor] = {}
    names = {declared.name for declared in spec.inputs}
    if len(tensors) > MAX_EXTRA + len(names):
        violations.note("inputs", f"has {len(tensors)} tensors; the model takes {len(names)}")
        tensors = tensors[: MAX_EXTRA + len(names)]
    for index, tensor in enumerate(tensors):
        if tensor.name not in names:
            known = ", ".join(declared.name for declared in spec.inputs)
            violations.note(
                f"inputs[{index}].name", f'"{tensor.name[:100]}" is none of the model\'s inputs: {known}'
            )
        elif tensor.name in sent:
            violations.note(f"inputs[{index}].name", f'"{tensor.name}" is given twice')
        else:
            sent[tensor.name] = tensor
    return [_view(sent.get(declared.name), declared, violations) for declared in spec.inputs]


def _view(tensor: rank_pb2.Tensor | None, declared: InputSpec, violations: _Violations) -> Array | None:
    field = f"inputs[{declared.name}]"
    if tensor is None:
        violations.note(field, "is missing")
        return None
    wanted = DATA_TYPES[declared.dtype]
    if tensor.data_type != wanted:
        violations.note(
            f"{field}.data_type", f"must be {data_type_name(wanted)}, not {data_type_name(tensor.data_type)}"
        )
        return None
    shape = tuple(tensor.shape[: len(declared.shape) + 2])
    if not _fits(shape, declared.shape):
        wanted_shape = ", ".join(["N", *("any" if axis == -1 else str(axis) for axis in declared.shape)])
        violations.note(f"{field}.shape", f"must be [{wanted_shape}], not {list(shape[:8])}")
        return None
    expected = math.prod(shape) * declared.dtype.itemsize
    data = tensor.data  # once: every access makes a copy
    if len(data) != expected:
        violations.note(
            f"{field}.data", f"has {len(data)} bytes; the shape {list(shape)} takes {expected} bytes"
        )
        return None
    return np.frombuffer(data, dtype=declared.dtype).reshape(shape)


def _fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    """Tell whether a shape is the declared one behind any number of candidates."""
    if not shape or not 0 <= shape[0] <= MAX_AXIS:
        return False
    rest = shape[1:]
    return rest == declared or (
        len(rest) == len(declared)
        and all(
            got == want or (want == -1 and 0 <= got <= MAX_AXIS)
            for got, want in zip(rest, declared, strict=True)
        )
    )


def _size(
    arrays: Sequence[Array | None], inputs: Sequence[InputSpec], max_candidates: int, violations: _Violations
) -> int:
    """Return N: what the first axes agree on; an axis of 1 agrees with every N."""
    sizes = {declared.name: len(a) for declared, a in zip(inputs, arrays, strict=True) if a is not None}
    size = max(sizes.values(), default=1)
    for name, rows in sizes.items():
        if rows == 0:
            violations.note(f"inputs[{name}].shape", "axis 0 must be at least 1: the query has no candidates")
        elif rows not in (1, size):
            violations.note(
                f"inputs[{name}].shape",
                f"axis 0 is {rows}, but the query has {size} candidates; it must be {size}, or 1 to hold for all",
            )
    if size > max_candidates:
        name = next(name for name, rows in sizes.items() if rows == size)
        violations.note(
            f"inputs[{name}].shape", f"axis 0 is {size}; a query may have {max_candidates} candidates"
        )
    return size


def _check_values(array: Array, declared: InputSpec, violations: _Violations) -> None:
    kind = declared.dtype.kind
    if kind == "f":
        # A sum is finite only where all its terms are, and is one pass without a temporary; it may overflow though.
        if not math.isfinite(_sum(array)) and not np.isfinite(array).all():
            violations.note(f"inputs[{declared.name}].data", "must be finite: it holds NaN or infinity")
    elif kind == "b":
        if array.view(np.uint8).max() > 1:
            violations.note(f"inputs[{declared.name}].data", "must hold bytes of 0 or 1")
    elif declared.id_rows is not None:
        _check_ids(array, declared, violations)


def _sum(array: Array) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.add.reduce(array, axis=None))


def _check_ids(array: Array, declared: InputSpec, violations: _Violations) -> None:
    """Check 0 <= id < rows. Seen as unsigned a negative id is a huge one, so that the maximum tells both."""
    rows = declared.id_rows
    assert rows is not None
    unsigned = array.view(_UNSIGNED[declared.dtype.itemsize])
    field = f"inputs[{declared.name}].data"
    if len(rows) == 1:
        if unsigned.max() >= rows[0]:
            violations.note(field, f"holds an id outside 0 to {rows[0] - 1}")
        return
    other_axes = tuple(axis for axis in range(array.ndim) if axis != 1)
    for column in np.flatnonzero(unsigned.max(axis=other_axes) >= np.array(rows, dtype=np.uint64))[:16]:
        violations.note(field, f"holds an id outside 0 to {rows[column] - 1} in column {column}")


def _outputs(names: Sequence[str], spec: ModelSpec, violations: _Violations) -> tuple[str, ...]:
    known = [output.name for output in spec.outputs]
    if len(names) > MAX_EXTRA + len(known):
        violations.note("outputs", f"names {len(names)} outputs; the model has {len(known)}")
        return ()
    for index, name in enumerate(names):
        if name not in known:
            rule = f'"{name[:100]}" is none of the model\'s outputs: {", ".join(known)}'
            violations.note(f"outputs[{index}]", rule)
    return tuple(dict.fromkeys(names))


def _task(name: str, spec: ModelSpec, violations: _Violations) -> int:
    if not name:
        return 0
    if name in spec.tasks:
        return spec.tasks.index(name)
    known = (
        f"it must be one of {', '.join(spec.tasks)}" if spec.tasks else "the model has a single, unnamed task"
    )
    violations.note("task", f'"{name[:100]}" is unknown: {known}')
    return 0


def _candidate_ids(data: bytes, size: int, violations: _Violations) -> NDArray[np.int64] | None:
    if not data:
        return None
    if len(data) != 8 * size:
        violations.note(
            "candidate_ids", f"has {len(data)} bytes; {size} candidates take {8 * size} bytes of INT64"
        )
        return None
    return np.frombuffer(data, dtype="<i8")
