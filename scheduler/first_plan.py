"""The plan that a model starts with: read off a handful of timed batches, before any query has come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scheduler.latency import LinearFit, fit_line
from scheduler.plan import OperatingPoint, Plan

NEAR_CHEAPEST = 1.02
"""Of the batch sizes within so much of the cheapest seconds per candidate the smallest is taken: it waits least."""

HANDOVER_S = 1e-4
"""Seconds of handing a batch to a worker and back: what it costs the scheduler beside what the engine takes."""


def untuned_plan(fit: LinearFit, sla_s: float) -> Plan:
    """Return the plan of batches that take ``fit``, but for its point: it holds single candidates until one is set."""
    return Plan(OperatingPoint(1), sla_s, fit.fixed_s, fit.per_candidate_s, fit.smallest_cut)


def first_plan(
    sizes: Sequence[int], seconds: Sequence[float], *, sla_s: float, largest_batch: int, whole: bool = False
) -> Plan:
    """Return the plan for a model whose batches of ``sizes`` candidates took the engine ``seconds``.

    Batches that alone take more than half the target are left out where smaller ones exist. Raises ValueError
    without any timed batch.
    """
    if not sizes or len(sizes) != len(seconds):
        raise ValueError(f"{len(sizes)} sizes and {len(seconds)} seconds do not make a plan")
    timed = sorted((n, s + HANDOVER_S) for n, s in zip(sizes, seconds, strict=True))
    quick = [(n, s) for n, s in timed if s <= sla_s / 2] or timed[:1]
    cheapest = min(s / n for n, s in quick)
    batch_size = next(n for n, s in quick if s / n <= cheapest * NEAR_CHEAPEST)
    candidates, taken_s = np.array(timed, dtype=float).T
    fit = fit_line(candidates, taken_s, np.ones(len(timed)))
    return Plan(
        point=OperatingPoint(batch_size),
        sla_s=sla_s,
        fixed_s=fit.fixed_s,
        per_candidate_s=fit.per_candidate_s,
        smallest_cut=min(batch_size, fit.smallest_cut),
        largest_batch=largest_batch,
        whole=whole,
    )
