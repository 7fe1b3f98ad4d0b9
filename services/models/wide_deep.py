"""Wide & Deep (wnd) and its multi-task form (mt_wnd): raw dense input and embeddings into an MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from services.models.layers import AllTables, Dense, Mlp
from services.models.spec import ModelSpec


class WideDeep(nn.Module):
    """``dense`` ``(N, dense_width)`` and ``ids`` ``(N, tables)`` to ``score`` ``(N, 1)`` or ``(N, tasks)``.

    With tasks, each has a tower of its own on the shared trunk ``spec.top``; an empty trunk makes the towers
    independent models, as the paper draws them.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        width = spec.dense_width + spec.group("ids").tables * spec.dim
        self.tables = AllTables(spec.groups, spec.dim)
        self.trunk = Mlp(width, spec.top, relu_last=bool(spec.tasks))
        shared = spec.top[-1] if spec.top else width
        self.towers = nn.ModuleList(Mlp(shared, spec.tower, relu_last=False) for _ in spec.tasks)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Score the candidates."""
        embedded = self.tables["ids"](ids).flatten(1)
        shared = self.trunk(torch.cat([dense, embedded], dim=1))
        if not self.towers:
            return torch.sigmoid(shared)
        return torch.sigmoid(torch.cat([tower(shared) for tower in self.towers], dim=1))

    def logit_layers(self) -> list[Dense]:
        """Return the layers whose outputs are logits."""
        heads = [tower for tower in self.towers if isinstance(tower, Mlp)] or [self.trunk]
        return [layer for head in heads for layer in [*head.layers][-1:] if isinstance(layer, Dense)]
