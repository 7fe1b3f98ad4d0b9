"""Queries that were recorded, and what replaying them at any speed sends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.arrivals import MAX_QUERIES
from scheduler.law_text import require
from scheduler.sizes import MAX_SIZE
from scheduler.workload import Schedule

F64Array = NDArray[np.float64]
I32Array = NDArray[np.int32]
I64Array = NDArray[np.int64]


MAX_TIME_S = 1e12
"""Beyond it float64 no longer tells a tenth of a millisecond."""


class BadRowError(ValueError):
    """A recorded query that cannot be: ``row`` counts from 0, ``field`` names what is wrong with it."""

    def __init__(self, row: int, field: str, rule: str) -> None:
        self.row, self.field, self.rule = row, field, rule
        super().__init__(f"row {row}, {field}: {rule}")


@dataclass(frozen=True, eq=False)
class RecordedQueries:
    """Recorded queries of one or several models.

    time_s: float64 [Q], seconds from any origin, never going back. size: int32 [Q], candidates. model: int32 [Q], each
    query's index in ``models``, all of which occur. Made by ``recorded_queries``.
    """

    time_s: F64Array
    size: I32Array
    model: I32Array
    models: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.time_s)

    @property
    def period_s(self) -> float:
        """The seconds after which a repetition starts: from the first query to the last, and one mean gap."""
        span_s = float(self.time_s[-1] - self.time_s[0])
        return span_s * len(self) / (len(self) - 1)

    @property
    def qps(self) -> float:
        """Queries per second over all models."""
        return len(self) / self.period_s

    def share(self, model: str) -> float:
        """Return the model's share of the queries."""
        return len(self.rows(model)) / len(self)

    def rows(self, model: str) -> I64Array:
        """Return the rows that hold the model's queries; KeyError for a model that has none."""
        if model not in self.models:
            raise KeyError(model)
        return np.flatnonzero(self.model == self.models.index(model))

    def replay(
        self, model: str, qps: float, duration_s: float, max_size: int | None = None
    ) -> tuple[Schedule, I64Array]:
        """Return the model's queries before ``duration_s``, and the row of each, when all models together make ``qps``.

        All gaps shrink or stretch alike. The first query of the recording comes at 0; when the recording ends it starts
        again. Sizes above ``max_size`` are cut to it. Raises ValueError for more than MAX_QUERIES.
        """
        require(math.isfinite(qps) and qps > 0, f"the rate must be above 0 queries/s, not {qps}")
        require(qps * duration_s <= MAX_QUERIES, f"{qps * duration_s:.3g} queries exceed {MAX_QUERIES}")
        speed = qps / self.qps
        rows = self.rows(model)
        rounds = math.ceil(duration_s * speed / self.period_s)
        start_s = np.arange(rounds)[:, None] * self.period_s
        arrival_s = ((self.time_s[rows] - self.time_s[0] + start_s) / speed).ravel()
        # A whole round may come out a rounding error longer than it is: what comes then belongs to the next.
        row = np.tile(rows, rounds)[: np.searchsorted(arrival_s, duration_s * (1 - 1e-12))]
        size = self.size[row]
        cut = size if max_size is None else np.minimum(size, np.int32(max_size))
        return Schedule(arrival_s[: len(row)], cut), row


def recorded_queries(time_s: NDArray[Any], size: NDArray[Any], model: Sequence[str]) -> RecordedQueries:
    """Check recorded queries: their times in seconds, sizes in candidates and models' names, all [Q].

    Raises BadRowError for a query that cannot be, ValueError where all together make no recording.
    """
    time_s = np.asarray(time_s, dtype=np.float64)
    require(len(time_s) > 0, "holds no queries")
    _check(np.abs(time_s) <= MAX_TIME_S, "time", lambda k: f"{time_s[k]:g} is no number of seconds")
    _check(
        np.append(True, time_s[1:] >= time_s[:-1]),
        "time",
        lambda k: f"{time_s[k]:.9g} goes back behind {time_s[k - 1]:.9g}",
    )
    with np.errstate(invalid="ignore"):
        whole = (size >= 1) & (size <= MAX_SIZE) & (size == np.floor(size))
    _check(whole, "size", lambda k: f"{size[k]:g} is no whole number of candidates of at least 1")
    _check(np.array([bool(name) for name in model]), "model", lambda _k: "is empty")
    require(bool(time_s[-1] > time_s[0]), "needs queries at two different times at least")
    require(len(time_s) <= MAX_QUERIES, f"holds more than {MAX_QUERIES} queries")
    names, index = np.unique(np.asarray(model, dtype=str), return_inverse=True)
    models = tuple(str(name) for name in names)
    return RecordedQueries(time_s, size.astype(np.int32), index.astype(np.int32), models)


def _check(good: NDArray[np.bool_], field: str, rule: Callable[[int], str]) -> None:
    if not good.all():
        row = int(np.argmin(good))
        raise BadRowError(row, field, rule(row))
