"""Deep Interest Evolution Network (dien): a GRU over the behaviours, then a GRU gated by attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from services.models.layers import AllTables, Dense, Mlp, two_class_outputs
from services.models.spec import ModelSpec


class Augru(nn.Module):
    """A GRU whose update gate is scaled by attention: ``(T, N, inputs)`` and ``(T, N, 1)`` to ``(N, hidden)``.

    The steps are unrolled: ONNX has no such operator, and a Loop costs more than the steps do. The inputs'
    half of every gate is computed for all steps at once, and the state's half is added by the same Gemm.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()

        def parameter(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns) / math.sqrt(rows), requires_grad=False)

        self.hidden = hidden
        self.input_gates = parameter(inputs, 2 * hidden)
        self.input_proposal = parameter(inputs, hidden)
        self.state_gates = parameter(hidden, 2 * hidden)
        self.state_proposal = parameter(hidden, hidden)

    def forward(self, interests: Tensor, attention: Tensor) -> Tensor:
        """Return the last state, from an initial state of zeros."""
        steps = zip(
            torch.split(interests @ self.input_gates, 1),
            torch.split(interests @ self.input_proposal, 1),
            torch.split(attention, 1),
            strict=True,
        )
        state = torch.zeros_like(interests[0, :, :1]).expand(-1, self.hidden)
        for input_gates, input_proposal, weight in steps:
            gates = torch.sigmoid(torch.addmm(input_gates.squeeze(0), state, self.state_gates))
            reset, update = torch.split(gates, self.hidden, dim=1)
            proposal = torch.addmm(input_proposal.squeeze(0), reset * state, self.state_proposal)
            state = state + weight.squeeze(0) * update * (torch.tanh(proposal) - state)
        return state


class Dien(nn.Module):
    """The four id inputs to ``score`` ``(N, 1)`` and ``probabilities`` ``(N, 2)``.

    The released code has plain tanh recurrences; this is the GRU and AUGRU pair that the paper's table names.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.tables = AllTables(spec.groups, spec.dim)
        self.extractor = nn.GRU(spec.dim, spec.hidden)  # time comes first, as in ONNX
        for weight in self.extractor.parameters():
            weight.requires_grad_(False)
            if weight.ndim == 2:
                weight.normal_(0, 1 / math.sqrt(weight.shape[1]))
        # 3 spreads the attention over the behaviours unevenly, but leaves weight on each of them.
        self.relevance = nn.Parameter(
            torch.randn(spec.dim, spec.hidden) * 3 / spec.hidden, requires_grad=False
        )
        self.evolution = Augru(spec.hidden, spec.hidden)
        self.top = Mlp(spec.hidden + 3 * spec.dim, spec.top, relu_last=False)

    def forward(
        self, profile: Tensor, behaviours: Tensor, ad: Tensor, context: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score the candidates."""
        candidate = self.tables["ad"](ad).flatten(1)
        interests, _ = self.extractor(self.tables["behaviours"](behaviours).transpose(0, 1))
        relevance = (interests * (candidate @ self.relevance)).sum(2, keepdim=True)
        evolved = self.evolution(interests, torch.softmax(relevance, dim=0))
        user = self.tables["profile"](profile).flatten(1)
        features = torch.cat([evolved, user, candidate, self.tables["context"](context).flatten(1)], dim=1)
        return two_class_outputs(self.top(features))

    def logit_layers(self) -> list[Dense]:
        """Return the layers whose outputs are logits."""
        return [layer for layer in self.top.layers if isinstance(layer, Dense)][-1:]
