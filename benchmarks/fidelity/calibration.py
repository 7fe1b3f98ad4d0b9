"""The simulated node's profile and front end, from a live run: what batches took, and what queries took beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.latency import BackendProfile, LatencyCurve, LatencyPoint

F64Array = NDArray[np.float64]

LEAST_BATCHES = 20
"""A size that fewer batches had joins the next larger one."""

ALONE, BUSY = 0.4, 0.8
"""A batch ran alone, or with all cores busy, when the mean of the others at work was below this share, or above."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One batch of a live run: its candidates, when it was handed to a worker, and the seconds until it was back."""

    size: int
    started_s: float
    run_s: float


def profile_of(ran: Sequence[Ran], cores: int) -> BackendProfile:
    """Return the seconds by batch size, alone and beside others; of too few alone or busy, all stand for both.

    Raises ValueError for a run of less than LEAST_BATCHES batches.
    """
    others = company(ran) / max(1, cores - 1)
    alone = [each for each, share in zip(ran, others, strict=True) if share < ALONE]
    busy = [each for each, share in zip(ran, others, strict=True) if share > BUSY]
    every = curve_of(ran)
    enough = 10 * LEAST_BATCHES
    return BackendProfile(
        "cpu",
        curve_of(alone) if len(alone) >= enough else every,
        curve_of(busy) if len(busy) >= enough else every,
    )


def company(ran: Sequence[Ran]) -> F64Array:
    """Return float64 [B]: how many other batches were at work on average while each one ran."""
    started_s = np.array([each.started_s for each in ran])
    ended_s = started_s + np.array([each.run_s for each in ran])
    times_s = np.concatenate([started_s, ended_s])
    order = np.argsort(times_s, kind="stable")
    at_work = np.cumsum(np.concatenate([np.ones(len(ran)), -np.ones(len(ran))])[order])
    moments_s = times_s[order]
    work_s = np.concatenate([[0.0], np.cumsum(at_work[:-1] * np.diff(moments_s))])
    done_s = np.interp(ended_s, moments_s, work_s) - np.interp(started_s, moments_s, work_s)
    return np.asarray(done_s / np.maximum(ended_s - started_s, 1e-9) - 1.0)


def curve_of(ran: Sequence[Ran]) -> LatencyCurve:
    """Return the seconds by batch size, in quarters of an octave."""
    if len(ran) < LEAST_BATCHES:
        raise ValueError(f"{len(ran)} batches do not make a profile: at least {LEAST_BATCHES} are needed")
    by_size: defaultdict[int, list[Ran]] = defaultdict(list)
    for each in ran:
        by_size[round(4 * np.log2(each.size))].append(each)
    points: list[LatencyPoint] = []
    few: list[Ran] = []
    for _, some in sorted(by_size.items()):
        few += some
        if len(few) >= LEAST_BATCHES:
            points.append(_point(few))
            few = []
    return LatencyCurve(tuple(_rising(points)))


def _point(ran: Sequence[Ran]) -> LatencyPoint:
    """Return one point of a curve: seconds as of the mean size, by their share of it."""
    size = np.array([each.size for each in ran], dtype=float)
    mean = round(float(size.mean()))
    seconds = np.array([each.run_s for each in ran]) * (mean / size)
    p50_s, p95_s, p99_s = np.percentile(seconds, (50, 95, 99)).tolist()
    return LatencyPoint(mean, float(seconds.mean()), p50_s, p95_s, p99_s)


def _rising(points: Sequence[LatencyPoint]) -> list[LatencyPoint]:
    """Leave out what is faster than a smaller size: a disturbance, which a profile does not take."""
    kept: list[LatencyPoint] = []
    for point in points:
        if not kept or (point.batch_size > kept[-1].batch_size and point.mean_s >= kept[-1].mean_s):
            kept.append(point)
    return kept


def front_end_s(client_s: F64Array, server_s: F64Array) -> float:
    """Return what a query takes outside the dispatcher: the medians' difference, at the client and at the server."""
    return max(0.0, float(np.median(client_s) - np.median(server_s)))
