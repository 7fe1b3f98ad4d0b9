"""What the batcher is told: the operating point and plan of each model, and the policy that shapes its batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

MERGE_FACTOR = 8.0
"""A batch merges queries until its candidates take so many times its fixed cost, see Plan.merge_up_to."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """The two knobs of DeepRecSched (paper: batch size and query-size threshold).

    ``batch_size``: the most candidates in one CPU inference, at least 1.
    ``offload_from``: queries of at least this size go whole to the accelerator; 1 offloads all, None none.
    """

    batch_size: int
    offload_from: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a point that cannot be run."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")
        if self.offload_from is not None and self.offload_from < 1:
            raise ValueError(f"offload_from must be at least 1 or None, not {self.offload_from}")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the batcher must know of one model.

    ``sla_s``: seconds of the tail-latency target; arrival + SLA orders queries, and never drops one.
    ``fixed_s`` and ``per_candidate_s``: a batch of n candidates is predicted to run fixed_s + per_candidate_s * n.
    ``smallest_cut``: below this many candidates cutting a query over idle workers stops paying.
    ``largest_batch``: what the model itself accepts. ``whole``: one query is one inference, never split or shared.

    ``merge_up_to``: the size at which a batch takes no further query in: its fixed cost is then a ninth of its time. It
    is also the least that a worker takes off a short queue for others to share. Merging on would save less and less,
    while the small queries in it wait for all of it to run. Where the seconds per candidate are unknown, as at a cold
    start, nothing but the batch size bounds it. ``most``: the most candidates of a batch, by point and model.
    ``least_taken``: the least that a worker takes off a queue, cut or merged.
    """

    point: OperatingPoint
    sla_s: float
    fixed_s: float = 0.0
    per_candidate_s: float = 0.0
    smallest_cut: int = 1
    largest_batch: int = 1 << 30
    whole: bool = False
    merge_up_to: int = field(init=False, repr=False, compare=False)
    most: int = field(init=False, repr=False, compare=False)
    least_taken: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Work out once what the batcher asks for every batch."""
        most = max(1, min(self.point.batch_size, self.largest_batch))
        merged = self.point.batch_size
        if self.per_candidate_s > 0:
            merged = math.ceil(MERGE_FACTOR * self.fixed_s / self.per_candidate_s)
        object.__setattr__(self, "most", most)
        object.__setattr__(self, "merge_up_to", merged)
        object.__setattr__(self, "least_taken", max(merged, self.smallest_cut))

    def run_s(self, candidates: int) -> float:
        """Return the predicted seconds of one batch of so many candidates."""
        return self.fixed_s + self.per_candidate_s * candidates


@dataclass(frozen=True, slots=True)
class Policy:
    """How the batcher orders and shapes work.

    ``overtaking``: None is first come first served. A number orders by due time + overtaking * predicted remaining
    seconds: short queries go first, yet nothing that arrives later than overtaking * remaining seconds after a query
    of the same SLA can pass it. The number is scaled down where sizes spread by less than their mean.
    ``coalesce``: slices of several queries may share a batch. ``cut``: workers share what waits, idle ones evenly.
    """

    name: str
    overtaking: float | None
    coalesce: bool
    cut: bool


POLICIES: Mapping[str, Policy] = {
    "static": Policy("static", overtaking=None, coalesce=False, cut=False),
    "paper": Policy("paper", overtaking=None, coalesce=False, cut=False),
    "adaptive": Policy("adaptive", overtaking=4.0, coalesce=True, cut=True),
}
"""``static`` and ``paper`` shape batches alike (split in order of arrival); they differ in who sets the point."""
