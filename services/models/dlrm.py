"""DLRM (rmc1, rmc2, rmc3): pooled embeddings and a bottom MLP, an interaction, a top MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from services.models.layers import AllTables, Dense, Mlp
from services.models.spec import ModelSpec


class Dlrm(nn.Module):
    """``dense`` ``(N, dense_width)`` and ``ids`` ``(N, tables, lookups)`` to ``score`` ``(N, 1)``.

    The interaction is concatenation, as in all the paper's configurations, or ``dot``: the products of all
    pairs among the bottom output and the pooled vectors, behind the bottom output itself.
    """

    pairs: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        tables = spec.group("ids").tables
        self.dot = spec.interaction == "dot"
        self.tables = AllTables(spec.groups, spec.dim)
        self.bottom = Mlp(spec.dense_width, spec.bottom, relu_last=True)
        vectors = tables + 1
        wide = vectors * (vectors - 1) // 2 if self.dot else tables * spec.dim
        self.top = Mlp(spec.bottom[-1] + wide, spec.top, relu_last=False)
        lower = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("pairs", lower[0] * vectors + lower[1])

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Score the candidates."""
        bottom = self.bottom(dense)
        pooled = self.tables["ids"](ids)
        crossed = self._products(bottom, pooled) if self.dot else pooled.flatten(1)
        return torch.sigmoid(self.top(torch.cat([bottom, crossed], dim=1)))

    def _products(self, bottom: Tensor, pooled: Tensor) -> Tensor:
        vectors = torch.cat([bottom[:, None], pooled], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        return products.flatten(1).index_select(1, self.pairs)

    def logit_layers(self) -> list[Dense]:
        """Return the layers whose outputs are logits."""
        return [layer for layer in self.top.layers if isinstance(layer, Dense)][-1:]
