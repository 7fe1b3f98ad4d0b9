"""The dispatcher: carries out what the Batcher decides.

Everything here runs on the loop thread, which owns all mutable state; hence no lock. Workers get arrays and return
arrays.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from deeprecsys.errors import DeadlineExceededError, InternalError, OverloadedError, RankError
from deeprecsys.tensors import Array
from scheduler.attempt import attempt_s, is_hopeless
from scheduler.batching import Batcher
from scheduler.query import Batch, Complete, Drop, DropReason, Instruction, Offload, Query, Run
from services.rank.catalogue import ServedModel
from services.rank.engine import EngineError
from services.rank.offloading import Offloader
from services.rank.query_decoder import DecodedQuery
from services.rank.triton_link import Attempt, Offloaded, Part
from services.rank.workers import Outcome, Work, Workers

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scored:
    """A query's answer: ``outputs`` are the score output and then the further ones asked for, each [N, ...]."""

    outputs: list[Array]
    backend: str
    batches: int
    queue_s: float
    compute_s: float


@dataclass(slots=True)
class _Pending:
    """What the dispatcher keeps of a query while it is with the Batcher."""

    decoded: DecodedQuery
    model: ServedModel
    outputs: tuple[str, ...]
    answer: asyncio.Future[Scored]
    parts: list[Part] = field(default_factory=list)
    attempt: Attempt | None = None  # while the accelerator has it


class _Running(NamedTuple):
    """What a worker runs, and the outputs that it returns: all that any query of the batch asked for."""

    batch: Batch
    outputs: tuple[str, ...]


class Observer(Protocol):
    """Who learns from what happens; the scheduler's Controller is one. Times in seconds of the loop's clock."""

    def observe_arrival(self, query: Query, now: float) -> None:
        """Note a query that arrived."""

    def observe_batch(self, batch: Batch, run_s: float) -> None:
        """Note that a batch has run; ``run_s`` is how long it held its worker, handed over and back."""

    def observe(self, query: Query, now: float) -> None:
        """Note that a query has its answer."""


_DROPS: dict[DropReason, Callable[[], RankError]] = {
    DropReason.QUEUE_FULL: lambda: OverloadedError(
        "the queue of this model is full", retry_after_s=0.1, limit="queue_full"
    ),
    DropReason.EXPIRED: lambda: DeadlineExceededError("the deadline passed while the query was waiting"),
    DropReason.FAILED: lambda: InternalError("the inference failed"),
}


MIN_RETRY_S = 0.1


class Dispatcher:
    """Owns the Batcher, the workers and the queries in flight. Make and use it on the loop thread.

    ``max_queries``: more at once are refused. ``observers`` are told of every arrival, batch and answer.
    ``offloader`` takes the queries that the Batcher offloads; without one the CPU takes them. ``engine_s``: by model,
    the seconds that its batches spent in the engine.
    """

    def __init__(
        self,
        batcher: Batcher,
        workers: int,
        max_queries: int = 1024,
        observers: Sequence[Observer] = (),
        offloader: Offloader | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._batcher = batcher
        self._workers = Workers(workers, self._loop, self._on_outcome)
        self._running: list[_Running | None] = [None] * workers
        self._observers = tuple(observers)
        self._offloader = offloader
        self.max_queries = max_queries
        self._in_flight = 0
        self.engine_s: defaultdict[str, float] = defaultdict(float)
        self._reported_s: dict[str, float] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """How many queries have not been answered yet."""
        return self._in_flight

    async def score(self, model: ServedModel, decoded: DecodedQuery, time_left_s: float | None) -> Scored:
        """Score every candidate of a query.

        Raises OverloadedError when the model's queue or the server is full, or when the accelerator does not answer
        and the CPU cannot in time; DeadlineExceededError when ``time_left_s`` passes while the query waits,
        InternalError when the model fails. Cancelling gives the query up.
        """
        if self._in_flight >= self.max_queries:
            raise OverloadedError(
                f"{self.max_queries} queries are being answered already",
                retry_after_s=0.1,
                limit="server_full",
            )
        now = self._loop.time()
        outputs = (model.spec.score_output, *(o for o in decoded.outputs if o != model.spec.score_output))
        pending = _Pending(decoded, model, outputs, self._loop.create_future())
        expires_s = math.inf if time_left_s is None else now + time_left_s
        query = Query(model.spec.key, decoded.size, now, expires_s, pending)
        self._in_flight += 1
        self._idle.clear()
        try:
            for observer in self._observers:
                observer.observe_arrival(query, now)
            self._obey(self._batcher.arrive(query, now))
            return await pending.answer
        finally:
            self._batcher.cancel(query)  # no effect on a query that has ended
            if pending.attempt is not None:
                pending.attempt.cancel()
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def drained(self) -> None:
        """Wait until every query in flight has its answer."""
        await self._idle.wait()

    async def close(self) -> None:
        """End the workers, each after what it runs."""
        await asyncio.to_thread(self._workers.close)

    def _obey(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Run):
                self._start(instruction)
            elif isinstance(instruction, Complete):
                self._complete(instruction.query)
            elif isinstance(instruction, Offload):
                self._offload(instruction.query)
            elif isinstance(instruction, Drop):
                _refuse(instruction.query.payload, _DROPS[instruction.reason]())

    def _start(self, run: Run) -> None:
        slices = run.batch.slices
        first: _Pending = slices[0].query.payload
        outputs = first.outputs
        if len(slices) > 1:
            outputs = tuple(dict.fromkeys(name for part in slices for name in part.query.payload.outputs))
        rows = [(part.query.payload.decoded.inputs, part.start, part.stop) for part in slices]
        self._running[run.worker] = _Running(run.batch, outputs)
        self._workers.submit(
            run.worker, Work(first.model.engine, first.model.spec.inputs, rows, run.batch.size, outputs)
        )

    def _on_outcome(self, worker: int, outcome: Outcome) -> None:
        running = self._running[worker]
        assert running is not None
        self._running[worker] = None
        self.engine_s[running.batch.model] += outcome.engine_s
        now = self._loop.time()
        if outcome.fault is not None:
            self._report(running.batch, outcome.fault)
            self._obey(self._batcher.fail(worker, now))
            return
        _hand_out(running, outcome.outputs)
        self._obey(self._batcher.finish(worker, now))
        for observer in self._observers:
            observer.observe_batch(running.batch, now - running.batch.started_s)

    def _offload(self, query: Query) -> None:
        """Send a query to the accelerator if that leaves the CPU the time to answer should the accelerator not."""
        pending: _Pending = query.payload
        now = self._loop.time()
        limit_s = attempt_s(query, self._batcher.cpu_seconds(query, now), now)
        if self._offloader is None or limit_s <= 0:
            self._obey(self._batcher.offload_failed(query, now, tried=False))
            return
        inputs, done = pending.decoded.inputs, partial(self._on_offloaded, query)
        pending.attempt = self._offloader.begin(
            pending.model.spec, inputs, query.size, pending.outputs, limit_s, done
        )
        if pending.attempt is None:
            self._fall_back(query, tried=False)

    def _on_offloaded(self, query: Query, outcome: Offloaded) -> None:
        pending: _Pending = query.payload
        pending.attempt = None
        if outcome.fault is not None:
            self._fall_back(query, tried=not outcome.outage)
            return
        pending.parts = outcome.parts
        self._obey(self._batcher.offload_finished(query))

    def _fall_back(self, query: Query, *, tried: bool) -> None:
        """Give the CPU a query that no accelerator answered, or refuse it at once when the CPU would be too late."""
        now = self._loop.time()
        cpu_s = self._batcher.cpu_seconds(query, now, others=False)
        if not is_hopeless(query, cpu_s, now):
            self._obey(self._batcher.offload_failed(query, now, tried=tried))
            return
        self._batcher.cancel(query)
        refusal = OverloadedError(
            "the accelerator gives no answer, and the CPU is too busy to answer in time",
            retry_after_s=max(MIN_RETRY_S, cpu_s),
            limit="accelerator",
        )
        _refuse(query.payload, refusal)

    def _complete(self, query: Query) -> None:
        now = self._loop.time()
        _answer(query, now)
        for observer in self._observers:
            observer.observe(query, now)

    def _report(self, batch: Batch, fault: EngineError) -> None:
        """Log a failed batch: the trace at most once a second for each model, lest a flood of them delay others."""
        asked = [part.query.payload.decoded.request_id for part in batch.slices]
        extra = {"model": batch.model, "request_ids": [request_id for request_id in asked if request_id][:8]}
        now = self._loop.time()
        if now - self._reported_s.get(batch.model, -math.inf) < 1.0:
            return
        self._reported_s[batch.model] = now
        _log.error("inference failed", exc_info=fault, extra=extra)


def _hand_out(running: _Running, outputs: Sequence[Array]) -> None:
    """Give each query of the batch its rows of the outputs that it asked for."""
    row = 0
    for query, start, stop in running.batch.slices:
        pending: _Pending = query.payload
        end = row + stop - start
        asked = (
            outputs
            if pending.outputs == running.outputs
            else [outputs[running.outputs.index(name)] for name in pending.outputs]
        )
        pending.parts.append((start, [array[row:end] for array in asked]))
        row = end


def _answer(query: Query, now: float) -> None:
    pending: _Pending = query.payload
    if pending.answer.done():
        return
    parts = sorted(pending.parts, key=lambda part: part[0])
    outputs = parts[0][1]
    if len(parts) > 1:
        outputs = [np.concatenate(arrays) for arrays in zip(*(part[1] for part in parts), strict=True)]
    backend, batches = ("triton", len(parts)) if query.offloaded else ("cpu", query.batches)
    queue_s, compute_s = query.started_s - query.arrival_s, now - query.started_s
    pending.answer.set_result(Scored(outputs, backend, batches, queue_s, compute_s))


def _refuse(pending: _Pending, error: RankError) -> None:
    if not pending.answer.done():
        pending.answer.set_exception(error)
