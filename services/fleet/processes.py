"""Runs a sweep on the processes of one machine."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from services.fleet.fleet_file import Case
from services.fleet.sweep import Row, Runner, one_after_the_other, run_case


def on_processes(processes: int) -> Runner:
    """Return a runner on so many processes; with one, everything runs in this process."""

    def run(jobs: Sequence[tuple[Case, int]]) -> Iterator[tuple[int, Row]]:
        context = multiprocessing.get_context("spawn")
        before = set(multiprocessing.active_children())
        with ProcessPoolExecutor(min(processes, len(jobs)), context, _leave_signals) as pool:
            index_of = {pool.submit(run_case, case, seed): k for k, (case, seed) in enumerate(jobs)}
            try:
                for future in as_completed(index_of):
                    yield index_of[future], future.result()
            except BaseException:
                # Interrupted, or a case failed: what runs is of no use, and may run for minutes.
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in set(multiprocessing.active_children()) - before:
                    worker.terminate()
                raise

    return one_after_the_other if processes == 1 else (lambda jobs: run(jobs) if jobs else iter(()))


def _leave_signals() -> None:
    """Leave Ctrl-C to the parent, which ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
