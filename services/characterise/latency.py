"""What one model takes on this machine, by batch size: on one core, and with every core busy."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from deeprecsys.errors import RepositoryError
from scheduler.latency import BackendProfile, LatencyCurve, LatencyPoint, LatencyProfile
from services.rank.engine import Engine, EngineError
from services.rank.model import ModelSpec
from services.rank.warmup import random_batch

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
MIN_RUNS, MAX_RUNS = 20, 400
PAGING_RUNS = 3


def measure_profile(
    engine: Engine,
    spec: ModelSpec,
    cores: int,
    *,
    sizes: Sequence[int] = SIZES,
    seconds_each: float = 0.5,
    progress: Callable[[int], None] = lambda _: None,
) -> LatencyProfile:
    """Time batches of each size for about ``seconds_each`` alone and as long with all cores busy.

    Wall seconds of the inference, fresh inputs in every run. ``progress`` gets each size before it is measured. The
    largest size is run first, and not counted: it reads the pages of the tables in, which else falls to batches of 1.
    Raises RepositoryError for a model that fails on valid inputs.
    """
    sizes = [size for size in sizes if size <= spec.largest_batch]
    _read_in(engine, spec, sizes[-1])
    alone, busy = [], []
    for size in sizes:
        progress(size)
        alone.append(_point(size, _run_s(engine, spec, size, 1, seconds_each, seed=1)))
        busy.append(_point(size, _run_s(engine, spec, size, cores, seconds_each, seed=2)))
    backend = BackendProfile("cpu", LatencyCurve(_rising(alone)), LatencyCurve(_rising(busy)))
    return LatencyProfile(spec.name, cores, (backend,))


def _read_in(engine: Engine, spec: ModelSpec, size: int) -> None:
    rng = np.random.default_rng(0)
    try:
        for _ in range(PAGING_RUNS):
            engine.run(random_batch(spec, size, rng), [spec.score_output])
    except EngineError as error:
        raise RepositoryError(
            f"{spec.name}: fails on a valid batch of {size}: {str(error).splitlines()[0][:300]}"
        ) from error


def _run_s(
    engine: Engine, spec: ModelSpec, size: int, threads: int, seconds: float, seed: int
) -> list[float]:
    """Return the seconds of each run on so many threads at once; each thread's first run is left out."""
    deadline_s = time.perf_counter() + seconds
    each: list[list[float]] = [[] for _ in range(threads)]
    together = threading.Barrier(threads)

    def work(thread: int) -> None:
        rng = np.random.default_rng([size, thread, seed])
        together.wait()
        while len(each[thread]) <= MIN_RUNS or (
            time.perf_counter() < deadline_s and len(each[thread]) < MAX_RUNS
        ):
            inputs = random_batch(spec, size, rng)
            started_s = time.perf_counter()
            engine.run(inputs, [spec.score_output])
            each[thread].append(time.perf_counter() - started_s)

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [run_s for runs in each for run_s in runs[1:]]


def _point(size: int, run_s: Sequence[float]) -> LatencyPoint:
    p50_s, p95_s, p99_s = np.percentile(run_s, [50, 95, 99], method="higher").tolist()
    return LatencyPoint(size, float(np.mean(run_s)), p50_s, p95_s, p99_s)


def _rising(points: Sequence[LatencyPoint]) -> tuple[LatencyPoint, ...]:
    """Lower a mean that noise put above that of a larger batch: whatever disturbs a run only makes it slower."""
    rising: list[LatencyPoint] = []
    for point in reversed(points):
        most_s = rising[-1].mean_s if rising else math.inf
        share = min(1.0, most_s / point.mean_s)
        rising.append(
            LatencyPoint(
                point.batch_size,
                point.mean_s * share,
                point.p50_s * share,
                point.p95_s * share,
                point.p99_s * share,
            )
        )
    return tuple(reversed(rising))
