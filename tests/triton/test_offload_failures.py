"""A real Triton that dies, hangs, stops or loses a model under load: no query fails, none is answered wrongly."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from pathlib import Path

import pytest

from services.triton_server.process import TritonProcess
from tests.conftest import LINEAR_CONFIG, linear_model, write_model
from tests.triton.offloading_rig import RESUME_S, load, offloading, until

pytestmark = [pytest.mark.triton, pytest.mark.slow]

QPS = 80.0
SLA_S = 0.2
# No queue policy: with one, Triton before core's pull request 509 lets requests wait up to 0.5 s beside an idle model.
BATCHING = "instance_group { count: 1 } dynamic_batching { }"


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    place = tmp_path / "repository"
    config = LINEAR_CONFIG.replace('"50"', f'"{SLA_S * 1e3:g}"') + BATCHING
    write_model(place, "linear", linear_model(), config)
    return place


def kill(server: TritonProcess) -> None:
    server.send_signal(signal.SIGKILL)


def terminate(server: TritonProcess) -> None:
    server.send_signal(signal.SIGTERM)


def freeze(server: TritonProcess) -> None:
    server.send_signal(signal.SIGSTOP)


def thaw(server: TritonProcess) -> None:
    server.send_signal(signal.SIGCONT)


def kill_stub(server: TritonProcess) -> None:
    for pid in server.stub_pids("linear"):
        os.kill(pid, signal.SIGKILL)


def nothing(server: TritonProcess) -> None:
    """The stub's death is mended by Rank itself, which has the model loaded anew."""


@pytest.mark.parametrize(
    ("event", "recovery"),
    [(kill, TritonProcess.start), (terminate, TritonProcess.start), (freeze, thaw), (kill_stub, nothing)],
    ids=["SIGKILL", "SIGTERM", "SIGSTOP", "stub killed"],
)
async def test_no_query_is_lost_and_offloading_resumes(
    linear, triton, running, event, recovery, caplog
) -> None:
    caplog.set_level(logging.INFO)
    server = triton(linear)
    async with offloading(running, linear, server.target) as client:
        async with load(client, QPS, 5 * SLA_S) as sending:
            await until(lambda: sending.offloaded() > QPS / 2)
            event_s = time.monotonic()
            event(server)
            await until(lambda: "accelerator away" in caplog.text)
            await asyncio.sleep(1.0)
            recovered_s = time.monotonic()
            await asyncio.to_thread(recovery, server)
            up_s = time.monotonic()
            await until(lambda: sending.offloaded(since_s=up_s) > 10)
            resumed_s = time.monotonic() - up_s
        print(sending.report(event.__name__, event_s), f"resumed after {resumed_s:.2f} s")
    assert resumed_s < RESUME_S
    if recovery is not nothing:
        assert sending.offloaded(event_s + 1.0, recovered_s) == 0


async def test_of_two_servers_one_may_die(linear, triton, running, caplog) -> None:
    caplog.set_level(logging.INFO)
    dying, staying = triton(linear), triton(linear)
    async with offloading(running, linear, dying.target, staying.target) as client:
        async with load(client, QPS, 5 * SLA_S) as sending:
            await until(lambda: sending.offloaded() > QPS / 2)
            kill(dying)
            await until(lambda: "accelerator away" in caplog.text)
            away_s = time.monotonic()
            await asyncio.sleep(1.0)
    sent = [backend for at, _, backend in sending.answers if at > away_s]
    assert sent.count("triton") > len(sent) / 2  # three of four queries are large enough
