"""The plan that a model starts with: read off a handful of timed batches, before any query has come."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scheduler.batching import OperatingPoint, Plan

NEAR_CHEAPEST = 1.02
"""Of the batch sizes within so much of the cheapest seconds per candidate the smallest is taken: it waits least."""
HANDOVER_S = 1e-4
"""CPU seconds of handing one more batch to a worker and back; a cut pays when its piece is worth twice that."""


def first_plan(
    sizes: Sequence[int], seconds: Sequence[float], *, sla_s: float, largest_batch: int, whole: bool = False
) -> Plan:
    """Return the plan for a model whose batches of ``sizes`` candidates took ``seconds``.

    Batches that alone take more than half the target are left out where smaller ones exist. Raises ValueError
    without any timed batch.
    """
    if not sizes or len(sizes) != len(seconds):
        raise ValueError(f"{len(sizes)} sizes and {len(seconds)} seconds do not make a plan")
    timed = sorted(zip(sizes, seconds, strict=True))
    quick = [(n, s) for n, s in timed if s <= sla_s / 2] or timed[:1]
    cheapest = min(s / n for n, s in quick)
    batch_size = next(n for n, s in quick if s / n <= cheapest * NEAR_CHEAPEST)
    fixed_s, per_candidate_s = fit_line([n for n, _ in timed], [s for _, s in timed])
    return Plan(
        point=OperatingPoint(batch_size),
        sla_s=sla_s,
        fixed_s=fixed_s,
        per_candidate_s=per_candidate_s,
        smallest_cut=max(1, min(batch_size, math.ceil(2 * (fixed_s + HANDOVER_S) / per_candidate_s))),
        largest_batch=largest_batch,
        whole=whole,
    )


def fit_line(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Fit seconds = fixed + per_candidate * n with equal relative weight to every size; neither is negative."""
    n, s = np.asarray(sizes, dtype=float), np.asarray(seconds, dtype=float)
    if len(n) == 1:
        return 0.0, float(s[0] / n[0])
    weights = 1.0 / s
    (fixed_s, per_candidate_s), *_ = np.linalg.lstsq(
        np.column_stack([weights, n * weights]), np.ones_like(s), rcond=None
    )
    if per_candidate_s <= 0:
        return float(s.min()), float(s.min() / n.max() * 1e-3)
    if fixed_s < 0:
        return 0.0, float(np.median(s / n))
    return float(fixed_s), float(per_candidate_s)
