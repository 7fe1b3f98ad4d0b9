"""What one model takes on this machine, by batch size: on one core, and with every core busy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from scheduler.latency import BackendProfile, LatencyCurve, LatencyPoint, LatencyProfile
from services.rank.engine import Engine
from services.rank.model import ModelSpec
from services.rank.warmup import random_batch

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
MIN_RUNS, MAX_RUNS = 20, 400


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

    Wall seconds of the inference, fresh inputs in every run. ``progress`` gets each size before it is measured.
    """
    sizes = [size for size in sizes if size <= spec.largest_batch]
    alone, busy = [], []
    for size in sizes:
        progress(size)
        alone.append(_point(size, _run_s(engine, spec, size, 1, seconds_each)))
        busy.append(_point(size, _run_s(engine, spec, size, cores, seconds_each)))
    backend = BackendProfile("cpu", LatencyCurve(_rising(alone)), LatencyCurve(_rising(busy)))
    return LatencyProfile(spec.name, cores, (backend,))


def _run_s(engine: Engine, spec: ModelSpec, size: int, threads: int, seconds: float) -> list[float]:
    """Return the seconds of each run on so many threads at once; each thread's first run is left out."""
    deadline_s = time.perf_counter() + seconds
    each: list[list[float]] = [[] for _ in range(threads)]
    together = threading.Barrier(threads)

    def work(thread: int) -> None:
        rng = np.random.default_rng([size, thread])
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
    """Lift a mean that noise put below that of a smaller batch: a larger batch is never taken to be quicker."""
    rising: list[LatencyPoint] = []
    for point in points:
        floor_s = rising[-1].mean_s if rising else 0.0
        lift = max(1.0, floor_s / point.mean_s)
        rising.append(
            LatencyPoint(
                point.batch_size,
                point.mean_s * lift,
                point.p50_s * lift,
                point.p95_s * lift,
                point.p99_s * lift,
            )
        )
    return tuple(rising)
