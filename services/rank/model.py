"""What the server knows of one model: plain data, read by the repository and obeyed by everybody else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deeprecsys.tensors import DATA_TYPES
from deeprecsys.v1 import rank_pb2
from scheduler.measure import Sla


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input. ``shape`` is without the candidates' axis; -1 is any length.

    ``id_rows``: None for an input that holds no ids; one number for all its ids, or one for each index of the axis
    after the candidates.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    user_side: bool = False
    id_rows: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output. ``shape`` is without the candidates' axis; -1 is any length."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One version of one model of the repository.

    ``largest_batch``: the most candidates in one inference. ``whole``: a query is one inference, never split or
    shared with another (Triton's ``max_batch_size: 0``, or an input with a free axis beyond the candidates).
    ``tasks``: names of the score columns, empty for one score.
    """

    name: str
    version: str
    path: Path
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    score_output: str
    tasks: tuple[str, ...]
    sla: Sla
    largest_batch: int
    whole: bool

    @property
    def key(self) -> str:
        """The name under which the scheduler knows this version."""
        return f"{self.name}/{self.version}"

    def largest_query(self, server_limit: int) -> int:
        """Return the most candidates that a query may have where the server allows so many."""
        return min(server_limit, self.largest_batch) if self.whole else server_limit


def describe(spec: ModelSpec) -> rank_pb2.Model:
    """Return the part of a Model message that the specification determines."""
    return rank_pb2.Model(
        name=spec.name,
        inputs=[
            rank_pb2.Input(
                name=i.name,
                data_type=DATA_TYPES[i.dtype],
                shape=(-1, *i.shape),
                user_side=i.user_side,
                id_rows=i.id_rows or (),
            )
            for i in spec.inputs
        ],
        outputs=[
            rank_pb2.Output(name=o.name, data_type=DATA_TYPES[o.dtype], shape=(-1, *o.shape))
            for o in spec.outputs
        ],
        score_output=spec.score_output,
        tasks=spec.tasks,
        sla=rank_pb2.Sla(percentile=spec.sla.percentile, seconds=spec.sla.seconds),
    )
