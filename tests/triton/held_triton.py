"""A real Triton whose `linear` can be held: it stands in for one that is slow, and tells what waits in it."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from pathlib import Path

from services.triton_server.process import HOST, TritonProcess
from tests.conftest import LINEAR_CONFIG
from tests.triton.offloading_rig import RESUME_S

_MODEL = '''
import pathlib, time
import numpy as np
import triton_python_backend_utils as pb_utils

HERE = pathlib.Path(__file__).parent
TABLE = np.linspace(-1.0, 1.0, 40, dtype=np.float32).reshape(10, 4)

class TritonPythonModel:
    """The model `linear`, which answers nothing while the file `held` is there."""

    def execute(self, requests):
        while (HERE / "held").exists():
            (HERE / "running").touch()
            time.sleep(0.002)
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        dense, ids = (pb_utils.get_input_tensor_by_name(request, n).as_numpy() for n in ("dense", "ids"))
        total = dense.sum(axis=1) + TABLE[ids].sum(axis=(1, 2))
        score = (1 / (1 + np.exp(-total))).astype(np.float32).reshape(-1, 1)
        return pb_utils.InferenceResponse([pb_utils.Tensor("score", score)])
'''
QUEUE_OF_TWO = """
dynamic_batching { default_queue_policy {
  default_timeout_microseconds: 60000000 allow_timeout_override: true max_queue_size: 2
} }
"""
ONE_BY_ONE = ""


class Held:
    """The repository of such a server; ``scheduling`` is what its configuration says of queue and batches."""

    def __init__(self, place: Path, scheduling: str = QUEUE_OF_TWO) -> None:
        self.repository = place
        self._version = place / "linear" / "1"
        self._version.mkdir(parents=True)
        (self._version / "model.py").write_text(_MODEL)
        config = LINEAR_CONFIG.replace('platform: "onnxruntime_onnx"', 'backend: "python"')
        (self._version.parent / "config.pbtxt").write_text(
            f"{config} instance_group {{ count: 1 }} {scheduling}"
        )

    def hold(self) -> None:
        """Let what comes from now on wait."""
        (self._version / "held").touch()

    def is_running(self) -> bool:
        """Whether a request has been held, the others behind it waiting in Triton's queue."""
        return (self._version / "running").exists()

    def release(self) -> None:
        """Let all go on."""
        (self._version / "held").unlink()


def metric(server: TritonProcess, name: str, **labels: str) -> int:
    """The sum of one of Triton's own metrics over the series of the model `linear` with these labels."""
    with urllib.request.urlopen(f"http://{HOST}:{server.ports.metrics}/metrics") as page:
        text = page.read().decode()
    wanted = {"model": "linear", **labels}
    found = 0.0
    for series, value in re.findall(rf"^{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE):
        if wanted.items() <= dict(re.findall(r'(\w+)="([^"]*)"', series)).items():
            found += float(value)
    return int(found)


def waiting(server: TritonProcess) -> int:
    """How many requests Triton says are in its queue, those that run not among them."""
    return metric(server, "nv_inference_pending_request_count")


def not_run(server: TritonProcess) -> int:
    """How many requests the server took and never ran: cancelled, or too late by our limit."""
    return sum(metric(server, "nv_inference_request_failure", reason=r) for r in ("CANCELED", "REJECTED"))


async def until_waiting(*servers: TritonProcess, count: int) -> None:
    """Wait until the servers' queues hold so many requests together; TimeoutError if they never do."""
    async with asyncio.timeout(RESUME_S):
        while sum([await asyncio.to_thread(waiting, server) for server in servers]) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
