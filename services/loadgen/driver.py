"""Sends a schedule that was drawn beforehand and records what comes back.

Open loop: every query is sent at its scheduled time whatever happened to the ones before, and its latency counts from
that time, so neither a slow server nor a slow driver can hide queueing. Closed loop: a number of queries is always in
flight.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray

from services.loadgen.recording import DROPPED, NOT_SENT, OK, UNFINISHED, Progress, Trace, code_name
from services.loadgen.transport import SendFailedError, Transport

PROGRESS_EVERY_S = 1.0
"""Drawing a progress line holds a core for milliseconds: once a second it stays below one query in a hundred."""

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Plan:
    """What to send: ``arrival_s`` float64 [Q] ascending seconds from the start (closed loop ignores the times).

    ``payload``: int64 [Q], for each query its index in ``payloads``.
    """

    arrival_s: NDArray[np.float64]
    payload: NDArray[np.int64]
    payloads: tuple[bytes, ...]


@dataclass(frozen=True)
class Limits:
    """The bounds of a run.

    deadline_s: each query's deadline from its scheduled time, None for none.
    drain_s: how long after the last arrival answers are awaited.
    max_in_flight, max_in_flight_bytes: beyond either a query is dropped and counts as failed.
    unavailable_limit: so many UNAVAILABLE in a row end the run, None for never.
    """

    deadline_s: float | None = None
    drain_s: float = 2.0
    max_in_flight: int = 20_000
    max_in_flight_bytes: int = 1 << 30
    unavailable_limit: int | None = 500


async def drive(
    plan: Plan,
    transport: Transport,
    limits: Limits = Limits(),
    *,
    concurrency: int | None = None,
    start_s: float | None = None,
    stop: asyncio.Event | None = None,
    on_progress: OnProgress | None = None,
) -> Trace:
    """Drive one run. Setting ``stop`` ends it at once, keeping what was measured.

    concurrency: None sends every query at its time; else so many are kept in flight until the plan is done, and a
    query's scheduled time is when it is sent. start_s: when the run begins, on the loop's clock; at once when None.
    """
    run = _Run(plan, transport, limits, start_s)
    if concurrency is None:
        run.send_due()
    else:
        run.timers["send"] = run.loop.call_at(run.start_s, run.keep_in_flight, concurrency)
    return await run.until_end(stop, on_progress)


class _Run:
    """The state of one run: the next query, what is in flight, what came back, and why it ends."""

    def __init__(self, plan: Plan, transport: Transport, limits: Limits, start_s: float | None) -> None:
        count = len(plan.payload)
        self.plan, self.transport, self.limits, self.count = plan, transport, limits, count
        self.scheduled_s = np.array(plan.arrival_s, dtype=np.float64)
        self.latency_s = np.full(count, math.inf)
        self.lag_s = np.full(count, math.nan)
        self.code = np.full(count, NOT_SENT, dtype=np.int16)
        self.latest: deque[float] = deque(maxlen=2000)
        self.counts: Counter[int] = Counter()
        self.next = 0
        self.unavailable_in_a_row = 0
        self.in_flight_bytes = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.timers: dict[str, asyncio.TimerHandle] = {}
        self.cut_short: str | None = None
        self.fault: BaseException | None = None
        self.loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()
        self.cpu_start_s = time.process_time()
        self.start_s = self.loop.time() if start_s is None else start_s
        if not count:
            self.ended.set()

    def now_s(self) -> float:
        return self.loop.time() - self.start_s

    # --- sending ---

    def send_due(self) -> None:
        """Send what is due and set one timer for the next arrival; after the last one, for the end of the drain."""
        now_s = self.now_s()
        while self.next < self.count and self.scheduled_s[self.next] <= now_s and not self.ended.is_set():
            self._launch(self.next)
            self.next += 1
        if self.next < self.count:
            when = self.start_s + float(self.scheduled_s[self.next])
            self.timers["send"] = self.loop.call_at(when, self.send_due)
        else:
            self.timers["drain"] = self.loop.call_later(self.limits.drain_s, self.ended.set)
            self._end_if_done()

    def _launch(self, query: int) -> None:
        payload = self.plan.payloads[self.plan.payload[query]]
        crowded = len(self.tasks) >= self.limits.max_in_flight
        if crowded or (self.tasks and self.in_flight_bytes + len(payload) > self.limits.max_in_flight_bytes):
            self._record(query, DROPPED)
            return
        self.in_flight_bytes += len(payload)
        self._start(self._ask(query, payload))

    def keep_in_flight(self, concurrency: int) -> None:
        for _ in range(min(concurrency, self.count)):
            self._start(self._ask_in_turn())

    async def _ask_in_turn(self) -> None:
        while self.next < self.count and not self.ended.is_set():
            query = self.next
            self.next += 1
            self.scheduled_s[query] = self.now_s()
            payload = self.plan.payloads[self.plan.payload[query]]
            self.in_flight_bytes += len(payload)
            await self._ask(query, payload)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        # A fault of the transport or of this driver, unlike a failed query, must not pass for a measurement.
        if not task.cancelled() and (fault := task.exception()) is not None:
            self.fault = fault
            self.ended.set()
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self.next >= self.count and not self.tasks:
            self.ended.set()

    # --- recording ---

    async def _ask(self, query: int, payload: bytes) -> None:
        lag_s = self.now_s() - self.scheduled_s[query]
        self.lag_s[query] = lag_s
        self.code[query] = UNFINISHED
        deadline_s = self.limits.deadline_s
        try:
            await self.transport.send(payload, None if deadline_s is None else max(0.0, deadline_s - lag_s))
        except SendFailedError as failure:
            self._record(query, failure.code.value[0])
        else:
            self.latency_s[query] = self.now_s() - self.scheduled_s[query]
            self._record(query, OK)
        finally:
            self.in_flight_bytes -= len(payload)

    def _record(self, query: int, code: int) -> None:
        self.code[query] = code
        self.counts[code] += 1
        self.latest.append(float(self.latency_s[query]))
        gone = code == grpc.StatusCode.UNAVAILABLE.value[0]
        self.unavailable_in_a_row = self.unavailable_in_a_row + 1 if gone else 0
        if self.unavailable_in_a_row == self.limits.unavailable_limit:
            self._cut(f"the server is unavailable: {self.unavailable_in_a_row} queries in a row failed")

    def _cut(self, reason: str) -> None:
        self.cut_short = self.cut_short or reason
        self.ended.set()

    # --- ending ---

    async def until_end(self, stop: asyncio.Event | None, on_progress: OnProgress | None) -> Trace:
        if on_progress is not None:
            self._show(on_progress)
        stopping = self.loop.create_task(self._cut_on(stop)) if stop is not None else None
        try:
            await self.ended.wait()
        finally:
            wall_s, cpu_s = max(0.0, self.now_s()), time.process_time() - self.cpu_start_s
            await self._cancel_all(stopping)
        if self.fault is not None:
            raise self.fault
        return self._trace(wall_s, cpu_s)

    async def _cut_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._cut("stopped by the user")

    async def _cancel_all(self, stopping: asyncio.Task[None] | None) -> None:
        self.ended.set()
        for timer in self.timers.values():
            timer.cancel()
        left = [*self.tasks, *([stopping] if stopping is not None else [])]
        for task in left:
            task.cancel()
        # Half a second is far more than a cancelled call needs; a stuck one must not hold the end back.
        if left:
            await asyncio.wait(left, timeout=0.5)

    def _show(self, on_progress: OnProgress) -> None:
        codes = {code_name(code): n for code, n in sorted(self.counts.items())}
        last_s = float(self.plan.arrival_s[-1]) if self.count else 0.0
        latest_s = np.array(self.latest, dtype=np.float64)
        on_progress(Progress(self.now_s(), last_s, self.next, self.count, codes, latest_s))
        self.timers["show"] = self.loop.call_later(PROGRESS_EVERY_S, self._show, on_progress)

    def _trace(self, wall_s: float, cpu_s: float) -> Trace:
        cut = self.cut_short is not None
        kept = (
            np.flatnonzero((self.code != NOT_SENT) & (self.code != UNFINISHED))
            if cut
            else np.arange(self.count)
        )
        return Trace(
            query=kept.astype(np.int64),
            scheduled_s=self.scheduled_s[kept],
            latency_s=self.latency_s[kept],
            lag_s=self.lag_s[kept],
            code=self.code[kept],
            wall_s=wall_s,
            cpu_s=cpu_s,
            cut_short=self.cut_short,
        )
