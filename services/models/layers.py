"""The two layers that every model is made of: embedding tables with sum pooling, and calibrated dense layers."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from services.models.spec import TableGroup

# From here on a bag's rows outweigh the cost of one more operator, and a Gather per table keeps what it
# gathered in the cache until it is summed; below, one Gather over all tables is faster.
# Measured by benchmarks/pooling_forms.py, like the next one.
PER_TABLE_FROM_LOOKUPS = 16

# Up to here a Split and Adds pool a bag faster than a ReduceSum over so short an axis (DIN: 3 look-ups).
ADD_UP_TO_LOOKUPS = 4


class Tables(nn.Module):
    """The tables of one input: INT32 ids ``(N, *group.dims)`` to pooled vectors.

    The result is ``(N, tables, dim)``, or ``(N, dim)`` where the input has no axis of tables. Values are drawn
    from torch's global generator so that a pooled vector's entries have variance 1.

    nn.EmbeddingBag is avoided (its export is a Loop over the bags) and so is indexing (its export is GatherND,
    which ONNX Runtime refuses for int32).
    """

    offsets: Tensor

    def __init__(self, group: TableGroup, dim: int) -> None:
        super().__init__()
        self.group = group
        self.per_table = group.tables > 1 and group.lookups >= PER_TABLE_FROM_LOOKUPS
        bound = math.sqrt(3 / group.lookups)
        stacks = group.rows if self.per_table else (sum(group.rows),)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(rows, dim).uniform_(-bound, bound), requires_grad=False)
            for rows in stacks
        )
        first_rows = list(itertools.accumulate(group.rows, initial=0))[:-1]
        offsets = torch.tensor(first_rows, dtype=torch.int32)
        self.register_buffer("offsets", offsets[:, None] if "lookups" in group.axes else offsets)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up and sum-pool."""
        if self.per_table:
            columns = torch.split(ids, 1, dim=1)
            pooled = [
                F.embedding(ids, weight).sum(2) for ids, weight in zip(columns, self.weights, strict=True)
            ]
            return torch.cat(pooled, dim=1)
        if self.group.tables > 1:
            ids = ids + self.offsets
        return self._pool(F.embedding(ids, self.weights[0]))

    def _pool(self, rows: Tensor) -> Tensor:
        if "lookups" not in self.group.axes:
            return rows
        if self.group.lookups > ADD_UP_TO_LOOKUPS:
            return rows.sum(-2)
        return functools.reduce(torch.add, torch.split(rows, 1, dim=-2)).squeeze(-2)


class AllTables(nn.ModuleDict):
    """The tables of a model by input name."""

    def __init__(self, groups: Sequence[TableGroup], dim: int) -> None:
        super().__init__({group.input: Tables(group, dim) for group in groups})


class Dense(nn.Module):
    """A fully connected layer on ``(N, inputs)`` whose weights ``calibrate`` fits to the data it sees."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(outputs), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x @ weight.T + bias``."""
        return F.linear(x, self.weight, self.bias)

    def calibrate(self, x: Tensor, spread: float = 1.0) -> None:
        """Make every column of ``x`` weigh the same, and every output have mean 0 and deviation ``spread``."""
        self.weight.div_(x.std(0).clamp_min(1e-3))
        y = F.linear(x, self.weight)
        scale = spread / y.std(0).clamp_min(1e-6)
        self.weight.mul_(scale[:, None])
        self.bias.copy_(-y.mean(0) * scale)


class Mlp(nn.Module):
    """Dense layers with ReLU between them, and after the last one if ``relu_last``."""

    def __init__(self, inputs: int, widths: Sequence[int], *, relu_last: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Dense(*pair) for pair in itertools.pairwise((inputs, *widths)))
        self.relu_last = relu_last

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs)`` to ``(N, widths[-1])``."""
        for index, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if self.relu_last or index < len(self.layers):
                x = torch.relu(x)
        return x


def calibrate(model: nn.Module, inputs: Mapping[str, Tensor], logits: Sequence[Dense], spread: float) -> None:
    """Fit every Dense layer of ``model`` in one pass over ``inputs``; ``logits`` get deviation ``spread``.

    Data-dependent initialisation (Salimans & Kingma 2016). The released initial weights make the tables all
    but irrelevant, so that a wrong look-up would pass a parity check; after this every feature moves the score.
    """
    last = {id(layer) for layer in logits}

    def fit(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, Dense)
        layer.calibrate(args[0], spread if id(layer) in last else 1.0)

    hooks = [layer.register_forward_pre_hook(fit) for layer in model.modules() if isinstance(layer, Dense)]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()


def two_class_outputs(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Turn ``(N, 2)`` logits into ``score`` ``(N, 1)``, the probability of class 1, and ``probabilities``."""
    probabilities = torch.softmax(logits, dim=1)
    return probabilities[:, 1:], probabilities
