"""Worker threads: each makes one pure call at a time and hands arrays back to the loop.

No state is shared: a worker gets everything in one Work and returns everything through one callback on the loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from deeprecsys.tensors import Array
from services.rank.engine import Engine, EngineError
from services.rank.model import InputSpec

Rows = tuple[Sequence[Array], int, int]
"""One query's inputs in the model's order, and the first and last (exclusive) candidate to take of them."""


@dataclass(frozen=True, slots=True)
class Work:
    """One inference to run: the rows of one or more queries, put together in this order."""

    engine: Engine
    inputs: Sequence[InputSpec]
    rows: Sequence[Rows]
    size: int
    outputs: Sequence[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a Work: the outputs, each with the first axis ``size``, or the fault; seconds in the engine."""

    outputs: Sequence[Array]
    fault: EngineError | None
    engine_s: float


Done = Callable[[int, Outcome], None]


class Workers:
    """``count`` threads. ``done(worker, outcome)`` is called on the loop for every work submitted."""

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop, done: Done) -> None:
        self._loop = loop
        self._done = done
        self._inboxes: list[SimpleQueue[Work | None]] = [SimpleQueue() for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._live, args=(worker,), name=f"rank-worker-{worker}", daemon=True)
            for worker in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, worker: int, work: Work) -> None:
        """Give a worker its next work; it has at most one."""
        self._inboxes[worker].put(work)

    def close(self) -> None:
        """End the threads once each has finished what it runs."""
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join()

    def _live(self, worker: int) -> None:
        inbox = self._inboxes[worker]
        while (work := inbox.get()) is not None:
            outcome = run(work)
            self._loop.call_soon_threadsafe(self._done, worker, outcome)


def run(work: Work) -> Outcome:
    """Run one inference to its end, on the calling thread."""
    outputs: Sequence[Array] = ()
    fault = None
    began_s = time.perf_counter()
    try:
        feeds = assemble(work)
        began_s = time.perf_counter()
        outputs = work.engine.run(feeds, work.outputs)
    except EngineError as error:
        fault = error
    except Exception as error:  # noqa: BLE001 - the thread's boundary: a worker must outlive whatever a batch does
        fault = EngineError(f"{type(error).__name__}: {error}")
        fault.__cause__ = error
    engine_s = time.perf_counter() - began_s
    if any(array.shape[:1] != (work.size,) for array in outputs):
        fault = EngineError(f"an output does not have one row for each of {work.size} candidates")
    return Outcome(outputs, fault, engine_s)


def assemble(work: Work) -> dict[str, Array]:
    """Return the batch's inputs by name.

    A lone query's rows are views of its message. Several queries, and inputs of the user's side, which hold one row
    for all candidates, are copied into one array of ``size`` rows.
    """
    feeds: dict[str, Array] = {}
    for index, declared in enumerate(work.inputs):
        if len(work.rows) == 1:
            arrays, start, stop = work.rows[0]
            array = arrays[index]
            if len(array) != 1:
                feeds[declared.name] = array[start:stop]
                continue
            if work.size == 1:
                feeds[declared.name] = array
                continue
        feeds[declared.name] = _joined(work, index)
    return feeds


def _joined(work: Work, index: int) -> Array:
    tail = work.rows[0][0][index].shape[1:]
    joined = np.empty((work.size, *tail), dtype=work.inputs[index].dtype)
    row = 0
    for arrays, start, stop in work.rows:
        array = arrays[index]
        end = row + stop - start
        joined[row:end] = array if len(array) == 1 else array[start:stop]
        row = end
    return joined
