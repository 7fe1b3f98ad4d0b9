"""Which part of a model an operator belongs to, told by what flows through it and never by a name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any


class Part(StrEnum):
    """What an operator is for.

    EMBEDDING: looks rows of a constant table up by ids, or pools nothing but such rows, or prepares the ids.
    RECURRENCE: a recurrent operator, or one between two uses of the same weights, the second on what came of the
    first (an unrolled recurrence). ATTENTION: weighs activations by activations, or lies between such operators and
    recurrences, or moves and combines data for them alone. MLP: a product with constant weights anywhere else, and
    what is applied to its result element by element. OTHER: the rest, which is concatenation above all.
    """

    EMBEDDING = "embedding"
    MLP = "mlp"
    ATTENTION = "attention"
    RECURRENCE = "recurrence"
    OTHER = "other"


PRODUCTS = frozenset(
    {"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulInteger", "QLinearMatMul", "Conv", "FusedConv"}
)
"""Operators that multiply matrices, before and after ONNX Runtime has fused them."""

_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_BODIES = frozenset({"Scan", "Loop"})
_POOLING = frozenset(
    {"ReduceSum", "ReduceMean", "ReduceMax", "Sum", "Mean", "Add", "Split", "Slice", "Squeeze", "Unsqueeze"}
    | {"Reshape", "Flatten", "Transpose", "Cast", "Identity"}
)
_ELEMENTWISE = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "Elu", "Gelu", "Sigmoid", "Tanh", "Softmax", "LogSoftmax", "Clip"}
    | {"Add", "Sub", "Mul", "Div", "Identity", "Cast", "BatchNormalization", "LayerNormalization"}
)


class Dataflow:
    """The nodes of one ``onnx.GraphProto`` and what flows between them.

    ``variable``: the names that depend on an input of the graph. The nodes of a graph are in topological order, as
    ONNX demands. Constants of an outer graph are named in ``outer_constants``.
    """

    def __init__(self, graph: Any, outer_constants: frozenset[str] = frozenset()) -> None:
        self.nodes: Sequence[Any] = graph.node
        self.constants = outer_constants | {constant.name for constant in graph.initializer}
        self.variable = {port.name for port in graph.input} - self.constants
        self._makers: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            if any(name in self.variable for name in _read(node)):
                self.variable.update(node.output)
            else:
                self.constants = self.constants | set(node.output)
            self._makers.update((name, index) for name in node.output if name)
        self._from = [
            sorted({self._makers[name] for name in _read(node) if name in self._makers})
            for node in self.nodes
        ]
        self._to: list[list[int]] = [[] for _ in self.nodes]
        for index, sources in enumerate(self._from):
            for source in sources:
                self._to[source].append(index)

    def is_lookup(self, node: Any) -> bool:
        """Whether a node gathers rows of a constant table by ids that are not constant."""
        return node.op_type == "Gather" and node.input[0] in self.constants and node.input[1] in self.variable

    def parts(self) -> list[Part]:
        """Return the part of each node."""
        embedding = self._embedding()
        recurrence = (self._recurrent() | self._unrolled()) - embedding
        seeds = recurrence | {
            i
            for i, node in enumerate(self.nodes)
            if node.op_type in PRODUCTS and all(name in self.variable for name in node.input[:2])
        }
        attention = (seeds | self._between(seeds)) - recurrence - embedding
        attention |= self._feeding(attention | recurrence, embedding)
        mlp = self._mlp(embedding | recurrence | attention)
        chosen = (
            (Part.EMBEDDING, embedding),
            (Part.RECURRENCE, recurrence),
            (Part.ATTENTION, attention),
            (Part.MLP, mlp),
        )
        return [
            next((part for part, indices in chosen if i in indices), Part.OTHER)
            for i in range(len(self.nodes))
        ]

    def _embedding(self) -> set[int]:
        found = {
            i
            for i, node in enumerate(self.nodes)
            if self.is_lookup(node) or (node.op_type in _BODIES and self._looks_up_only(node))
        }
        for i, node in enumerate(self.nodes):
            sources = {
                self._makers.get(name)
                for name in node.input
                if name in self.variable and node.op_type in _POOLING
            }
            if sources and sources <= found:
                found.add(i)
        for i in reversed(range(len(self.nodes))):
            if self._to[i] and all(user in found for user in self._to[i]) and self._moves(i):
                found.add(i)
        return found

    def _looks_up_only(self, node: Any) -> bool:
        """Whether the body of a loop pools look-ups, as torch exports bags, and multiplies nothing."""
        bodies = [Dataflow(body, frozenset(self.constants)) for body in _bodies(node)]
        inner = [(body, step) for body in bodies for step in body.nodes]
        return any(body.is_lookup(step) for body, step in inner) and not any(
            step.op_type in PRODUCTS | _RECURRENT for _, step in inner
        )

    def _recurrent(self) -> set[int]:
        return {
            i
            for i, node in enumerate(self.nodes)
            if node.op_type in _RECURRENT or (node.op_type in _BODIES and not self._looks_up_only(node))
        }

    def _unrolled(self) -> set[int]:
        """Return the nodes between two uses of the same weights, and the uses themselves."""
        users: dict[str, set[int]] = {}
        for i, node in enumerate(self.nodes):
            if node.op_type in PRODUCTS:
                for name in set(node.input[:2]) & self.constants:
                    users.setdefault(name, set()).add(i)
        found: set[int] = set()
        for uses in users.values():
            if len(uses) > 1:
                found |= self._between(uses)
        return found

    def _between(self, ends: set[int]) -> set[int]:
        """Return the nodes on a path from one of the ends to another, with the ends that have one."""
        after = _closure(len(self.nodes), ends, self._from, forwards=True)
        before = _closure(len(self.nodes), ends, self._to, forwards=False)
        return {i for i in range(len(self.nodes)) if i in after and i in before} | {
            i for i in ends if i in after or i in before
        }

    def _feeding(self, users: set[int], but: set[int]) -> set[int]:
        """Return the nodes without a product whose results go to ``users`` only, directly or not."""
        found: set[int] = set()
        for i in reversed(range(len(self.nodes))):
            known = users | found
            if (
                self._to[i]
                and i not in known | but
                and all(to in known for to in self._to[i])
                and self._moves(i)
            ):
                found.add(i)
        return found

    def _moves(self, index: int) -> bool:
        return self.nodes[index].op_type not in PRODUCTS | _RECURRENT | _BODIES

    def _mlp(self, taken: set[int]) -> set[int]:
        found: set[int] = set()
        for i, node in enumerate(self.nodes):
            if i in taken or not any(name in self.variable for name in _read(node)):
                continue
            sources = {self._makers.get(name) for name in node.input if name in self.variable}
            if node.op_type in PRODUCTS or (node.op_type in _ELEMENTWISE and sources <= found):
                found.add(i)
        return found


def _closure(count: int, ends: set[int], sources: list[list[int]], *, forwards: bool) -> set[int]:
    """Return the nodes with one of the ends among those that come before them (or after, backwards)."""
    reached: set[int] = set()
    for i in range(count) if forwards else reversed(range(count)):
        if any(source in ends or source in reached for source in sources[i]):
            reached.add(i)
    return reached


def _read(node: Any) -> Iterator[str]:
    """Yield the names that a node reads, also from inside its bodies."""
    yield from (name for name in node.input if name)
    for body in _bodies(node):
        for inner in body.node:
            yield from _read(inner)


def _bodies(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
