"""ONNX Runtime alone: runs given batches from memory on as many threads as the server has, and nothing else.

Each line in is {"directory": of one model, "batches": [candidates, ...], "threads": n, or 0 for one per usable core};
the line out is {"cpu_s": of the process, "wall_s": of all, "each_cpu_s": [of each batch, ...]}, all in seconds; a
batch is timed by the clock of the thread that ran it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np

from services.cores import usable_cores
from services.loadgen.request_pool import random_inputs
from services.rank.cpu import CpuEngine
from services.rank.model import ModelSpec, describe
from services.rank.repository import build_spec, read_listing

Inputs = dict[str, np.ndarray]


def main() -> None:
    directory: Path | None = None
    for line in sys.stdin:
        order = json.loads(line)
        if directory != Path(order["directory"]):
            directory = Path(order["directory"])
            engine, spec = open_model(directory)
        print(
            json.dumps(replay(engine, spec, order["batches"], order["threads"] or usable_cores())), flush=True
        )


def open_model(directory: Path) -> tuple[CpuEngine, ModelSpec]:
    listing = read_listing(directory)
    engine = CpuEngine(listing.model_file(listing.versions[0]))
    return engine, build_spec(listing, listing.versions[0], engine.ports())


def replay(engine: CpuEngine, spec: ModelSpec, batches: list[int], threads: int) -> dict[str, object]:
    model = describe(spec)
    rng = np.random.default_rng(1)
    inputs = [random_inputs(model, size, rng) for size in batches]
    todo: SimpleQueue[tuple[int, Inputs]] = SimpleQueue()
    for item in enumerate(inputs):
        todo.put(item)
    cpu_s = [0.0] * len(batches)

    def work() -> None:
        while True:
            try:
                index, batch = todo.get_nowait()
            except Empty:
                return
            started_s = time.thread_time()
            engine.run(batch, [spec.score_output])
            cpu_s[index] = time.thread_time() - started_s

    workers = [threading.Thread(target=work) for _ in range(threads)]
    before_s, started_s = time.process_time(), time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {
        "cpu_s": time.process_time() - before_s,
        "wall_s": time.perf_counter() - started_s,
        "each_cpu_s": cpu_s,
    }


if __name__ == "__main__":
    main()
