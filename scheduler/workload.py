"""The laws of load: when queries arrive, how many candidates they have, which table rows they touch.

Everything is drawn from a seed before a run starts, so that a live run, a simulated run and a repeated run see the
same queries at the same times. Laws are chosen by short texts such as ``poisson``, ``lognormal:5.1,0.2`` or
``zipf:1.05``; see ``parse_arrivals``, ``parse_sizes`` and ``parse_ids``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import DTypeLike, NDArray

F64Array = NDArray[np.float64]
I32Array = NDArray[np.int32]

MAX_QUERIES = 20_000_000
"""The most queries that one schedule may have: a schedule is held in memory as a whole."""

PRODUCTION_MAX_SIZE = 1000
"""The largest query of production traffic, in candidates, as reported by the paper (not re-checked): what `static`
divides by the cores."""

RELEASED_MAX_SIZE = 1024
"""The clip of the paper's released generator, in candidates; the default of the laws with parameters."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The queries of one run, drawn before it starts.

    arrival_s: float64 [Q], ascending, seconds from the start of the run, the first at or after 0.
    size: int32 [Q], candidates of each query, at least 1.
    """

    arrival_s: F64Array
    size: I32Array

    def __len__(self) -> int:
        return len(self.arrival_s)


# --- how the rate varies over a run ---


@dataclass(frozen=True)
class RateCurve:
    """The arrival rate over time as a multiple of a base rate: straight lines between knots.

    ``time_s`` ascends from 0; two knots at one time make a jump. After the last knot the rate stays, or with
    ``repeats`` the whole curve starts again. Raises ValueError for knots that make no curve.
    """

    time_s: tuple[float, ...] = (0.0,)
    factor: tuple[float, ...] = (1.0,)
    repeats: bool = False

    def __post_init__(self) -> None:
        knots = (*self.time_s, *self.factor)
        if not self.time_s or len(self.time_s) != len(self.factor) or not all(map(math.isfinite, knots)):
            raise ValueError("a rate curve needs one finite factor for each finite time")
        if self.time_s[0] != 0.0 or any(b < a for a, b in zip(self.time_s, self.time_s[1:], strict=False)):
            raise ValueError("the times of a rate curve ascend from 0")
        if min(self.factor) < 0.0 or (not self.repeats and self.factor[-1] <= 0.0):
            raise ValueError("the factors of a rate curve are at least 0 and the last one is above 0")
        if self.repeats and self._knots()[2][-1] <= 0.0:
            raise ValueError("a repeating rate curve needs a period above 0 with some rate above 0")

    def _knots(self) -> tuple[F64Array, F64Array, F64Array, F64Array]:
        """Return times, factors, area up to each knot and slope after each knot, all float64 [K]."""
        time_s, factor = np.array(self.time_s, np.float64), np.array(self.factor, np.float64)
        width = np.diff(time_s)
        area = np.concatenate(([0.0], np.cumsum(width * (factor[:-1] + factor[1:]) / 2)))
        slope = np.divide(np.diff(factor), width, out=np.zeros_like(width), where=width > 0)
        return time_s, factor, area, np.append(slope, 0.0)

    def area(self, time_s: float) -> float:
        """Return the integral of the factor from 0 to ``time_s``, in seconds at the base rate."""
        times, factor, area, slope = self._knots()
        whole = 0.0
        if self.repeats:
            whole, time_s = divmod(time_s, float(times[-1]))
        k = int(np.searchsorted(times, time_s, side="right")) - 1
        dt = time_s - times[k]
        return float(whole * area[-1] + area[k] + factor[k] * dt + slope[k] * dt * dt / 2)

    def inverse(self, area: F64Array) -> F64Array:
        """Return the times at which ``area(time)`` reaches the given values (float64 [Q], ascending)."""
        times, factor, knot_area, slope = self._knots()
        whole = np.zeros_like(area)
        if self.repeats:
            whole, area = np.divmod(area, knot_area[-1])
        k = np.searchsorted(knot_area, area, side="right") - 1
        rest = np.maximum(area - knot_area[k], 0.0)
        # The root of factor*dt + slope*dt^2/2 = rest in the form that stays exact for a slope near 0.
        below = factor[k] + np.sqrt(np.maximum(factor[k] ** 2 + 2 * slope[k] * rest, 0.0))
        dt = np.divide(2 * rest, below, out=np.zeros_like(rest), where=below > 0)
        return np.asarray(whole * times[-1] + times[k] + dt)


def step(at_s: float, factor: float) -> RateCurve:
    """Keep the base rate until ``at_s``, then ``factor`` times it."""
    return RateCurve((0.0, at_s, at_s), (1.0, 1.0, factor))


def ramp(from_s: float, to_s: float, factor: float) -> RateCurve:
    """Keep the base rate until ``from_s``, then rise in a straight line to ``factor`` times it at ``to_s``."""
    return RateCurve((0.0, from_s, to_s), (1.0, 1.0, factor))


def diurnal(period_s: float, trough: float) -> RateCurve:
    """Repeat a cosine day: ``trough`` times the base rate at 0 and at ``period_s``, the base rate half-way."""
    phase = np.linspace(0.0, 1.0, 49)
    factor = trough + (1.0 - trough) * (1.0 - np.cos(2 * np.pi * phase)) / 2
    return RateCurve(tuple((phase * period_s).tolist()), tuple(factor.tolist()), repeats=True)


# --- arrivals ---

GapDraw = Callable[[Generator, float, int], F64Array]


@dataclass(frozen=True)
class ArrivalLaw:
    """How queries follow each other: gaps at a base rate, stretched in time by a rate curve.

    ``gaps(rng, qps, n)`` draws n gaps in seconds with mean 1/qps. Stretching the arrivals of a Poisson process by
    the inverse of the rate's integral gives exactly the Poisson process with that varying rate (time rescaling).
    """

    spec: str
    gaps: GapDraw
    curve: RateCurve = field(default_factory=RateCurve)
    first_at_zero: bool = False

    def draw(
        self, rng: Generator, qps: float, *, duration_s: float | None = None, count: int | None = None
    ) -> F64Array:
        """Draw arrival times (float64 [Q], seconds): all before ``duration_s``, or exactly ``count`` of them."""
        end = math.inf if duration_s is None else self.curve.area(duration_s)
        wanted = count if count is not None else _enough(qps * end)
        times = self._base_times(rng, qps, wanted)
        while count is None and (not len(times) or times[-1] < end):
            more = times[-1] + np.cumsum(self.gaps(rng, qps, 1 + wanted // 4))
            times = np.concatenate((times, more))
        # A sum of even gaps may come out a rounding error short of the end, where no arrival belongs.
        return self.curve.inverse(times[times < end * (1 - 1e-12)])

    def _base_times(self, rng: Generator, qps: float, n: int) -> F64Array:
        gaps = self.gaps(rng, qps, n)
        times = np.cumsum(gaps)
        return times - gaps[0] if self.first_at_zero and n else times


def _enough(mean: float) -> int:
    """How many gaps nearly always cover a mean number of arrivals, so that one draw is the rule."""
    return math.ceil(mean + 6 * math.sqrt(mean)) + 16


def _exponential_gaps(rng: Generator, qps: float, n: int) -> F64Array:
    return rng.standard_exponential(n) / qps


def _even_gaps(_rng: Generator, qps: float, n: int) -> F64Array:
    return np.full(n, 1.0 / qps)


def _whole_millisecond_gaps(rng: Generator, qps: float, n: int) -> F64Array:
    # The reference code's law: far smoother than a Poisson process (its gaps' coefficient of variation is
    # sqrt(qps/1000), not 1), kept only to compare like with like.
    return rng.poisson(1000.0 / qps, n) / 1000.0


POISSON = ArrivalLaw("poisson", _exponential_gaps)
UNIFORM = ArrivalLaw("uniform", _even_gaps, first_at_zero=True)
COMPAT = ArrivalLaw("compat", _whole_millisecond_gaps)


def varying(curve: RateCurve, spec: str = "varying") -> ArrivalLaw:
    """Poisson arrivals whose rate follows a curve."""
    return ArrivalLaw(spec, _exponential_gaps, curve)


# --- sizes ---

SizeDraw = Callable[[Generator, int], I32Array]


@dataclass(frozen=True)
class SizeLaw:
    """How many candidates queries have: ``draw(rng, n)`` gives int32 [n], each at least 1."""

    spec: str
    draw: SizeDraw


def _whole(size: F64Array, most: float) -> I32Array:
    return np.clip(np.floor(size), 1, most).astype(np.int32)


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
    _require(factor > 0 and math.isfinite(factor), "production needs a factor above 0")
    return lambda rng, n: _whole(_production_sizes(rng, n) * factor, PRODUCTION_MAX_SIZE * factor)


def _lognormal(mu: float, sigma: float, most: float = RELEASED_MAX_SIZE) -> SizeDraw:
    _require(sigma >= 0 and most >= 1, "lognormal needs a sigma of at least 0 and a maximum of at least 1")
    # Sizes are clipped anyway: the exponent is too, so that an absurd one does not overflow.
    return lambda rng, n: _whole(np.exp(np.minimum(rng.normal(mu, sigma, n), 50.0)), most)


def _normal(mean: float, sigma: float, most: float = RELEASED_MAX_SIZE) -> SizeDraw:
    _require(sigma >= 0 and most >= 1, "normal needs a deviation of at least 0 and a maximum of at least 1")
    return lambda rng, n: _whole(rng.normal(mean, sigma, n), most)


def _fixed(size: float) -> SizeDraw:
    _require(1 <= size <= 2**31 - 1 and size == int(size), "fixed needs a whole size of at least 1")
    return lambda _rng, n: np.full(n, int(size), dtype=np.int32)


def _mlperf(rng: Generator, n: int) -> I32Array:
    """MLPerf's query sizes for DLRM, mean 270."""
    twentieths = np.repeat([100, 200, 300, 400, 500, 600, 700], [2, 12, 2, 1, 1, 1, 1])
    return rng.choice(twentieths, n).astype(np.int32)


def empirical(sizes: Sequence[int] | NDArray[np.integer[Any]], spec: str = "empirical") -> SizeLaw:
    """Sizes drawn evenly, with replacement, from observed ones. Raises ValueError if empty or one is below 1."""
    observed = np.asarray(sizes, dtype=np.int32).ravel()
    _require(len(observed) > 0 and int(observed.min()) >= 1, "observed sizes: some, each at least 1")
    return SizeLaw(spec, lambda rng, n: rng.choice(observed, n))


# --- ids of table rows ---

IdDraw = Callable[[Generator, int, int, DTypeLike], NDArray[Any]]


@dataclass(frozen=True)
class IdLaw:
    """Which rows of a table queries look up: ``draw(rng, rows, n, dtype)`` gives [n] ids from 0 to rows - 1."""

    spec: str
    draw: IdDraw


def _uniform_ids(rng: Generator, rows: int, n: int, dtype: DTypeLike) -> NDArray[Any]:
    ids: NDArray[Any] = rng.integers(0, rows, n, dtype=np.dtype(dtype).type)
    return ids


def _zipf_ids(exponent: float) -> IdDraw:
    _require(exponent > 0, "zipf needs an exponent above 0")

    def draw(rng: Generator, rows: int, n: int, dtype: DTypeLike) -> NDArray[Any]:
        ranks = _zipf_ranks(rng, exponent, rows, n)
        # Popular rows lie anywhere in a real table: a stride without common factor spreads the ranks.
        stride = max(1, int(rows * 0.6180339887))
        while math.gcd(stride, rows) != 1:
            stride += 1
        return ((ranks * stride) % rows).astype(dtype)

    return draw


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


# --- laws by name ---


class _Form(NamedTuple):
    """One entry of the known laws: how it is written, and the least and most numbers after the colon."""

    usage: str
    least: int
    most: int
    make: Callable[..., Any]


_ARRIVALS: Mapping[str, _Form] = {
    "poisson": _Form("poisson", 0, 0, lambda: POISSON),
    "uniform": _Form("uniform", 0, 0, lambda: UNIFORM),
    "compat": _Form("compat", 0, 0, lambda: COMPAT),
    "step": _Form("step:AT_S,FACTOR", 2, 2, lambda *a: varying(step(*a))),
    "ramp": _Form("ramp:FROM_S,TO_S,FACTOR", 3, 3, lambda *a: varying(ramp(*a))),
    "diurnal": _Form("diurnal:PERIOD_S,TROUGH", 2, 2, lambda *a: varying(diurnal(*a))),
}
_SIZES: Mapping[str, _Form] = {
    "production": _Form("production[:FACTOR]", 0, 1, _production_times),
    "production-lognormal": _Form("production-lognormal", 0, 0, lambda: _lognormal(4.6, 0.70, 1000)),
    "released": _Form("released", 0, 0, lambda: _lognormal(5.1, 0.2)),
    "lognormal": _Form("lognormal:MU,SIGMA[,MAX]", 2, 3, _lognormal),
    "normal": _Form("normal:MEAN,SIGMA[,MAX]", 0, 3, lambda *a: _normal(*(a or (256.0, 32.0)))),
    "fixed": _Form("fixed:N", 1, 1, _fixed),
    "mlperf": _Form("mlperf", 0, 0, lambda: _mlperf),
}
_IDS: Mapping[str, _Form] = {
    "uniform": _Form("uniform", 0, 0, lambda: _uniform_ids),
    "zipf": _Form("zipf:EXPONENT", 1, 1, _zipf_ids),
}

_Made = TypeVar("_Made")


def parse_arrivals(spec: str) -> ArrivalLaw:
    """Return the arrival law that a text such as ``poisson`` or ``step:20,2.25`` names.

    Factors multiply the rate that the schedule is drawn at: it is the rate before a step or ramp, and the peak of
    a diurnal curve. Raises ValueError, listing the known laws, for any other text.
    """
    law: ArrivalLaw = _parse("arrival", _ARRIVALS, spec)
    return ArrivalLaw(spec, law.gaps, law.curve, law.first_at_zero)


def parse_sizes(spec: str) -> SizeLaw:
    """Return the size law that a text such as ``production`` or ``lognormal:5.1,0.2`` names.

    Raises ValueError, listing the known laws, for any other text.
    """
    return SizeLaw(spec, _parse("size", _SIZES, spec))


def parse_ids(spec: str) -> IdLaw:
    """Return the id law that ``uniform`` or ``zipf:1.05`` names.

    Raises ValueError, listing the known laws, for any other text.
    """
    return IdLaw(spec, _parse("id", _IDS, spec))


def _parse(kind: str, known: Mapping[str, _Form], spec: str) -> Any:
    name, _, rest = spec.partition(":")
    form = known.get(name)
    listing = ", ".join(f.usage for f in known.values())
    if form is None:
        raise ValueError(f"unknown {kind} law {spec!r}; known: {listing}")
    try:
        numbers = [float(text) for text in rest.split(",")] if rest else []
    except ValueError:
        numbers = [math.nan]
    if not form.least <= len(numbers) <= form.most or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{kind} law {spec!r} must be written {form.usage}; known: {listing}")
    try:
        return form.make(*numbers)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{kind} law {spec!r}: {error}; it is written {form.usage}") from error


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(rule)


def draw_schedule(
    seed: int | Sequence[int],
    arrival_law: ArrivalLaw,
    size_law: SizeLaw,
    qps: float,
    *,
    duration_s: float | None = None,
    count: int | None = None,
    max_size: int | None = None,
) -> Schedule:
    """Draw the queries of a run: those that arrive before ``duration_s``, or exactly ``count`` of them.

    Arrivals and sizes come from separate streams of the seed, so changing one law leaves the other's draws alone.
    Sizes above ``max_size`` are cut to it. Raises ValueError for a rate, duration or count that makes no schedule.
    """
    _require(math.isfinite(qps) and qps > 0, f"the rate must be above 0 queries/s, not {qps}")
    _require((duration_s is None) != (count is None), "give either a duration or a count")
    if duration_s is not None:
        _require(
            math.isfinite(duration_s) and duration_s > 0, f"the duration must be above 0 s, not {duration_s}"
        )
    _require(count is None or count >= 1, f"the count must be at least 1, not {count}")
    expected = count if count is not None else qps * arrival_law.curve.area(duration_s or 0.0)
    _require(expected <= MAX_QUERIES, f"a schedule of {expected:.3g} queries exceeds {MAX_QUERIES}")
    arrivals, sizes = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    arrival_s = arrival_law.draw(arrivals, qps, duration_s=duration_s, count=count)
    size = size_law.draw(sizes, len(arrival_s))
    return Schedule(arrival_s, size if max_size is None else np.minimum(size, np.int32(max_size)))
