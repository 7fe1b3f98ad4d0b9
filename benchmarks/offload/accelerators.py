"""The accelerators of the benchmark: a Triton server of the same models on the same cores, and a PACED one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.paced.repository import write_paced
from benchmarks.simulated_case import DATA, gpu_speedup, load_profile
from scheduler.latency import BackendProfile, accelerated
from services.triton_server.install import PLACE
from services.triton_server.launcher import LAUNCHER
from services.triton_server.process import TritonProcess

KINDS = {
    "paced": "PACED (waits as a modelled GTX 1080 Ti would take)",
    "real": "real Triton, ONNX Runtime on the same cores",
}
SERVE_FLAGS: dict[str, tuple[str, ...]] = {
    "paced": ("--triton-tolerance", "inf"),  # it scores nothing, and so nothing as the CPU does
    "real": (),
}
CALL_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Spent:
    """What Triton itself has counted of a model: requests, executions, and seconds in all.

    ``inside_s``: from the request's arrival to its answer, over all requests. ``compute_s``: of the executions, in the
    backend.
    """

    requests: int
    executions: int
    inside_s: float
    compute_s: float

    def since(self, before: Spent) -> Spent:
        """Return what was counted after ``before``."""
        return Spent(
            self.requests - before.requests,
            self.executions - before.executions,
            self.inside_s - before.inside_s,
            self.compute_s - before.compute_s,
        )


class Accelerator:
    """A running Triton server, and what it counts."""

    def __init__(self, kind: str, process: TritonProcess, stub: Any) -> None:
        self.target = process.target
        self._flags = SERVE_FLAGS[kind]
        self._process = psutil.Process(process.pid)
        self._stub = stub

    def flags(self, *further: str) -> list[str]:
        """Return the flags with which the Rank server uses it."""
        return ["--triton", self.target, *self._flags, *further]

    def spent(self, model: str) -> Spent:
        """Return what the server has counted of a model since it was started."""
        asked = service_pb2.ModelStatisticsRequest(name=model)
        (found,) = self._stub.ModelStatistics(asked, timeout=CALL_TIMEOUT_S).model_stats
        # A request is charged all of an execution that it shares; the batches count each execution once.
        compute_ns = sum(batch.compute_infer.ns for batch in found.batch_stats)
        stats = found.inference_stats
        return Spent(stats.success.count, found.execution_count, stats.success.ns / 1e9, compute_ns / 1e9)

    def cpu_s(self) -> float:
        """Return the CPU seconds of the server and of its models' processes."""
        processes = [self._process, *self._process.children(recursive=True)]
        times = [process.cpu_times() for process in processes]
        return float(sum(each.user + each.system for each in times))


@contextmanager
def accelerator(kind: str, repository: Path, models: Sequence[str]) -> Iterator[Accelerator]:
    """Run one of KINDS with these models of a repository; nothing of it is left at the end."""
    with ExitStack() as opened:
        place = repository
        if kind == "paced":
            place = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            for model in models:
                write_paced(repository / model, place, modelled_gpu(model))
        process = opened.enter_context(TritonProcess(PLACE / LAUNCHER, place, load=models))
        channel = opened.enter_context(grpc.insecure_channel(process.target))
        yield Accelerator(kind, process, service_pb2_grpc.GRPCInferenceServiceStub(channel))


def modelled_gpu(model: str) -> BackendProfile:
    """Return this machine's seconds over the GTX 1080 Ti's speed-up: modelled, see benchmarks/data/README.md."""
    cpu = load_profile(DATA / "profiles", model).backend("cpu")
    return accelerated(cpu, gpu_speedup(model), "GTX-1080Ti-like")
