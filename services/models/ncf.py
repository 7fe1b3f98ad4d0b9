"""Neural collaborative filtering (ncf): the product of two vectors beside an MLP over two others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from services.models.layers import AllTables, Dense, Mlp
from services.models.spec import ModelSpec


class Ncf(nn.Module):
    """``ids`` ``(N, 4)``, columns mf_user, mf_item, mlp_user, mlp_item, to ``score`` ``(N, 1)``.

    The matrix-factorisation vectors are multiplied, as in the original model (the released code adds them),
    and one layer on both halves gives one score (the released code leaves 64 outputs).
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.dim = spec.dim
        self.tables = AllTables(spec.groups, spec.dim)
        self.mlp = Mlp(2 * spec.dim, spec.top, relu_last=True)
        self.final = Dense(spec.dim + spec.top[-1], 1)

    def forward(self, ids: Tensor) -> Tensor:
        """Score the candidates."""
        vectors = self.tables["ids"](ids).flatten(1)
        mf_user, mf_item, mlp_both = torch.split(vectors, [self.dim, self.dim, 2 * self.dim], dim=1)
        deep = self.mlp(mlp_both)
        return torch.sigmoid(self.final(torch.cat([mf_user * mf_item, deep], dim=1)))

    def logit_layers(self) -> list[Dense]:
        """Return the layers whose outputs are logits."""
        return [self.final]
