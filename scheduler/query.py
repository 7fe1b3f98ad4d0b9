"""What the batcher moves: queries, their slices in batches, and the instructions about them."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any, NamedTuple

from scheduler.plan import Plan


class DropReason(StrEnum):
    """Why a query ends without an answer from the models."""

    QUEUE_FULL = "queue full"
    EXPIRED = "deadline passed"
    FAILED = "inference failed"


class Query:
    """One query on its way through the batcher; ``payload`` is the caller's and never looked at.

    Times in seconds on one monotonic scale. ``due_s`` orders: the client's deadline or arrival + SLA, whichever is
    earlier. ``expires_s`` is the client's own deadline, the only one that ends a query; infinity without one.
    """

    __slots__ = (
        "arrival_s",
        "batches",
        "cut",
        "dropped",
        "due_s",
        "expires_s",
        "handed",
        "model",
        "offloaded",
        "overtaking",
        "payload",
        "plan",
        "scored",
        "size",
        "started_s",
        "tried_s",
    )

    def __init__(
        self,
        model: str,
        size: int,
        arrival_s: float,
        expires_s: float = math.inf,
        payload: Any = None,
    ) -> None:
        self.model = model
        self.size = size
        self.arrival_s = arrival_s
        self.expires_s = expires_s
        self.payload = payload
        self.due_s = expires_s
        self.plan: Plan | None = None  # the lane's until it begins; then it keeps it
        self.handed = 0  # candidates given to workers
        self.scored = 0  # candidates that came back
        self.batches = 0
        self.overtaking = 0.0  # the weight of its remaining seconds in the order
        self.cut = 0  # slice size chosen when idle workers shared it
        self.started_s = math.nan
        self.offloaded = False
        self.tried_s = math.nan  # when the accelerator was sent it that failed on it; the CPU answers
        self.dropped = False

    def __repr__(self) -> str:
        return f"Query({self.model}, size={self.size}, arrival_s={self.arrival_s:g})"


class Slice(NamedTuple):
    """Candidates ``start`` to ``stop`` (exclusive) of one query."""

    query: Query
    start: int
    stop: int


class Batch:
    """What one inference runs: slices of one or more queries of one model."""

    __slots__ = ("charged_s", "model", "size", "slices", "started_s")

    def __init__(
        self, model: str, slices: list[Slice], size: int, started_s: float, charged_s: float = 0.0
    ) -> None:
        self.model = model
        self.slices = slices
        self.size = size
        self.started_s = started_s
        self.charged_s = charged_s  # what its model's share was debited when it began

    def __repr__(self) -> str:
        return f"Batch({self.model}, {[(s.query, s.start, s.stop) for s in self.slices]})"


class Run(NamedTuple):
    """Run this batch on that worker now."""

    worker: int
    batch: Batch


class Offload(NamedTuple):
    """Send the whole query to the accelerator."""

    query: Query


class Complete(NamedTuple):
    """Every candidate of the query is scored."""

    query: Query


class Drop(NamedTuple):
    """The query ends without scores."""

    query: Query
    reason: DropReason


Instruction = Run | Offload | Complete | Drop
