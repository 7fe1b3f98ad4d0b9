"""Who drives a run: this process, or several of its own that share the schedule when one cannot keep up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from services.loadgen import driver_process
from services.loadgen.child import Child, child_process, in_memory
from services.loadgen.driver import Limits, OnProgress, Plan, drive
from services.loadgen.messages import Connected, Go, Ready, Setup
from services.loadgen.precedence import before_others
from services.loadgen.recording import Progress, Trace
from services.loadgen.shares import Share, merge_progress, merge_traces, split
from services.loadgen.transport import Transport

HEAD_START_S = 0.05
"""From the word to begin to the beginning, so that every driver has read it."""

Connect = Callable[[], AbstractAsyncContextManager[Transport]]
_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class Driven:
    """What a run recorded, how many processes drove it, and whether all of them ran before other processes."""

    trace: Trace
    processes: int
    before_others: bool


class Drivers(Protocol):
    """Drives plans whose requests are those that it was opened with."""

    async def drive(
        self,
        plan: Plan,
        limits: Limits,
        *,
        concurrency: int | None,
        stop: asyncio.Event,
        on_progress: OnProgress | None,
    ) -> Driven:
        """Drive one run; ``stop`` ends it at once, keeping what was measured."""
        ...


@asynccontextmanager
async def open_drivers(
    drivers: int, transport: Transport, connect: Connect, payloads: Sequence[bytes]
) -> AsyncIterator[Drivers]:
    """Yield this process as the driver, over ``transport``, or so many processes with connections of their own."""
    if drivers == 1:
        yield _ThisProcess(transport)
        return
    async with AsyncExitStack() as opened:
        memory = opened.enter_context(in_memory(payloads))
        children = [
            await opened.enter_async_context(child_process(driver_process.__name__, memory))
            for _ in range(drivers)
        ]
        for child in children:
            child.pipe.send(Setup(connect, memory.offset))
        await _together(child.expect(Connected) for child in children)
        yield _Processes(children)


class _ThisProcess:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def drive(
        self,
        plan: Plan,
        limits: Limits,
        *,
        concurrency: int | None,
        stop: asyncio.Event,
        on_progress: OnProgress | None,
    ) -> Driven:
        with before_others() as permitted:
            trace = await drive(
                plan, self._transport, limits, concurrency=concurrency, stop=stop, on_progress=on_progress
            )
        return Driven(trace, 1, permitted)


class _Processes:
    """Driver processes, each with connections of its own, that have the requests of all runs."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children

    async def drive(
        self,
        plan: Plan,
        limits: Limits,
        *,
        concurrency: int | None,
        stop: asyncio.Event,
        on_progress: OnProgress | None,
    ) -> Driven:
        shares = split(plan, limits, concurrency, len(self._children))
        crew = self._children[: len(shares)]
        permitted = await _begin(crew, shares)
        run = _SharedRun(crew, len(plan.payload), on_progress)
        stopping = asyncio.create_task(run.stop_on(stop))
        try:
            traces = await _together(run.follow(child) for child in crew)
        finally:
            stopping.cancel()
        return Driven(merge_traces(shares, traces, run.cut_short), len(crew), permitted)


async def _together(work: Iterable[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """Await all; when one fails, none is left waiting."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _begin(crew: Sequence[Child], shares: Sequence[Share]) -> bool:
    """Hand the shares out and let all begin at one time; return whether they run before other processes."""
    for child, share in zip(crew, shares, strict=True):
        child.pipe.send(share)
    ready = await _together(child.expect(Ready) for child in crew)
    # All or none: a driver without precedence beside one with it would be late alone.
    permitted = all(each.before_others for each in ready)
    go = Go(time.monotonic() + HEAD_START_S, permitted)
    for child in crew:
        child.pipe.send(go)
    return permitted


class _SharedRun:
    """A run that several processes drive: what each has shown last, and why it ends early."""

    def __init__(self, crew: Sequence[Child], total: int, on_progress: OnProgress | None) -> None:
        self.cut_short: str | None = None
        self._crew = crew
        self._total = total
        self._on_progress = on_progress
        self._looks: dict[Child, Progress] = {}
        self._driving = set(crew)
        self._fresh: set[Child] = set()

    async def follow(self, child: Child) -> Trace:
        """Return what a driver recorded; when it was cut short, so are the others."""
        trace = await child.expect(Trace, lambda look: self._show(child, look))
        self._driving.discard(child)
        if trace.cut_short is not None and self.cut_short is None:
            self.cut_short = trace.cut_short
            self._stop()
        return trace

    async def stop_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stop()

    def _stop(self) -> None:
        for child in self._crew:
            child.stop()

    def _show(self, child: Child, look: Progress) -> None:
        self._looks[child] = look
        self._fresh.add(child)
        # Drawn as often as one driver would have it drawn: when each that still drives has been heard again.
        if self._on_progress is not None and self._driving <= self._fresh:
            self._fresh.clear()
            self._on_progress(merge_progress(list(self._looks.values()), self._total))
