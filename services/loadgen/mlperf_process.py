"""MLPerf LoadGen, in a process of its own since it cannot be stopped: ``python -m ...mlperf_process PIPE MEMORY``.

LoadGen draws its schedule, calls for each query when its time has come, measures until it is handed back, and judges.
This process takes the query to the service and hands it back when it is answered.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from mmap import mmap
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mlperf_loadgen as loadgen
import numpy as np

from services.loadgen.child_main import await_stop, requests, run_child
from services.loadgen.driver import PROGRESS_EVERY_S, Limits, drive
from services.loadgen.messages import receive
from services.loadgen.mlperf import Judged, MlperfSetup
from services.loadgen.precedence import before_others
from services.loadgen.recording import OK, Progress, code_name
from services.loadgen.transport import SendFailedError, Transport

LATE = 2.0
"""A failed query is handed back after so many times the target: LoadGen knows no failures, and a quick one would
count as a quick answer."""


async def serve(pipe: Connection, memory: mmap) -> None:
    """Run one test, tell what became of its queries, and wait until the run has gone."""
    setup: MlperfSetup = await receive(pipe)
    payloads = requests(memory, setup.offset, np.arange(len(setup.offset) - 1))
    stop = asyncio.Event()
    watching = asyncio.create_task(await_stop(pipe, stop))
    async with setup.connect() as transport:
        warm_up = setup.warm_up(payloads)
        if len(warm_up.payload):
            await drive(warm_up, transport, Limits(setup.timeout_s, drain_s=setup.timeout_s), stop=stop)
        test = _Test(setup, payloads, transport)
        pipe.send(await test.until_end(stop, pipe))
        await asyncio.wait([watching])


class _Test:
    """One test: LoadGen's calls come on its own thread, everything else happens on the loop's."""

    def __init__(self, setup: MlperfSetup, payloads: Sequence[bytes], transport: Transport) -> None:
        self._setup, self._payloads, self._transport = setup, payloads, transport
        self._request = setup.request.tolist()
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._codes: Counter[int] = Counter()
        self._latest: deque[float] = deque(maxlen=2000)
        self._sent = 0
        self._unavailable_in_a_row = 0
        self._cut_short: str | None = None
        self._fault: BaseException | None = None
        self._before_others = False
        self._start_s, self._cpu_s = time.monotonic(), time.process_time()

    async def until_end(self, stop: asyncio.Event, pipe: Connection) -> Judged:
        """Run LoadGen until it is done, ``stop`` is set or the service is gone."""
        test = self._loop.create_future()
        threading.Thread(target=self._run, args=(test,), daemon=True).start()
        stopping = asyncio.create_task(self._cut_on(stop))
        over = asyncio.create_task(self._over.wait())
        showing = asyncio.create_task(self._show(pipe))
        await asyncio.wait([test, over], return_when=asyncio.FIRST_COMPLETED)
        for task in (stopping, over, showing):
            task.cancel()
        if self._fault is not None:
            raise self._fault
        if self._cut_short is None:
            test.result()
        return Judged(
            look=self._look(),
            wall_s=time.monotonic() - self._start_s,
            cpu_s=time.process_time() - self._cpu_s,
            before_others=self._before_others,
            cut_short=self._cut_short,
        )

    # --- on LoadGen's thread ---

    def _run(self, test: asyncio.Future[None]) -> None:
        try:
            self._start_test()
        except Exception as error:
            self._loop.call_soon_threadsafe(test.set_exception, error)
            raise
        self._loop.call_soon_threadsafe(test.set_result, None)

    def _start_test(self) -> None:
        system = loadgen.ConstructSUT(self._issue, lambda: None)
        count = len(self._request)
        samples = loadgen.ConstructQSL(count, count, lambda _: None, lambda _: None)
        logs = _log_settings(self._setup.folder)
        with before_others() as self._before_others:
            # The name of a file that is not there: one of the current directory would change the test.
            audit = str(self._setup.folder / "audit.config")
            loadgen.StartTestWithLogSettings(system, samples, _test_settings(self._setup), logs, audit)
        loadgen.DestroyQSL(samples)
        loadgen.DestroySUT(system)

    def _issue(self, samples: Any) -> None:
        issued_s = time.monotonic()
        for sample in samples:
            self._loop.call_soon_threadsafe(self._start, sample.id, sample.index, issued_s)

    # --- on the loop's thread ---

    def _start(self, query: int, sample: int, issued_s: float) -> None:
        self._sent += 1
        task = self._loop.create_task(self._ask(query, self._payloads[self._request[sample]], issued_s))
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._fault = fault
            self._over.set()

    async def _ask(self, query: int, payload: bytes, issued_s: float) -> None:
        try:
            await self._transport.send(payload, self._setup.timeout_s)
        except SendFailedError as failure:
            self._record(failure.code.value[0], float("inf"))
            await asyncio.sleep(issued_s + LATE * self._setup.sla.seconds - time.monotonic())
        else:
            self._record(OK, time.monotonic() - issued_s)
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query, 0, 0)])

    def _record(self, code: int, latency_s: float) -> None:
        self._codes[code] += 1
        self._latest.append(latency_s)
        self._unavailable_in_a_row = self._unavailable_in_a_row + 1 if code_name(code) == "UNAVAILABLE" else 0
        if self._unavailable_in_a_row == self._setup.unavailable_limit:
            self._cut(f"the server is unavailable: {self._unavailable_in_a_row} queries in a row failed")

    def _cut(self, reason: str) -> None:
        self._cut_short = self._cut_short or reason
        self._over.set()

    async def _cut_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._cut("stopped by the user")

    async def _show(self, pipe: Connection) -> None:
        while True:
            pipe.send(self._look())
            await asyncio.sleep(PROGRESS_EVERY_S)

    def _look(self) -> Progress:
        codes = {code_name(code): n for code, n in sorted(self._codes.items())}
        total = max(self._sent, round(self._setup.qps * self._setup.duration_s), self._setup.min_queries)
        latest_s = np.array(self._latest, dtype=np.float64)
        elapsed_s = time.monotonic() - self._start_s
        return Progress(elapsed_s, self._setup.duration_s, self._sent, total, codes, latest_s)


def _test_settings(setup: MlperfSetup) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.Server
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = setup.qps
    settings.server_target_latency_ns = round(setup.sla.seconds * 1e9)
    settings.server_target_latency_percentile = setup.sla.percentile / 100
    settings.min_duration_ms = round(setup.duration_s * 1e3)
    settings.min_query_count = setup.min_queries
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = setup.seed
    return settings


def _log_settings(folder: Path) -> Any:
    logs = loadgen.LogSettings()
    logs.enable_trace = False
    logs.log_output.outdir = str(folder)
    logs.log_output.copy_summary_to_stdout = False
    return logs


def main() -> None:
    """Run one test and end at once, though LoadGen's thread may go on until its schedule is over."""
    code = 1
    try:
        run_child(serve)
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
