"""What the server adds to ONNX Runtime, in CPU seconds: noise and the client's share fall out.

For each model, at the production-like size law with eight queries in flight: the CPU seconds of the server process
(A) against a process that replays from memory exactly the batches which the server ran (B), in A B B A order, median of
five pairs; beside it a transport-only handler of the same messages.

    python -m benchmarks.serving_cost [--repository model_repository] [MODEL ...]
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from services.loadgen.result import ModelResult
from services.loadgen.run import run_load
from services.loadgen.settings import MIB, LoadSettings, ModelShare
from services.machine import describe_machine
from services.models.spec import SLUGS

RESULT = Path(__file__).parent / "results" / "serving_cost.json"
PAIRS = 5
IN_FLIGHT = 8
MIN_QUERIES, MAX_QUERIES, CPU_PER_RUN_S = 500, 4000, 3.0
LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LADDER_CANDIDATES = 1024
LONE_SIZE, LONE_QUERIES = 100, 200


class Child:
    """A child process that is told and answers in lines of JSON."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._cpu = psutil.Process(process.pid)

    def hear(self) -> dict[str, Any]:
        """Return the child's next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with exit code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, text: str) -> dict[str, Any]:
        """Send a line and return the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.hear()

    def cpu_s(self) -> float:
        """Return the CPU seconds that the child has used."""
        times = self._cpu.cpu_times()
        return float(times.user + times.system)


@contextmanager
def child(module: str, *arguments: str) -> Iterator[Child]:
    """Run a module of this folder; closing its input is what ends it."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Child(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)


class Bench:
    """The three processes and the repository that they serve."""

    def __init__(self, repository: Path, opened: ExitStack) -> None:
        server = opened.enter_context(child("recording_server", str(repository)))
        hello = server.hear()
        self.address = str(hello["address"])
        self.batch_size: dict[str, int] = hello["batch_size"]
        transport = opened.enter_context(child("transport_only", self.address))
        self.transport_address = str(transport.hear()["address"])
        bare = opened.enter_context(child("bare_replay"))
        self._repository = repository
        self._server, self._bare, self._transport = server, bare, transport

    def server_s(self, model: str, queries: int) -> float:
        """Return the server's CPU seconds for a closed loop of so many queries."""
        return self._closed_loop(self._server, self.address, model, queries)

    def transport_s(self, model: str, queries: int) -> float:
        """Return the transport-only handler's CPU seconds for the same."""
        return self._closed_loop(self._transport, self.transport_address, model, queries)

    def batches(self) -> list[int]:
        """Return the candidates of each batch since the last call."""
        return list(self._server.ask("batches")["batches"])

    def bare(self, model: str, batches: Sequence[int], threads: int = 0) -> dict[str, Any]:
        """Replay batches in the bare process; 0 threads means one per core."""
        order = {"directory": str(self._repository / model), "batches": list(batches), "threads": threads}
        return self._bare.ask(json.dumps(order))

    def _closed_loop(self, process: Child, address: str, model: str, queries: int) -> float:
        before_s = process.cpu_s()
        drive(address, model, IN_FLIGHT, queries, "production")
        return process.cpu_s() - before_s


def drive(address: str, model: str, in_flight: int, queries: int, sizes: str, seed: int = 0) -> ModelResult:
    """Run a closed loop and return its result; RuntimeError when not all queries were answered."""
    settings = LoadSettings(
        target=address,
        models=(ModelShare(model),),
        sizes=sizes,
        concurrency=in_flight,
        count=queries,
        warmup_s=0.0,
        pool_bytes=512 * MIB,
        min_queries=1,
        seed=seed,
    )
    result = run_load(settings).models[0]
    if result.codes != {"OK": queries}:
        raise RuntimeError(f"{model}: {result.codes}")
    return result


def measure(bench: Bench, model: str) -> dict[str, Any]:
    """Return one model's row; times in milliseconds a query."""
    bench.batches()
    trial_s = bench.server_s(model, 100) / 100
    queries = int(np.clip(CPU_PER_RUN_S / max(trial_s, 1e-4), MIN_QUERIES, MAX_QUERIES))
    bench.batches()
    bench.server_s(model, queries)
    batches = bench.batches()
    pairs, transports = [], []
    for pair in range(PAIRS):
        if pair % 2 == 0:
            server_s = bench.server_s(model, queries)
            batches = bench.batches()
            bare_s = bench.bare(model, batches)["cpu_s"]
        else:
            bare_s = bench.bare(model, batches)["cpu_s"]
            server_s = bench.server_s(model, queries)
            batches = bench.batches()
        pairs.append((server_s, bare_s))
        transports.append(bench.transport_s(model, queries))
    ms = 1e3 / queries
    transport_ms = median(transports) * ms
    added_ms = median(server - bare for server, bare in pairs) * ms
    return {
        "model": model,
        "queries": queries,
        "server_ms": median(s for s, _ in pairs) * ms,
        "bare_ms": median(b for _, b in pairs) * ms,
        "transport_ms": transport_ms,
        "added_ms": added_ms,
        "beyond_transport_ms": added_ms - transport_ms,
        "server_over_bare": median(s / b for s, b in pairs),
        "batches_per_query": len(batches) / queries,
        **default_batch_size(bench, model),
        **lone_query(bench, model),
    }


def default_batch_size(bench: Bench, model: str) -> dict[str, Any]:
    """Compare the batch size that the server chose with the cheapest, in CPU us per candidate on one thread."""
    sizes = sorted({*LADDER, bench.batch_size[model]})
    order = [size for size in sizes for _ in range(max(3, LADDER_CANDIDATES // size))]
    np.random.default_rng(0).shuffle(order)  # drift of the machine falls on all sizes alike
    rounds = [bench.bare(model, order, threads=1)["each_cpu_s"] for _ in range(3)]
    each = np.array(rounds)
    size_of = np.array(order)
    us = {size: float(np.median(each[:, size_of == size])) / size * 1e6 for size in sizes}
    chosen = bench.batch_size[model]
    return {
        "us_per_candidate": us,
        "default_batch_size": chosen,
        "default_over_cheapest": us[chosen] / min(us.values()),
    }


def lone_query(bench: Bench, model: str) -> dict[str, float]:
    """Return median latencies in milliseconds of queries of 100 candidates, one at a time."""
    sizes = f"fixed:{LONE_SIZE}"
    end_to_end = drive(bench.address, model, 1, LONE_QUERIES, sizes).measurement.p50_s
    bench.batches()
    transport = drive(bench.transport_address, model, 1, LONE_QUERIES, sizes).measurement.p50_s
    bare = bench.bare(model, [LONE_SIZE] * 50, threads=1)
    return {
        "lone_end_to_end_ms": end_to_end * 1e3,
        "lone_transport_ms": transport * 1e3,
        "lone_bare_ms": bare["wall_s"] / 50 * 1e3,
    }


COLUMNS = {
    "model": "model",
    "server ms": "server_ms",
    "bare ms": "bare_ms",
    "transport ms": "transport_ms",
    "added - transport ms": "beyond_transport_ms",
    "server / bare": "server_over_bare",
    "batch": "default_batch_size",
    "over cheapest": "default_over_cheapest",
    "lone: end to end": "lone_end_to_end_ms",
    "bare": "lone_bare_ms",
    "transport": "lone_transport_ms",
}


def show(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="CPU ms a query, and latency in ms of a lone query of 100 candidates")
    for heading in COLUMNS:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        cells = (row[key] for key in COLUMNS.values())
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells))
    return table


def main() -> None:
    arguments = sys.argv[1:]
    repository = Path("model_repository")
    if arguments[:1] == ["--repository"]:
        repository, arguments = Path(arguments[1]), arguments[2:]
    console = Console(width=150)
    with ExitStack() as opened:
        bench = Bench(repository, opened)
        rows = [measure(bench, model) for model in track(arguments or SLUGS, console=console)]
    console.print(show(rows))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        json.dumps({"machine": dataclasses.asdict(describe_machine()), "rows": rows}, indent=2) + "\n"
    )
    console.print(f"written to {RESULT.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
