"""Random inputs for a model: what the export's check, the benchmarks and the tests feed to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from services.models.spec import DENSE_INPUT, ModelSpec, TableGroup

Arrays = Mapping[str, NDArray[np.generic]]  # inputs by name; the first axis is the candidates'
Scorer = Callable[[Arrays], Mapping[str, NDArray[np.float32]]]  # a model: inputs to outputs, by name


def random_candidates(
    spec: ModelSpec, count: int, rng: np.random.Generator
) -> dict[str, NDArray[np.generic]]:
    """Draw ``count`` candidates: dense inputs from U(0, 1), ids uniform over each table's rows.

    Uniform ids have no locality, which is the worst case for the caches. User-side inputs are drawn for each
    candidate as well. Arrays have the shapes of ``spec.inputs`` behind an axis of ``count``.
    """
    inputs: dict[str, NDArray[np.generic]] = {}
    if spec.dense_width:
        inputs[DENSE_INPUT] = rng.random((count, spec.dense_width), dtype=np.float32)
    for group in spec.groups:
        inputs[group.input] = random_ids(group, count, rng)
    return inputs


def random_ids(group: TableGroup, count: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Draw ids for one input: INT32, shape ``(count, *group.dims)``."""
    rows = np.asarray(group.rows, dtype=np.int64)[None, :, None]
    ids = rng.integers(0, rows, size=(count, group.tables, group.lookups), dtype=np.int64)
    return ids.astype(np.int32).reshape(count, *group.dims)
