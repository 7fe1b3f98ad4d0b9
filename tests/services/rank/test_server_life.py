"""The server as a process: what an operator sees from the first line to the exit code."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import services.rank.loading
from deeprecsys import AsyncRankClient
from deeprecsys.errors import InvalidSettingError, UnavailableError
from services.rank.server import serve
from services.rank.settings import ServeSettings
from tests.conftest import linear_scores

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "services.cli.app"]


def cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    child = await asyncio.create_subprocess_exec(
        *COMMAND,
        "serve",
        "--port",
        "0",
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = (await child.stdout.readline()).decode()
        assert line.startswith("listening on "), line
        yield child, line.split()[-1]
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def test_a_drain_under_load_loses_no_accepted_query_and_exits_0(repository: Path) -> None:
    """Accepted is what the server itself counts in flight; the rest must be told that it drains."""
    rng = np.random.default_rng(0)
    dense, ids = rng.normal(size=(1500, 3)).astype(np.float32), rng.integers(0, 8, (1500, 2), dtype=np.int32)
    expected = linear_scores(dense, ids)
    async with process("--repository", str(repository), "--batch-size", "1", "--max-waiting", "1000000") as (
        child,
        address,
    ):
        async with AsyncRankClient(address) as client:
            calls = [
                asyncio.create_task(client.rank("linear", {"dense": dense, "ids": ids})) for _ in range(16)
            ]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            child.send_signal(signal.SIGTERM)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            _, log = await child.communicate()
    assert child.returncode == 0
    answers = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    for answer in answers:
        np.testing.assert_allclose(answer.scores, expected, atol=1e-6)
    refusals = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert all(str(refusal) == "the server is draining" for refusal in refusals), refusals
    accepted = int(re.search(rb"in_flight=(\d+)", log)[1])
    assert accepted >= 1
    assert len(answers) >= accepted + 1


async def test_a_drain_that_runs_out_of_time_ends_all_the_same(repository: Path) -> None:
    big = {"dense": np.zeros((1500, 3), np.float32), "ids": np.zeros((1500, 2), np.int32)}
    async with process("--repository", str(repository), "--batch-size", "1", "--drain-s", "0") as (
        child,
        address,
    ):
        async with AsyncRankClient(address) as client:
            calls = [asyncio.create_task(client.rank("linear", big)) for _ in range(20)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            child.send_signal(signal.SIGTERM)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            await child.communicate()
    assert child.returncode == 0
    assert any(isinstance(outcome, UnavailableError) for outcome in outcomes)


async def test_health_is_not_serving_while_models_load_and_a_stop_then_is_heeded(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def held(*arguments: object) -> object:
        loading.set()
        assert go_on.wait(30)
        return real(*arguments)

    real = services.rank.loading.warm_up
    monkeypatch.setattr("services.rank.loading.warm_up", held)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stop, listening = asyncio.Event(), []
    settings = ServeSettings(repository=repository, port=port)
    life = asyncio.create_task(serve(settings, listening.append, stop))
    assert await asyncio.to_thread(loading.wait, 30)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for name in ("", "linear"):
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=name)
            )
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        async with AsyncRankClient(f"127.0.0.1:{port}") as client:
            with pytest.raises(UnavailableError, match="model linear is loading"):
                await client.rank("linear", {})
    stop.set()
    go_on.set()
    await life
    assert listening == []


async def test_health_says_not_serving_before_the_process_ends(repository: Path) -> None:
    async with process("--repository", str(repository)) as (child, address):
        async with grpc.aio.insecure_channel(address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            first = await watch.read()
            child.send_signal(signal.SIGTERM)
            second = await watch.read()
        assert await child.wait() == 0
    serving = health_pb2.HealthCheckResponse
    assert (first.status, second.status) == (serving.SERVING, serving.NOT_SERVING)


async def test_ctrl_c_is_a_clean_end(repository: Path) -> None:
    async with process("--repository", str(repository)) as (child, _):
        child.send_signal(signal.SIGINT)
        _, log = await child.communicate()
    assert child.returncode == 0
    assert b"Traceback" not in log


def test_a_busy_port_is_one_clear_line(repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        failed = cli("serve", "--repository", str(repository), "--port", str(port))
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert line.startswith(f"error: cannot listen on 127.0.0.1:{port}: the port is in use")


async def test_a_second_server_on_the_same_port_is_refused_and_not_given_a_share(repository, running) -> None:
    async with running(repository) as address:
        port = int(address.rpartition(":")[2])
        settings = ServeSettings(repository=repository, port=port)
        with pytest.raises(InvalidSettingError, match=f"cannot listen on 127.0.0.1:{port}"):
            await serve(settings, lambda _: None, asyncio.Event())


async def test_there_is_one_worker_thread_for_each_worker_asked_for(repository, running) -> None:
    async with running(repository, workers=3):
        names = [thread.name for thread in threading.enumerate() if thread.name.startswith("rank-worker")]
        assert sorted(names) == ["rank-worker-0", "rank-worker-1", "rank-worker-2"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rank-worker")]


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "line"),
    [
        (["serve", "--repository", "nowhere"], {}, 1, "model repository nowhere: No such file or directory"),
        (
            ["serve", "--policy", "best"],
            {},
            2,
            "policy (from --policy): Input should be 'static', 'paper' or",
        ),
        (
            ["serve", "--port", "70000"],
            {},
            2,
            "port (from --port): Input should be less than or equal to 65535",
        ),
        (
            ["serve"],
            {"DEEPRECSYS_PORT": "http"},
            2,
            "port (from DEEPRECSYS_PORT or the config file): Input should",
        ),
        (["serve"], {"DEEPRECSYS_CONFIG": "no.toml"}, 2, "config file no.toml: no such file"),
        (["rank", "rmc1", "--target", "127.0.0.1:1", "--timeout", "5"], {}, 1, "127.0.0.1:1"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: list[str], environment: dict[str, str], code: int, line: str
) -> None:
    failed = cli(*arguments, **environment)
    assert failed.returncode == code, failed.stderr
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert line in last
    assert "Traceback" not in failed.stderr


def test_export_without_torch_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text('raise ModuleNotFoundError("No module named \'torch\'", name="torch")')
    failed = cli("export", "ncf", "--repository", str(tmp_path / "r"), PYTHONPATH=str(tmp_path))
    assert failed.returncode == 1
    assert 'exporting needs torch; install the extra: pip install "deeprecsys[export]"' in failed.stderr


def test_a_file_gives_settings_the_environment_beats_it_and_a_flag_beats_both(tmp_path: Path) -> None:
    from services.rank.settings import load_settings

    file = tmp_path / "serve.toml"
    file.write_text('port = 1000\nmax_candidates = 7\npolicy = "paper"\n')
    os.environ["DEEPRECSYS_MAX_CANDIDATES"] = "8"
    try:
        settings = load_settings(file, {"policy": "static", "host": None})
    finally:
        del os.environ["DEEPRECSYS_MAX_CANDIDATES"]
    assert (settings.port, settings.max_candidates, settings.policy) == (1000, 8, "static")
    assert settings.host == "127.0.0.1"
