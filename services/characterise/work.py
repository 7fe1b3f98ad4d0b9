"""Multiply-accumulates and bytes of one candidate, computed from the ONNX file and never from a model's name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeprecsys.errors import InvalidSettingError, RepositoryError
from services.characterise.dataflow import PRODUCTS, Dataflow, Part
from services.characterise.shapes import Shapes, set_shape

CANDIDATES = 64
"""Shapes are inferred for a batch of so many, and divided by it."""

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape"})
_NOT_COUNTED = frozenset(
    {"Einsum", "ConvTranspose", "QLinearMatMul", "QLinearConv", "ConvInteger", "Attention", "GatherND", "If"}
    | {"GatherElements"}
)


@dataclass(frozen=True)
class Work:
    """What one candidate takes, and ``weight_bytes`` once for a whole inference.

    ``macs``: multiply-accumulates of matrix products and recurrent operators; element by element work is not counted.
    ``gathered_bytes``: rows looked up in tables, ``gathered_rows`` of them. ``streamed_bytes``: inputs read and
    outputs written. ``intermediate_bytes``: what operators hand to each other, written once, before anything is fused;
    most of it stays in a cache. ``weight_bytes``: constants other than tables.
    """

    macs: float = 0.0
    gathered_bytes: float = 0.0
    gathered_rows: float = 0.0
    streamed_bytes: float = 0.0
    intermediate_bytes: float = 0.0
    weight_bytes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.macs + other.macs,
            self.gathered_bytes + other.gathered_bytes,
            self.gathered_rows + other.gathered_rows,
            self.streamed_bytes + other.streamed_bytes,
            self.intermediate_bytes + other.intermediate_bytes,
            self.weight_bytes + other.weight_bytes,
        )

    def moved_bytes(self, candidates: int) -> float:
        """Return what a batch must read or write at least: its rows, inputs and outputs, and the weights once."""
        return candidates * (self.gathered_bytes + self.streamed_bytes) + self.weight_bytes

    def flops(self, candidates: int) -> float:
        """Return the floating-point operations of a batch, two for each multiply-accumulate."""
        return 2.0 * candidates * self.macs


@dataclass(frozen=True)
class ModelWork:
    """The work of each part of a model; ``not_counted`` names operator types whose products are not in it."""

    parts: Mapping[Part, Work]
    not_counted: tuple[str, ...]

    @property
    def total(self) -> Work:
        """The work of all parts together."""
        return sum(self.parts.values(), Work())


def read_graph(path: Path) -> Any:
    """Return the ``onnx.ModelProto`` of a file without the weights that lie beside it.

    Raises InvalidSettingError where the package onnx is missing, RepositoryError for a file that cannot be read.
    """
    try:
        import onnx  # noqa: PLC0415 (an extra: a serving image has none)
        from google.protobuf.message import DecodeError  # noqa: PLC0415
    except ImportError as error:
        raise InvalidSettingError(
            "the work of a model is read with the package onnx: install deeprecsys[profile], or give --latency-only"
        ) from error
    try:
        return onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise RepositoryError(f"{path.parent.name}/{path.name} cannot be read as an ONNX file") from error


def count_work(model: Any) -> ModelWork:
    """Compute the work of a candidate from an ``onnx.ModelProto``.

    The first axis of every input is the candidates; any other free axis counts as 1, as it does where the model is
    timed. Raises RepositoryError, naming the value, where a shape cannot be inferred.
    """
    candidates = _fixed_first_axis(model) or CANDIDATES
    counter = _Counter(model, candidates)
    parts: dict[Part, Work] = dict.fromkeys(Part, Work())
    for part, work in counter.by_node():
        parts[part] += work
    return ModelWork(parts, tuple(sorted(counter.not_counted)))


def _fixed_first_axis(model: Any) -> int:
    constants = {
        constant.name for constant in model.graph.initializer
    }  # older files list them as inputs, too
    ports = [port for port in model.graph.input if port.name not in constants]
    axes = [port.type.tensor_type.shape.dim[:1] for port in ports]
    return max((axis[0].dim_value for axis in axes if axis), default=0)


class _Counter:
    def __init__(self, model: Any, candidates: int) -> None:
        self._candidates = candidates
        self._model = model
        self._graph = model.graph
        self._shapes = Shapes(model, candidates)
        self._flow = Dataflow(self._graph)
        self.not_counted: set[str] = set()

    def by_node(self) -> Iterator[tuple[Part, Work]]:
        inputs = {port.name for port in self._graph.input} & self._flow.variable
        outputs = {port.name for port in self._graph.output}
        tables = {node.input[0] for node in self._flow.nodes if self._flow.is_lookup(node)}
        seen: set[str] = set()
        for node, part in zip(self._flow.nodes, self._flow.parts(), strict=True):
            if not any(name in self._flow.variable for name in node.output):
                continue
            fresh = {name for name in node.input if name} - seen
            seen |= fresh
            weights = sum(map(self._shapes.bytes_of, (fresh & self._flow.constants) - tables))
            streamed = sum(map(self._shapes.bytes_of, (fresh & inputs) | (outputs & set(node.output))))
            written = (
                0
                if node.op_type in _VIEWS
                else sum(map(self._shapes.bytes_of, set(node.output) - outputs - {""}))
            )
            gathered, rows = (
                (self._shapes.bytes_of(node.output[0]), math.prod(self._shapes.of(node.input[1])))
                if self._flow.is_lookup(node)
                else (0, 0)
            )
            n = self._candidates
            yield (
                part,
                Work(self._macs(node) / n, gathered / n, rows / n, streamed / n, written / n, weights),
            )

    def _macs(self, node: Any) -> float:
        kind = node.op_type
        if kind in _NOT_COUNTED:
            self.not_counted.add(kind)
            return 0.0
        if kind in _GATES:
            steps, batch, width = self._shapes.of(node.input[0])
            directions, _, hidden = self._shapes.of(node.input[2])
            return float(steps * batch * directions * _GATES[kind] * hidden * (width + hidden))
        if kind in ("Scan", "Loop"):
            return self._body_macs(node)
        if kind not in PRODUCTS:
            return 0.0
        if kind == "Conv":
            return float(
                math.prod(self._shapes.of(node.output[0])) * math.prod(self._shapes.of(node.input[1])[1:])
            )
        left = self._shapes.of(node.input[0])
        return float(
            math.prod(self._shapes.of(node.output[0])) * left[0 if _attribute(node, "transA") else -1]
        )

    def _body_macs(self, node: Any) -> float:
        """Return what all steps of a Scan or Loop multiply; a Loop whose steps are not constant is not counted."""
        body = _attribute(node, "body")
        if node.op_type == "Scan":
            scanned = _attribute(node, "num_scan_inputs")
            carried = len(node.input) - scanned
            axes = _attribute(node, "scan_input_axes") or [0] * scanned
            steps = self._shapes.of(node.input[carried])[axes[0]]
            shapes = [self._shapes.of(name) for name in node.input[:carried]]
            for name, axis in zip(node.input[carried:], axes, strict=True):
                shape = list(self._shapes.of(name))
                del shape[axis]
                shapes.append(tuple(shape))
        else:
            known = self._shapes.constant(node.input[0])
            if known is None:
                self.not_counted.add("Loop")
                return 0.0
            steps = known
            shapes = [(), (), *(self._shapes.of(name) for name in node.input[2:])]
        inner = _Counter(self._standalone(body, shapes), self._candidates)
        found = sum(work.macs for _, work in inner.by_node()) * self._candidates
        self.not_counted |= inner.not_counted
        return float(steps * found)

    def _standalone(self, body: Any, shapes: Sequence[tuple[int, ...]]) -> Any:
        """Return a body as a model of its own: its inputs' shapes set, what it reads from outside made an input."""
        alone = type(self._model)()
        alone.CopyFrom(self._model)
        alone.graph.CopyFrom(body)
        for port, shape in zip(alone.graph.input, shapes, strict=True):
            set_shape(port.type.tensor_type, shape)
        made = {port.name for port in body.input} | {constant.name for constant in body.initializer}
        made |= {name for node in body.node for name in node.output}
        outside = {name for node in body.node for name in node.input if name} - made
        constants = {constant.name: constant for constant in self._graph.initializer}
        for name in sorted(outside):
            if name in constants:
                alone.graph.initializer.append(constants[name])
            else:
                alone.graph.input.add().CopyFrom(self._shapes.value(name))
        return alone


def _attribute(node: Any, name: str) -> Any:
    """Return an attribute that is a number, a list of numbers or a graph; None where it is absent."""
    for attribute in node.attribute:
        if attribute.name == name:
            if attribute.HasField("g"):
                return attribute.g
            return list(attribute.ints) or attribute.i
    return None
