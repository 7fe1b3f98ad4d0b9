"""Latency profiles: the seconds that batches take, by backend and batch size, as measured on one machine."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_GAP = 8.0
"""Neighbouring batch sizes further apart than this factor leave the seconds between them to guessing."""

LARGEST_FALL = 0.2
"""A larger batch may look this much faster than a smaller one: noise. More is a broken measurement."""

_Z95 = 1.6448536269514722


@dataclass(frozen=True)
class LatencyPoint:
    """Seconds that one inference of ``batch_size`` candidates took: the mean and three quantiles."""

    batch_size: int
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float

    @property
    def sigma(self) -> float:
        """The spread of the log-normal law with this p95 over p50."""
        return math.log(self.p95_s / self.p50_s) / _Z95


@dataclass(frozen=True)
class LatencyCurve:
    """Seconds by batch size. Raises ValueError, naming the entry, for points that cannot be a measurement.

    ``points`` ascend in batch size, each at most LARGEST_GAP times the one before, quantiles in order, means that
    never fall by more than LARGEST_FALL.
    """

    points: tuple[LatencyPoint, ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("a latency curve has at least one point")
        for point in self.points:
            _check_point(point)
        for left, right in zip(self.points, self.points[1:], strict=False):
            _check_pair(left, right)

    def mean_s(self, candidates: int) -> float:
        """Return the mean seconds of a batch, by straight lines between points; beyond them the outer line goes on.

        Never below the smallest point's mean times the share of its candidates. Raises ValueError below 1.
        """
        return self._interpolate([p.mean_s for p in self.points], candidates)

    def p99_s(self, candidates: int) -> float:
        """Return the 99th percentile of the seconds of a batch, interpolated as ``mean_s`` is."""
        return self._interpolate([p.p99_s for p in self.points], candidates)

    def _interpolate(self, seconds: Sequence[float], candidates: int) -> float:
        if candidates < 1:
            raise ValueError(f"a batch has at least 1 candidate, not {candidates}")
        sizes = [p.batch_size for p in self.points]
        if len(sizes) == 1:
            return seconds[0] * max(1.0, candidates / sizes[0])
        k = min(max(bisect_left(sizes, candidates), 1), len(sizes) - 1)
        slope = max(0.0, (seconds[k] - seconds[k - 1]) / (sizes[k] - sizes[k - 1]))
        return max(
            seconds[k - 1] + slope * (candidates - sizes[k - 1]), seconds[0] * min(1.0, candidates / sizes[0])
        )

    def table_s(self, largest: int) -> NDArray[np.float64]:
        """Return float64 [largest + 1]: the mean seconds of a batch of each size, the entry of size 0 being 0."""
        seconds, sizes = [p.mean_s for p in self.points], [p.batch_size for p in self.points]
        n = np.arange(1, largest + 1)
        if len(sizes) == 1:
            return np.concatenate(([0.0], seconds[0] * np.maximum(1.0, n / sizes[0])))
        x, y = np.array(sizes, float), np.array(seconds)
        k = np.clip(np.searchsorted(x, n), 1, len(x) - 1)
        slope = np.maximum(0.0, np.diff(y) / np.diff(x))[k - 1]
        line = y[k - 1] + slope * (n - x[k - 1])
        return np.concatenate(([0.0], np.maximum(line, y[0] * np.minimum(1.0, n / x[0]))))

    def fit(self) -> LinearFit:
        """Fit fixed_s + per_candidate_s * n to the means, least squares of the relative error, neither below 0."""
        n = np.array([p.batch_size for p in self.points], dtype=float)
        return fit_line(n, np.array([p.mean_s for p in self.points]), np.ones(len(n)))

    @property
    def sigma(self) -> float:
        """The median spread of the points: see LatencyPoint.sigma."""
        return float(np.median([p.sigma for p in self.points]))


def _check_point(point: LatencyPoint) -> None:
    name = f"batch size {point.batch_size}"
    if point.batch_size < 1:
        raise ValueError(f"{name}: batch sizes are at least 1")
    for entry in ("mean_s", "p50_s", "p95_s", "p99_s"):
        value = getattr(point, entry)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: {entry} must be finite and above 0, not {value}")
    if not point.p50_s <= point.p95_s <= point.p99_s:
        raise ValueError(f"{name}: p50_s, p95_s and p99_s must ascend")


def _check_pair(left: LatencyPoint, right: LatencyPoint) -> None:
    names = f"batch sizes {left.batch_size} and {right.batch_size}"
    if right.batch_size <= left.batch_size:
        raise ValueError(f"{names}: batch sizes must ascend")
    if right.batch_size > LARGEST_GAP * left.batch_size:
        raise ValueError(f"{names}: a gap of more than a factor of {LARGEST_GAP:g}")
    if right.mean_s < (1 - LARGEST_FALL) * left.mean_s:
        raise ValueError(f"{names}: mean_s falls from {left.mean_s:.3g} to {right.mean_s:.3g}")


@dataclass(frozen=True)
class LinearFit:
    """A batch of n candidates takes ``fixed_s + per_candidate_s * n`` seconds."""

    fixed_s: float
    per_candidate_s: float

    def run_s(self, candidates: float) -> float:
        """Return the seconds of a batch."""
        return self.fixed_s + self.per_candidate_s * candidates

    @property
    def smallest_cut(self) -> int:
        """The slice whose candidates take twice what one more batch costs: cutting finer costs more than it spreads."""
        overhead_s = 2 * self.fixed_s
        if self.per_candidate_s * (1 << 20) <= overhead_s:
            return 1 << 20 if overhead_s > 0 else 1
        return max(1, math.ceil(overhead_s / self.per_candidate_s - 1e-9))


def fit_line(
    candidates: NDArray[np.float64], seconds: NDArray[np.float64], weight: NDArray[np.float64]
) -> LinearFit:
    """Fit a LinearFit to float64 [P] candidates, seconds and weights, by least squares of the relative error.

    Neither part is below 0. Relative, since a long batch must not drown what the short ones tell of the fixed part.
    """
    w = weight / seconds**2
    total, n_mean = w.sum(), (w * candidates).sum() / w.sum()
    s_mean = (w * seconds).sum() / total
    spread = (w * (candidates - n_mean) ** 2).sum()
    per = (w * (candidates - n_mean) * (seconds - s_mean)).sum() / spread if spread > 0 else math.inf
    fixed = s_mean - per * n_mean
    if not fixed >= 0:  # also when all batches were of one size: then all is charged to the candidates
        per, fixed = (w * candidates * seconds).sum() / (w * candidates**2).sum(), 0.0
    if per < 0:
        per, fixed = 0.0, s_mean
    return LinearFit(float(fixed), float(per))


@dataclass(frozen=True)
class BackendProfile:
    """One backend's seconds: ``alone``, and ``busy`` with every core at work (the same curve when not measured).

    ``modelled``: derived from another backend, never measured.
    """

    name: str
    alone: LatencyCurve
    busy: LatencyCurve
    modelled: bool = False


@dataclass(frozen=True)
class LatencyProfile:
    """What one model takes on one machine: ``backends`` by name, ``cores`` that were busy in their ``busy`` curves.

    Raises ValueError for a profile without backends, with one twice, or with less than one core.
    """

    model: str
    cores: int
    backends: tuple[BackendProfile, ...]

    def __post_init__(self) -> None:
        names = [b.name for b in self.backends]
        if self.cores < 1:
            raise ValueError(f"cores must be at least 1, not {self.cores}")
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a profile has each backend once and at least one, not {names}")

    def backend(self, name: str) -> BackendProfile:
        """Return one backend's profile; ValueError, naming what there is, when it was not measured."""
        for backend in self.backends:
            if backend.name == name:
                return backend
        known = ", ".join(b.name for b in self.backends)
        raise ValueError(f"the profile of {self.model} has no backend {name!r}; it has {known}")

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as JSON-able data that ``from_dict`` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatencyProfile:
        """Read what ``to_dict`` wrote. Raises ValueError naming the entry that is missing, unknown or nonsense."""
        model = _entry(data, "model", str, "profile")
        cores = _entry(data, "cores", int, "profile")
        backends = _entry(data, "backends", list | tuple, "profile")
        return cls(model, cores, tuple(_backend(item, k) for k, item in enumerate(backends)))


def accelerated(
    cpu: BackendProfile, speedup: Mapping[int, float], name: str = "accelerator"
) -> BackendProfile:
    """Return a modelled accelerator: t(b) = t_cpu(b) / speedup(b), after the paper's released speed-up table.

    ``speedup`` by batch size, interpolated on the logarithm of the batch size and held constant outside; the
    quantiles scale with the mean. Raises ValueError for an empty table or a speed-up that is not above 0.
    """
    if not speedup or not all(n >= 1 and math.isfinite(s) and s > 0 for n, s in speedup.items()):
        raise ValueError("a speed-up table has batch sizes of at least 1 and speed-ups above 0")
    sizes = sorted(speedup)
    logs, factors = [math.log(n) for n in sizes], [speedup[n] for n in sizes]

    def faster(point: LatencyPoint) -> LatencyPoint:
        s = float(np.interp(math.log(point.batch_size), logs, factors))
        return LatencyPoint(
            point.batch_size, point.mean_s / s, point.p50_s / s, point.p95_s / s, point.p99_s / s
        )

    points: list[LatencyPoint] = []
    for point in map(faster, cpu.alone.points):
        # Where the speed-up outgrows the batch the quotient falls; no larger batch is faster than a smaller one.
        slower = max(1.0, points[-1].mean_s / point.mean_s) if points else 1.0
        points.append(LatencyPoint(point.batch_size, *(getattr(point, q) * slower for q in _SECONDS)))
    curve = LatencyCurve(tuple(points))
    return BackendProfile(name, curve, curve, modelled=True)


_SECONDS = ("mean_s", "p50_s", "p95_s", "p99_s")


def _entry(data: Any, key: str, kind: Any, where: str) -> Any:
    if not isinstance(data, Mapping) or key not in data:
        raise ValueError(f"{where}: {key} is missing")
    value = data[key]
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise ValueError(f"{where}: {key} is {value!r}, which is not of the right kind")
    return value


def _backend(data: Any, index: int) -> BackendProfile:
    name = _entry(data, "name", str, f"backend {index}")
    alone, busy = (_curve(_entry(data, key, Mapping, name), f"{name}, {key}") for key in ("alone", "busy"))
    return BackendProfile(name, alone, busy, _entry(data, "modelled", bool, name))


def _curve(data: Mapping[str, Any], where: str) -> LatencyCurve:
    points = []
    for index, item in enumerate(_entry(data, "points", list | tuple, where)):
        at = f"{where}, point {index}"
        size = _entry(item, "batch_size", int, at)
        points.append(LatencyPoint(size, *(float(_entry(item, key, int | float, at)) for key in _SECONDS)))
        if unknown := set(item) - {f.name for f in fields(LatencyPoint)}:
            raise ValueError(f"{at}: unknown entries {sorted(unknown)}")
    try:
        return LatencyCurve(tuple(points))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
