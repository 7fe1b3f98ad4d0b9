"""How the real server fails, as its client sees it: what the accelerator path is built on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferInput
from tritonclient.grpc import aio as triton_client
from tritonclient.utils import InferenceServerException

from services.triton_server.process import TritonProcess
from tests.conftest import LINEAR_CONFIG, linear_model, linear_scores, write_model

pytestmark = [pytest.mark.triton, pytest.mark.slow]
LIMIT_S = 20.0

QUICK_RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 50),
]

WAITING_MODEL = '''
import pathlib, time
import triton_python_backend_utils as pb_utils

HERE = pathlib.Path(__file__).parent

class TritonPythonModel:
    """Returns its input once the file `go` is there."""

    def execute(self, requests):
        (HERE / "running").touch()
        latest = time.monotonic() + 20
        while not (HERE / "go").exists() and time.monotonic() < latest:
            time.sleep(0.005)
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for x in inputs]
'''
WAITING_CONFIG = """
backend: "python"
max_batch_size: 1
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
instance_group { count: 1 }
dynamic_batching { default_queue_policy {
  default_timeout_microseconds: 10000000 allow_timeout_override: true max_queue_size: 2
} }
"""


class Waiting:
    """The model `waiting`: begins, and ends when it may."""

    def __init__(self, repository: Path) -> None:
        self._version = repository / "waiting" / "1"
        self._version.mkdir(parents=True)
        (self._version / "model.py").write_text(WAITING_MODEL)
        (self._version.parent / "config.pbtxt").write_text(WAITING_CONFIG)

    def is_running(self) -> bool:
        return (self._version / "running").exists()

    def finish(self) -> None:
        (self._version / "go").touch()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The model `linear`; tests add `waiting`."""
    place = tmp_path / "repository"
    write_model(place, "linear", linear_model(), f"{LINEAR_CONFIG} instance_group {{ count: 1 }}")
    return place


def client_of(server: TritonProcess) -> triton_client.InferenceServerClient:
    return triton_client.InferenceServerClient(server.target, channel_args=QUICK_RECONNECT)


def tensor(name: str, array: np.ndarray, kind: str) -> InferInput:
    return InferInput(name, array.shape, kind).set_data_from_numpy(array)


async def score(client, count: int = 3, client_timeout: float = LIMIT_S) -> np.ndarray:
    """Ask `linear` and check that the answer is right."""
    dense = np.linspace(-1, 1, 3 * count, dtype=np.float32).reshape(count, 3)
    ids = np.arange(2 * count, dtype=np.int32).reshape(count, 2) % 8
    inputs = [tensor("dense", dense, "FP32"), tensor("ids", ids, "INT32")]
    answer = (await client.infer("linear", inputs, client_timeout=client_timeout)).as_numpy("score")
    np.testing.assert_allclose(answer[:, 0], linear_scores(dense, ids), atol=1e-6)
    return answer


def wait_in_triton(client, timeout_us: int | None = None) -> asyncio.Task:
    """Begin a query to `waiting`; ``timeout_us`` is how long it may be in Triton's queue."""
    inputs = [tensor("x", np.ones((1, 1), np.float32), "FP32")]
    return asyncio.ensure_future(client.infer("waiting", inputs, timeout=timeout_us, client_timeout=LIMIT_S))


async def until(condition: Callable[[], bool]) -> None:
    latest = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < latest
        await asyncio.sleep(0.01)


async def outcome(client, client_timeout: float = LIMIT_S) -> tuple[str, str]:
    """Ask `linear` and return the status and message, at most every ten milliseconds."""
    await asyncio.sleep(0.01)
    try:
        await score(client, client_timeout=client_timeout)
    except InferenceServerException as error:
        return error.status().removeprefix("StatusCode."), error.message()
    return "OK", ""


async def failure(client, client_timeout: float = LIMIT_S) -> tuple[str, str]:
    """Ask until it fails, and return how."""
    latest = time.monotonic() + LIMIT_S
    while (found := await outcome(client, client_timeout))[0] == "OK":
        assert time.monotonic() < latest
    return found


async def test_sigterm_finishes_what_runs_and_calls_the_model_unknown_to_what_is_new(
    triton, repository
) -> None:
    waiting = Waiting(repository)
    server = triton(repository, load=["linear", "waiting"])
    async with client_of(server) as client:
        await score(client)
        running = wait_in_triton(client)
        await until(waiting.is_running)
        server.send_signal(signal.SIGTERM)
        status, message = await failure(client)
        assert status == "NOT_FOUND"
        assert "no available versions" in message
        assert not running.done()
        waiting.finish()
        assert (await running).as_numpy("y").tolist() == [[1.0]]
    assert await asyncio.to_thread(server.wait) == 0


async def test_sigkill_is_unavailable_at_once_and_a_restart_on_the_same_ports_serves_again(
    triton, repository
) -> None:
    waiting = Waiting(repository)
    server = triton(repository, load=["linear", "waiting"])
    async with client_of(server) as client:
        running = wait_in_triton(client)
        await until(waiting.is_running)
        target, killed = server.target, time.monotonic()
        server.send_signal(signal.SIGKILL)
        with pytest.raises(InferenceServerException) as caught:
            await running
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        assert (await failure(client))[0] == "UNAVAILABLE"
        assert time.monotonic() - killed < LIMIT_S / 4
        await asyncio.to_thread(server.start)
        assert server.target == target
        await until_it_answers(client)


async def until_it_answers(client) -> None:
    """A channel that was refused tries again only after its back-off."""
    latest = time.monotonic() + LIMIT_S
    while (await outcome(client))[0] != "OK":
        assert time.monotonic() < latest


async def test_a_dead_stub_fails_every_call_while_all_is_ready_and_a_new_load_heals_it(
    triton, repository
) -> None:
    server = triton(repository, load=["linear"])
    async with client_of(server) as client:
        await score(client)
        (stub,) = server.stub_pids("linear")
        os.kill(stub, signal.SIGKILL)
        for _ in range(2):
            status, message = await failure(client)
            assert status == "INTERNAL"
            assert "is not healthy" in message
            assert await client.is_server_ready(client_timeout=LIMIT_S)
            assert await client.is_model_ready("linear", client_timeout=LIMIT_S)
        await client.unload_model("linear", client_timeout=LIMIT_S)
        await client.load_model("linear", client_timeout=LIMIT_S)
        await score(client)


async def test_a_stopped_server_exceeds_the_deadline_and_goes_on_afterwards(triton, repository) -> None:
    server = triton(repository, load=["linear"])
    async with client_of(server) as client:
        await score(client)
        server.send_signal(signal.SIGSTOP)
        status, _ = await failure(client, client_timeout=0.2)
        assert status == "DEADLINE_EXCEEDED"
        server.send_signal(signal.SIGCONT)
        await score(client)


async def test_a_full_queue_and_a_late_request_are_unavailable_with_their_reasons(triton, repository) -> None:
    waiting = Waiting(repository)
    server = triton(repository, load=["waiting"])
    async with client_of(server) as client:
        running = wait_in_triton(client)
        await until(waiting.is_running)
        queued = [wait_in_triton(client, timeout_us=1) for _ in range(6)]
        done, waited = await asyncio.wait(queued, timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            assert task.exception().status() == "StatusCode.UNAVAILABLE"
            assert "Exceeds maximum queue size" in task.exception().message()
        assert waited
        waiting.finish()
        assert (await running).as_numpy("y").tolist() == [[1.0]]
        late = [task.exception() for task in (await asyncio.wait(waited, timeout=LIMIT_S))[0]]
        assert {error.status() for error in late} == {"StatusCode.UNAVAILABLE"}
        assert any("Request timeout expired" in error.message() for error in late)
