"""What waits in Triton's own queue: a full one, deadlines that reach it, and queries that their client gave up."""

from __future__ import annotations

import asyncio
import logging
import time
import urllib.request
from pathlib import Path

import pytest

from services.triton_server.process import HOST, TritonProcess
from tests.conftest import LINEAR_CONFIG, linear_model, write_model
from tests.triton.offloading_rig import RESUME_S, expected, offloading, query, until

pytestmark = pytest.mark.triton

HELD_MODEL = '''
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
HELD_CONFIG = (
    LINEAR_CONFIG.replace('platform: "onnxruntime_onnx"', 'backend: "python"')
    + """
instance_group { count: 1 }
dynamic_batching { default_queue_policy {
  default_timeout_microseconds: 60000000 allow_timeout_override: true max_queue_size: 2
} }
"""
)


class Held:
    """A Triton whose `linear` can be held; it stands in for one that is slow."""

    def __init__(self, place: Path) -> None:
        self.repository = place / "held"
        self._version = self.repository / "linear" / "1"
        self._version.mkdir(parents=True)
        (self._version / "model.py").write_text(HELD_MODEL)
        (self._version.parent / "config.pbtxt").write_text(HELD_CONFIG)

    def hold(self) -> None:
        (self._version / "held").touch()

    def is_running(self) -> bool:
        return (self._version / "running").exists()

    def release(self) -> None:
        (self._version / "held").unlink()


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    place = tmp_path / "repository"
    # A target so long that a server which is held does not count as hanging.
    write_model(place, "linear", linear_model(), LINEAR_CONFIG.replace('"50"', '"1000"'))
    return place


@pytest.fixture
def held(tmp_path: Path) -> Held:
    return Held(tmp_path)


def not_run(server: TritonProcess) -> int:
    """How many requests the server's own statistics say it took and never ran: cancelled, or too late by our limit."""
    with urllib.request.urlopen(f"http://{HOST}:{server.ports.metrics}/metrics") as page:
        lines = page.read().decode().splitlines()
    wanted = [
        f'nv_inference_request_failure{{model="linear",reason="{reason}"'
        for reason in ("CANCELED", "REJECTED")
    ]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith(tuple(wanted)))


async def until_one_is_not_run(server: TritonProcess) -> None:
    async with asyncio.timeout(RESUME_S):
        while await asyncio.to_thread(not_run, server) != 1:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def begin(client, number: int, timeout_s: float = 10.0) -> asyncio.Task:
    task = asyncio.create_task(client.rank("linear", query(60, number), timeout_s=timeout_s))
    await asyncio.sleep(0.03)  # each reaches Triton before the next
    return task


async def test_what_a_full_queue_refuses_the_cpu_answers_at_once(
    linear, triton, running, held, caplog
) -> None:
    caplog.set_level(logging.INFO)
    server = triton(held.repository)
    async with offloading(running, linear, server.target) as client:
        held.hold()
        begun = [await begin(client, number) for number in range(8)]
        await until(lambda: sum(task.done() for task in begun) == 5)
        assert [task.done() for task in begun[:3]] == [False] * 3  # one runs, two wait
        held.release()
        answers = await asyncio.gather(*begun)
        assert [answer.backend for answer in answers] == ["triton"] * 3 + ["cpu"] * 5
        for number, answer in enumerate(answers):
            assert abs(answer.scores - expected(query(60, number))).max() < 1e-5
    assert "accelerator away" not in caplog.text  # busy is not away


async def test_our_own_bound_on_queries_in_flight_sends_the_rest_to_the_cpu(
    linear, triton, running, held
) -> None:
    server = triton(held.repository)
    async with offloading(running, linear, server.target, triton_queries=2) as client:
        held.hold()
        begun = [await begin(client, number) for number in range(4)]
        await until(lambda: all(task.done() for task in begun[2:]))
        held.release()
        assert [task.backend for task in await asyncio.gather(*begun)] == ["triton"] * 2 + ["cpu"] * 2


async def test_a_deadline_reaches_the_queue_and_the_cpu_answers_in_time(
    linear, triton, running, held
) -> None:
    server = triton(held.repository)
    async with offloading(running, linear, server.target) as client:
        held.hold()
        runs = await begin(client, 0)
        await until(held.is_running)
        started_s = time.monotonic()
        answer = await client.rank("linear", query(60, 1), timeout_s=0.5)
        assert answer.backend == "cpu"
        assert time.monotonic() - started_s < 0.5
        assert not runs.done()
        held.release()
        assert (await runs).backend == "triton"
        await until_one_is_not_run(server)


async def test_a_client_that_gives_up_takes_its_query_out_of_the_queue(linear, triton, running, held) -> None:
    server = triton(held.repository)
    async with offloading(running, linear, server.target) as client:
        held.hold()
        runs = await begin(client, 0)
        await until(held.is_running)
        given_up = await begin(client, 1)
        given_up.cancel()
        await asyncio.wait([given_up])
        await asyncio.sleep(0.1)
        held.release()
        assert (await runs).backend == "triton"
        await until_one_is_not_run(server)
