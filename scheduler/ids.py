"""The laws of ids: which rows of their tables queries look up.

A law is chosen by a short text such as ``zipf:1.05``; see ``parse_ids``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import DTypeLike, NDArray

from scheduler.law_text import Form, parse_law, require
from scheduler.reuse import ReuseProfile, ReuseStream, stride

IdDraw = Callable[[Generator, int, DTypeLike], NDArray[Any]]


@dataclass(frozen=True)
class IdLaw:
    """Which rows of a table queries look up.

    ``stream(rows)`` begins the look-ups of one table: the function that it returns draws, as ``draw(rng, n, dtype)``,
    the next n ids from 0 to rows - 1. ``remembers``: whether they depend on those before, so that each table needs a
    stream of its own.
    """

    spec: str
    stream: Callable[[int], IdDraw]
    remembers: bool = False

    def draw(self, rng: Generator, rows: int, n: int, dtype: DTypeLike) -> NDArray[Any]:
        """Draw the first n ids of a stream."""
        return self.stream(rows)(rng, n, dtype)


def _uniform(rows: int) -> IdDraw:
    def draw(rng: Generator, n: int, dtype: DTypeLike) -> NDArray[Any]:
        ids: NDArray[Any] = rng.integers(0, rows, n, dtype=np.dtype(dtype).type)
        return ids

    return draw


def _zipf(exponent: float) -> IdLaw:
    require(0 < exponent <= 100, "zipf needs an exponent above 0 and at most 100")

    def stream(rows: int) -> IdDraw:
        # Popular rows lie anywhere in a real table.
        step = stride(rows)

        def draw(rng: Generator, n: int, dtype: DTypeLike) -> NDArray[Any]:
            return ((_zipf_ranks(rng, exponent, rows, n) * step) % rows).astype(dtype)

        return draw

    return IdLaw("zipf", stream)


def _zipf_ranks(rng: Generator, exponent: float, rows: int, n: int) -> NDArray[np.int64]:
    """Ranks 0..rows-1 with probability proportional to (rank + 1) ** -exponent, by rejection-inversion.

    Hörmann and Derflinger, "Rejection-inversion to generate variates from monotone discrete distributions", 1996:
    exact, without a table of all rows.
    """
    q = 1.0 - exponent

    def integral(x: Any) -> Any:
        return np.log(x) if abs(q) < 1e-12 else np.expm1(q * np.log(x)) / q

    def integral_inverse(y: Any) -> Any:
        return np.exp(y) if abs(q) < 1e-12 else np.exp(np.log1p(np.maximum(q * y, -1 + 1e-16)) / q)

    low, high = integral(1.5) - 1.0, integral(rows + 0.5)
    squeeze = 2.0 - integral_inverse(integral(2.5) - 2.0**-exponent)
    ranks = np.empty(n, dtype=np.int64)
    todo = np.arange(n)
    while len(todo):
        u = high + rng.random(len(todo)) * (low - high)
        x = integral_inverse(u)
        k = np.clip(np.rint(x), 1, rows)
        taken = (k - x <= squeeze) | (u >= integral(k + 0.5) - k**-exponent)
        ranks[todo[taken]] = k[taken].astype(np.int64) - 1
        todo = todo[~taken]
    return ranks


def reuse(profile: ReuseProfile, spec: str = "reuse") -> IdLaw:
    """Return the law under which a table's look-ups have the LRU stack distances of a profile."""
    return IdLaw(spec, lambda rows: ReuseStream(profile, rows).draw, remembers=True)


_KNOWN: Mapping[str, Form] = {
    "uniform": Form("uniform", lambda: IdLaw("uniform", _uniform)),
    "zipf": Form("zipf:EXPONENT", _zipf, 1, 1),
}


def parse_ids(spec: str, read: Callable[[str], ReuseProfile] | None = None) -> IdLaw:
    """Return the id law that a text such as ``uniform`` or ``zipf:1.05`` names.

    ``read`` gets what follows ``reuse:`` and returns the profile found there; without it that law is unknown.
    Raises ValueError, listing the known laws, for any other text.
    """
    known = dict(_KNOWN)
    if read is not None:
        known["reuse"] = Form("reuse:FILE", lambda where: reuse(read(where)), text=True)
    law: IdLaw = parse_law("id", known, spec)
    return replace(law, spec=spec)
