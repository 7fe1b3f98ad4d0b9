"""A link: one model at one Triton endpoint, and the queries that are on their way through it.

Everything runs on the loop thread. A query's outcome is told exactly once.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

from deeprecsys.tensors import Array
from scheduler.breaker import Breaker, BreakerState, Patience
from services.rank.catalogue import ServedModel
from services.rank.engine import EngineError
from services.rank.triton_admission import Terms
from services.rank.triton_endpoint import Endpoint, EndpointAwayError, EndpointBusyError
from services.rank.triton_memory import Block, TensorMemory
from services.rank.triton_messages import block_bytes, infer_request, read_answer

HANG_TARGETS = 5
"""A server that says nothing for so many times a model's target hangs: whatever it does, it is of no use."""

Part = tuple[int, list[Array]]
"""The first candidate of a slice, and the slice's outputs in the order asked for."""


class Offloaded(NamedTuple):
    """What became of an attempt: parts that make up the whole query, or the fault."""

    parts: list[Part]
    fault: EngineError | None

    @property
    def outage(self) -> bool:
        """Whether the endpoint was away, which tells nothing of how long it takes."""
        return isinstance(self.fault, EndpointAwayError)


Done = Callable[[Offloaded], None]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that may be on the way to one endpoint: queries, and bytes of their tensors.

    ``shared_bytes``: memory shared with each endpoint, through which the tensors go; 0 puts them into messages.
    """

    queries: int = 128
    tensor_bytes: int = 256 << 20
    shared_bytes: int = 0


@dataclass(frozen=True, slots=True)
class LinkState:
    """Where one endpoint stands for one model; ``reason`` says why no query is sent there, "" when they are."""

    endpoint: str
    ready: bool
    reason: str


class Attempt:
    """One query on its way through an endpoint."""

    __slots__ = ("_done", "_task", "link", "over", "sent_s", "size", "tensor_bytes")

    def __init__(self, link: Link, size: int, tensor_bytes: int, sent_s: float, done: Done) -> None:
        self.link = link
        self.size = size
        self.tensor_bytes = tensor_bytes
        self.sent_s = sent_s
        self.over = False
        self._done = done
        self._task: asyncio.Task[None] | None = None
        link.attempts.add(self)
        link.endpoint.queries += 1
        link.endpoint.candidates += size
        link.endpoint.tensor_bytes += tensor_bytes

    def follow(self, task: asyncio.Task[None]) -> None:
        """Note the task that makes the attempt, so that it can be cancelled."""
        self._task = task

    def cancel(self) -> None:
        """Give the query up: its call is cancelled and its outcome is told to nobody. Harmless once it is over."""
        if self._end("cancelled") and self._task is not None:
            self._task.cancel()

    def abandon(self, fault: EngineError) -> None:
        """Stop waiting for the endpoint: the call is cancelled, and the fault is the outcome."""
        if self._end(_word(fault)):
            if self._task is not None:
                self._task.cancel()
            self._done(Offloaded([], fault))

    def finish(self, outcome: Offloaded) -> None:
        """Tell the outcome, unless the attempt was given up."""
        if self._end(_word(outcome.fault)):
            self._done(outcome)

    def _end(self, how: str) -> bool:
        if self.over:
            return False
        self.over = True
        self.link.ended[how] += 1
        endpoint = self.link.endpoint
        self.link.attempts.discard(self)
        endpoint.queries -= 1
        endpoint.candidates -= self.size
        endpoint.tensor_bytes -= self.tensor_bytes
        return True


class Link:
    """One model at one endpoint: its breaker, the terms it was admitted on, and the attempts that are on their way.

    ``ended`` counts the attempts that are over by what became of them: answered, busy, away, failed (which is also
    a limit that passed) or cancelled. ``openings``: how often the breaker opened.
    """

    def __init__(
        self, endpoint: Endpoint, memory: TensorMemory | None, model: ServedModel, patience: Patience
    ) -> None:
        self.endpoint = endpoint
        self.memory = memory
        self.model = model
        self.spec = spec = model.spec
        hang_s = max(patience.hang_s, HANG_TARGETS * spec.sla.seconds)
        self.breaker = Breaker(replace(patience, hang_s=hang_s))
        self.watch: asyncio.TimerHandle | None = None  # while attempts are on their way
        self.terms = Terms(frozenset(), 1)
        self.attempts: set[Attempt] = set()
        self.ended: Counter[str] = Counter(answered=0, busy=0, away=0, failed=0, cancelled=0)
        self.openings = 0
        self.reason = "has not been asked yet"
        self.reported_s = -math.inf  # when a failure that is no outage was last logged

    @property
    def ready(self) -> bool:
        """Whether queries are sent there."""
        return self.breaker.state is BreakerState.CLOSED

    def takes(self, outputs: Sequence[str], tensor_bytes: int, bounds: Bounds) -> bool:
        """Whether the endpoint can be sent a query of so many bytes that asks for these outputs."""
        endpoint = self.endpoint
        return (
            self.ready
            and self.terms.outputs.issuperset(outputs)
            and endpoint.queries < bounds.queries
            and endpoint.tensor_bytes + tensor_bytes <= bounds.tensor_bytes
        )

    async def infer(
        self, inputs: Sequence[Array], size: int, outputs: Sequence[str], limit_s: float
    ) -> list[Part]:
        """Score a query in as many inferences as the endpoint needs, all at once; the first fault ends all."""
        inferences = -(-size // self.terms.largest_batch)
        largest = -(-size // inferences)
        if inferences == 1:
            return [await self._infer(inputs, 0, size, outputs, limit_s)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(
                        self._infer(inputs, start, min(start + largest, size), outputs, limit_s)
                    )
                    for start in range(0, size, largest)
                ]
        except ExceptionGroup as faults:
            # Not except*: before Python 3.11.4 what it raises comes out in a group again.
            raise _chief(faults) from None
        return [task.result() for task in tasks]

    async def _infer(
        self, inputs: Sequence[Array], start: int, stop: int, outputs: Sequence[str], limit_s: float
    ) -> Part:
        with self._lend(block_bytes(inputs, stop - start)) as block:
            request = infer_request(self.spec, inputs, start, stop, outputs, limit_s, block)
            response = await self.endpoint.infer(request, limit_s)
        return start, read_answer(response, self.spec, outputs, stop - start)

    def _lend(self, count: int) -> AbstractContextManager[Block | None]:
        return nullcontext() if self.memory is None else self.memory.lend(count)


def _word(fault: EngineError | None) -> str:
    """Return what became of an attempt in a word of ``Link.ended``."""
    if fault is None:
        return "answered"
    if isinstance(fault, EndpointBusyError):
        return "busy"
    return "away" if isinstance(fault, EndpointAwayError) else "failed"


def _chief(group: ExceptionGroup[Exception]) -> Exception:
    """Return the fault that a group of slices stands for: one that nobody foresaw, else the first."""
    return next(
        (fault for fault in group.exceptions if not isinstance(fault, EngineError)), group.exceptions[0]
    )
