"""The laws of arrivals: when queries come.

A law is chosen by a short text such as ``poisson`` or ``bursty:8,0.1,0.5``; see ``parse_arrivals``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from scheduler.law_text import Form, parse_law, require
from scheduler.rate_curve import RateCurve, diurnal, ramp, step

F64Array = NDArray[np.float64]

MAX_QUERIES = 20_000_000
"""The most queries that one schedule may have: a schedule is held in memory as a whole."""

MAX_BURSTS = 500_000
"""The most bursts that one schedule may have: each is two knots of its rate's curve."""

GapDraw = Callable[[Generator, float, int], F64Array]
CurveDraw = Callable[[Generator, float], RateCurve]


@dataclass(frozen=True)
class ArrivalLaw:
    """How queries follow each other: gaps at a base rate, stretched in time by a rate curve.

    ``gaps(rng, qps, n)`` draws n gaps in seconds with mean 1/qps. Stretching the arrivals of a Poisson process by
    the inverse of the rate's integral gives exactly the Poisson process with that varying rate (time rescaling): what
    thinning gives, without drawing at the peak rate and throwing arrivals away.

    ``random_curve(rng, until_s)`` draws the curve up to ``until_s`` or beyond, of mean 1; None where ``curve`` holds.
    One seed gives one curve, whatever the rate, and a longer run only more of it.
    """

    spec: str
    gaps: GapDraw
    curve: RateCurve = field(default_factory=RateCurve)
    first_at_zero: bool = False
    random_curve: CurveDraw | None = None

    def mean_count(self, qps: float, duration_s: float) -> float:
        """Return how many queries arrive before ``duration_s`` in the mean."""
        return qps * self.curve.area(duration_s)

    def draw(
        self, rng: Generator, qps: float, *, duration_s: float | None = None, count: int | None = None
    ) -> F64Array:
        """Draw arrival times (float64 [Q], seconds): all before ``duration_s``, or exactly ``count`` of them.

        Raises ValueError for more than MAX_QUERIES or MAX_BURSTS.
        """
        random_curve = self.random_curve
        seed = None if random_curve is None else int(rng.integers(2**63))

        def curve_until(time_s: float) -> RateCurve:
            return self.curve if random_curve is None else random_curve(np.random.default_rng(seed), time_s)

        if duration_s is None:
            times = self._base_times(rng, qps, count or 0)
            until_s, curve = times[-1], curve_until(times[-1])
            while random_curve is not None and curve.area(until_s) < times[-1]:
                until_s *= 2
                curve = curve_until(until_s)
            return curve.inverse(times)
        curve = curve_until(duration_s)
        return curve.inverse(self._base_times_before(rng, qps, curve.area(duration_s)))

    def _base_times_before(self, rng: Generator, qps: float, end: float) -> F64Array:
        require(qps * end <= MAX_QUERIES, f"a schedule of {qps * end:.3g} queries exceeds {MAX_QUERIES}")
        wanted = _enough(qps * end)
        times = self._base_times(rng, qps, wanted)
        while times[-1] < end:
            more = times[-1] + np.cumsum(self.gaps(rng, qps, 1 + wanted // 4))
            times = np.concatenate((times, more))
        # A sum of even gaps may come out a rounding error short of the end, where no arrival belongs.
        return times[times < end * (1 - 1e-12)]

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


def bursty(ratio: float, share: float, dwell_s: float, spec: str = "bursty") -> ArrivalLaw:
    """Poisson arrivals whose rate jumps between two levels: a two-state Markov-modulated Poisson process.

    In a burst the rate is ``ratio`` times that between bursts; bursts take ``share`` of the time and last ``dwell_s``
    seconds in the mean, both they and the times between them being exponential. The mean rate is the base rate.
    """
    require(ratio >= 1, "the ratio of the two rates is at least 1")
    require(0 < share < 1, "the share of time in bursts is above 0 and below 1")
    require(dwell_s > 0, "bursts last more than 0 s")
    calm = 1.0 / (1.0 - share + ratio * share)
    mean_s = np.array([dwell_s * (1.0 - share) / share, dwell_s])
    level = np.array([calm, ratio * calm])

    def curve(rng: Generator, until_s: float) -> RateCurve:
        bursts = until_s * share / dwell_s
        require(
            bursts <= MAX_BURSTS,
            f"{bursts:.3g} bursts in {until_s:g} s exceed {MAX_BURSTS}: let them last longer",
        )
        first = int(rng.random() < share)
        state_seed = int(rng.integers(2**63))
        stays = 2 * _enough(bursts)
        while True:
            state = (first + np.arange(stays)) % 2
            ends_s = np.cumsum(np.random.default_rng(state_seed).standard_exponential(stays) * mean_s[state])
            if ends_s[-1] >= until_s:
                break
            stays *= 2
        # Two knots at the end of each stay, one at the level before it and one at the level after.
        time_s = np.concatenate(([0.0], np.repeat(ends_s[:-1], 2), ends_s[-1:]))
        return RateCurve(tuple(time_s.tolist()), tuple(np.repeat(level[state], 2).tolist()))

    return ArrivalLaw(spec, _exponential_gaps, random_curve=curve)


_KNOWN: Mapping[str, Form] = {
    "poisson": Form("poisson", lambda: POISSON),
    "uniform": Form("uniform", lambda: UNIFORM),
    "compat": Form("compat", lambda: COMPAT),
    "bursty": Form("bursty:RATIO,SHARE,DWELL_S", bursty, 3, 3),
    "step": Form("step:AT_S,FACTOR", lambda *a: varying(step(*a)), 2, 2),
    "ramp": Form("ramp:FROM_S,TO_S,FACTOR", lambda *a: varying(ramp(*a)), 3, 3),
    "diurnal": Form("diurnal:PERIOD_S,TROUGH", lambda *a: varying(diurnal(*a)), 2, 2),
}


def parse_arrivals(spec: str) -> ArrivalLaw:
    """Return the arrival law that a text such as ``poisson`` or ``step:20,2.25`` names.

    Factors multiply the rate that the schedule is drawn at: it is the rate before a step or ramp, the peak of a diurnal
    curve, and the mean of a bursty law. Raises ValueError, listing the known laws, for any other text.
    """
    law: ArrivalLaw = parse_law("arrival", _KNOWN, spec)
    return replace(law, spec=spec)
