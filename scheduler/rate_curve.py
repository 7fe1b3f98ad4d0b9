"""How the arrival rate varies over a run: steps, ramps and days, as straight lines between knots."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64Array = NDArray[np.float64]


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

    def at(self, time_s: F64Array) -> F64Array:
        """Return the factor at these times (float64 [Q]); at a jump the later one."""
        times, factor, _, slope = self._knots()
        if self.repeats:
            time_s = np.mod(time_s, times[-1])
        k = np.searchsorted(times, time_s, side="right") - 1
        return np.asarray(factor[k] + slope[k] * (time_s - times[k]))

    def most(self, from_s: float, until_s: float) -> float:
        """Return the largest factor between two times."""
        times, factor, _, _ = self._knots()
        if self.repeats and until_s - from_s >= times[-1]:
            return float(factor.max())
        ends = self.at(np.array([from_s, until_s]))
        if self.repeats:
            whole = times[-1] * math.floor(from_s / times[-1])
            times, factor = (
                np.concatenate((times + whole, times + whole + times[-1])),
                np.tile(factor, 2),
            )
        inside = factor[(times >= from_s) & (times <= until_s)]
        return float(max(ends.max(), inside.max(initial=0.0)))

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
