"""The table rows that a model's requests look up, each table's from a stream of its own, and their locality."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from deeprecsys.errors import InvalidSettingError
from deeprecsys.v1 import rank_pb2
from scheduler.ids import IdDraw, IdLaw
from scheduler.locality import Locality, measure_locality

LOCALITY_LOOK_UPS = 1 << 18
"""So many look-ups over all tables of a model are measured, the first ones of a run: a fifth of a second."""


class LookUps:
    """Draws the ids of one model by a law that may remember what a table had before.

    measured: of how many look-ups, over all tables, to keep those that ``locality`` measures.
    """

    def __init__(self, model: rank_pb2.Model, law: IdLaw, measured: int = 0) -> None:
        self._model, self._law = model.name, law
        self._streams: dict[tuple[str, int], IdDraw] = {}
        self._sample: dict[tuple[str, int], list[NDArray[Any]]] = {}
        tables = [(spec.name, k) for spec in model.inputs if spec.id_rows for k in range(_tables(spec))]
        self._room = {table: measured // len(tables) for table in tables}
        self._measuring = sum(self._room.values())

    def draw(
        self, spec: rank_pb2.Input, shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator
    ) -> NDArray[Any]:
        """Draw an input of ids of the given shape; raises InvalidSettingError for tables that do not fit it."""
        given = list(spec.id_rows)
        if dtype.kind not in "iu" or min(given) < 1 or (len(given) > 1 and shape[1:2] != (len(given),)):
            raise InvalidSettingError(
                f"the id rows of input {spec.name} of {self._model} do not fit its type and shape"
            )
        if len(set(given)) == 1 and not self._law.remembers:
            array = self._stream(spec.name, 0, given[0])(rng, math.prod(shape), dtype).reshape(shape)
        else:
            array = np.empty(shape, dtype=dtype)
            for table, part in enumerate(_by_table(array)):
                rows = given[table if len(given) > 1 else 0]
                part[...] = self._stream(spec.name, table, rows)(rng, part.size, dtype).reshape(part.shape)
        if self._measuring:
            for table, part in enumerate(_by_table(array)):
                self._keep((spec.name, table), part)
        return array

    def locality(self) -> Locality | None:
        """Return the locality of the first look-ups; None for a model without tables."""
        return measure_locality(np.concatenate(parts) for parts in self._sample.values())

    def _stream(self, name: str, column: int, rows: int) -> IdDraw:
        key = (name, column)
        if key not in self._streams:
            self._streams[key] = self._law.stream(rows)
        return self._streams[key]

    def _keep(self, table: tuple[str, int], ids: NDArray[Any]) -> None:
        part = ids.ravel()[: self._room[table]].copy()
        if len(part):
            self._sample.setdefault(table, []).append(part)
            self._room[table] -= len(part)
            self._measuring -= len(part)


def _tables(spec: rank_pb2.Input) -> int:
    """Return how many tables an input looks up: one for each index of axis 1, where it has one."""
    return max(1, spec.shape[1]) if len(spec.shape) > 1 else 1


def _by_table(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Return views of what each table is asked."""
    return iter([array]) if array.ndim == 1 else (array[:, table] for table in range(array.shape[1]))
