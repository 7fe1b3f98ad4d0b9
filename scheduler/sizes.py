"""The laws of query sizes: how many candidates queries have.

A law is chosen by a short text such as ``production`` or ``lognormal:5.1,0.2``; see ``parse_sizes``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from scheduler.law_text import Form, parse_law, require

F64Array = NDArray[np.float64]
I32Array = NDArray[np.int32]

PRODUCTION_MAX_SIZE = 1000
"""The largest query of production traffic, in candidates, as reported by the paper (not re-checked): what `static`
divides by the cores."""

RELEASED_MAX_SIZE = 1024
"""The clip of the paper's released generator, in candidates; the default of the laws with parameters."""


MAX_SIZE = 2**31 - 1

SizeDraw = Callable[[Generator, int], I32Array]


@dataclass(frozen=True)
class SizeLaw:
    """How many candidates queries have: ``draw(rng, n)`` gives int32 [n], each at least 1."""

    spec: str
    draw: SizeDraw


def _whole(size: F64Array, most: float) -> I32Array:
    return np.clip(np.floor(size), 1, min(most, MAX_SIZE)).astype(np.int32)


def _production_sizes(rng: Generator, n: int) -> F64Array:
    """75 % lognormal(4.2, 0.6) below 100, 25 % bounded Pareto(1.1) on 100..1000: a stand-in for production.

    The production law was never released; what is known of it (sizes up to about 1000, a tail heavier than
    log-normal, the largest quarter of the queries holding about half of the work) this mixture has.
    """
    alpha, low, high = 1.1, 100.0**-1.1, 1000.0**-1.1
    size: F64Array = (low - rng.random(n) * (low - high)) ** (-1 / alpha)
    body = np.flatnonzero(rng.random(n) < 0.75)
    while len(body):
        size[body] = rng.lognormal(4.2, 0.6, len(body))
        body = body[size[body] >= 100.0]
    return size


def _production_times(factor: float = 1.0) -> SizeDraw:
    """Return the production-like law with every query so many times as large: a mix that has grown."""
    require(factor > 0 and math.isfinite(factor), "production needs a factor above 0")
    return lambda rng, n: _whole(_production_sizes(rng, n) * factor, PRODUCTION_MAX_SIZE * factor)


def _lognormal(mu: float, sigma: float, most: float = RELEASED_MAX_SIZE) -> SizeDraw:
    require(sigma >= 0 and most >= 1, "lognormal needs a sigma of at least 0 and a maximum of at least 1")
    # Sizes are clipped anyway: the exponent is too, so that an absurd one does not overflow.
    return lambda rng, n: _whole(np.exp(np.minimum(rng.normal(mu, sigma, n), 50.0)), most)


def _normal(mean: float, sigma: float, most: float = RELEASED_MAX_SIZE) -> SizeDraw:
    require(sigma >= 0 and most >= 1, "normal needs a deviation of at least 0 and a maximum of at least 1")
    return lambda rng, n: _whole(rng.normal(mean, sigma, n), most)


def _fixed(size: float) -> SizeDraw:
    require(1 <= size <= MAX_SIZE and size == int(size), "fixed needs a whole size of at least 1")
    return lambda _rng, n: np.full(n, int(size), dtype=np.int32)


def _mlperf(rng: Generator, n: int) -> I32Array:
    """MLPerf's query sizes for DLRM, mean 270."""
    twentieths = np.repeat([100, 200, 300, 400, 500, 600, 700], [2, 12, 2, 1, 1, 1, 1])
    return rng.choice(twentieths, n).astype(np.int32)


def empirical(sizes: Sequence[int] | NDArray[np.integer[Any]], spec: str = "empirical") -> SizeLaw:
    """Sizes drawn evenly, with replacement, from observed ones. Raises ValueError if empty or one is below 1."""
    observed = np.asarray(sizes).ravel()
    require(len(observed) > 0 and int(observed.min()) >= 1, "observed sizes: some, each at least 1")
    require(int(observed.max()) <= MAX_SIZE, f"observed sizes are at most {MAX_SIZE}")
    whole = observed.astype(np.int32)
    return SizeLaw(spec, lambda rng, n: rng.choice(whole, n))


ReadSizes = Callable[[str], NDArray[np.integer[Any]]]


def parse_sizes(spec: str, read: ReadSizes | None = None) -> SizeLaw:
    """Return the size law that a text such as ``production`` or ``lognormal:5.1,0.2`` names.

    ``read`` gets what follows ``empirical:`` and returns the sizes observed there; without it that law is unknown.
    Raises ValueError, listing the known laws, for any other text.
    """
    known = dict(_KNOWN)
    if read is not None:
        known["empirical"] = Form(
            "empirical:FILE[,COLUMN]", lambda where: empirical(read(where)).draw, text=True
        )
    return SizeLaw(spec, parse_law("size", known, spec))


_KNOWN: Mapping[str, Form] = {
    "production": Form("production[:FACTOR]", _production_times, 0, 1),
    "production-lognormal": Form("production-lognormal", lambda: _lognormal(4.6, 0.70, 1000)),
    "released": Form("released", lambda: _lognormal(5.1, 0.2)),
    "lognormal": Form("lognormal:MU,SIGMA[,MAX]", _lognormal, 2, 3),
    "normal": Form("normal[:MEAN,SIGMA[,MAX]]", lambda *a: _normal(*(a or (256.0, 32.0))), 0, 3),
    "fixed": Form("fixed:N", _fixed, 1, 1),
    "mlperf": Form("mlperf", lambda: _mlperf),
}
