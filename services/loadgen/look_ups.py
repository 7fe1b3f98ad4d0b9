"""The table rows that a model's requests look up, each table's from a stream of its own, and their locality."""

from __future__ import annotations

import math
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
        tables = [(spec.name, k) for spec in model.inputs for k in range(len(spec.id_rows))]
        self._room = {table: measured // len(tables) for table in tables}

    def draw(
        self, spec: rank_pb2.Input, shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator
    ) -> NDArray[Any]:
        """Draw an input of ids of the given shape; raises InvalidSettingError for tables that do not fit it."""
        tables = list(spec.id_rows)
        if dtype.kind not in "iu" or min(tables) < 1 or (len(tables) > 1 and shape[1:2] != (len(tables),)):
            raise InvalidSettingError(
                f"the id rows of input {spec.name} of {self._model} do not fit its type and shape"
            )
        if len(tables) == 1 or (len(set(tables)) == 1 and not self._law.remembers):
            array = self._stream(spec.name, 0, tables[0])(rng, math.prod(shape), dtype).reshape(shape)
        else:
            array = np.empty(shape, dtype=dtype)
            for column, rows in enumerate(tables):
                part = array[:, column]
                part[...] = self._stream(spec.name, column, rows)(rng, part.size, dtype).reshape(part.shape)
        for column in range(len(tables)):
            self._keep((spec.name, column), array if len(tables) == 1 else array[:, column])
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
        room = self._room[table]
        if room <= 0:
            return
        part = ids.ravel()[:room].copy()
        self._sample.setdefault(table, []).append(part)
        self._room[table] = room - len(part)
