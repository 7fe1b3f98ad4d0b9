"""Look-ups of a table that come back to its rows as a profile says: the LRU stack-distance model.

The rows that were looked up form a stack, the last one on top. A look-up's stack distance is its row's place there: 1
is the row that was looked up last, 4 one since which three others were. A row that was never looked up is *new*.
A cache of d rows (least recently used out) hits just the look-ups of distance at most d, so a profile of distances is a
model's locality in one curve.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import DTypeLike, NDArray

from scheduler.law_text import require

F64Array = NDArray[np.float64]
I64Array = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ReuseProfile:
    """How likely each stack distance is, and a new row.

    distance: int64 [K], each at least 1, ascending. probability: float64 [K]. new: the share of look-ups that touch a
    row for the first time. Raises ValueError for what is no distribution.
    """

    distance: I64Array
    probability: F64Array
    new: float

    def __post_init__(self) -> None:
        shares = np.append(self.probability, self.new)
        require(len(self.distance) == len(self.probability), "one probability for each distance")
        require(bool(np.isfinite(shares).all() and (shares >= 0).all()), "probabilities are at least 0")
        require(
            bool((self.distance >= 1).all() and (np.diff(self.distance) > 0).all()),
            "distances are at least 1 and ascend",
        )
        total = float(shares.sum())
        require(
            abs(total - 1.0) <= 1e-6, f"the probabilities with that of new rows sum to 1, not to {total:.9g}"
        )


class ReuseStream:
    """The look-ups of one table of so many rows under a profile.

    A distance beyond the rows that were touched so far takes a new row. When all were touched, a new row is the one
    that was looked up longest ago. A look-up costs a fraction of a microsecond, more at distances beyond thousands.
    """

    def __init__(self, profile: ReuseProfile, rows: int) -> None:
        self._distance = np.append(profile.distance, 0)
        # Divided by their sum, so that a rounding error does not make a row new where none is.
        upto = np.cumsum(np.append(profile.probability, profile.new))
        self._upto = upto[:-1] / upto[-1]
        self._rows = rows
        self._step = stride(rows)
        self._touched = 0
        self._top: list[int] = []  # the stack, its top at the end
        self._below: deque[int] = deque()  # what lies too deep for any distance, the deepest at the left
        self._deep = int(profile.distance.max(initial=1))

    def draw(self, rng: Generator, n: int, dtype: DTypeLike) -> NDArray[Any]:
        """Draw the next n ids."""
        place = np.searchsorted(self._upto, rng.random(n), side="right")
        ids = np.empty(n, dtype=np.int64)
        for start in range(0, n, self._deep + 4096):
            part = slice(start, start + self._deep + 4096)
            ids[part] = self._look_up(self._distance[place[part]].tolist())
            self._sink()
        return ids.astype(dtype)

    def _look_up(self, distances: list[int]) -> list[int]:
        top, ids = self._top, []
        for distance in distances:
            row = top.pop(-distance) if 0 < distance <= len(top) else self._new()
            top.append(row)
            ids.append(row)
        return ids

    def _new(self) -> int:
        if self._touched < self._rows:
            self._touched += 1
            return (self._touched - 1) * self._step % self._rows
        return self._below.popleft() if self._below else self._top.pop(0)

    def _sink(self) -> None:
        surplus = len(self._top) - self._deep
        if surplus > 0:
            self._below.extend(self._top[:surplus])
            del self._top[:surplus]


def stride(rows: int) -> int:
    """Return a step without common factor with ``rows``: its multiples visit every row once, all over the table."""
    step = max(1, int(rows * 0.6180339887))
    while math.gcd(step, rows) != 1:
        step += 1
    return step
