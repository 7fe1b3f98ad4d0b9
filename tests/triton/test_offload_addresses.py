"""How a Triton may be addressed, and that a proxy which the environment names stays out of the way."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from services.cli.server_process import server_process
from tests.conftest import LINEAR_CONFIG, linear_model, write_model
from tests.triton.offloading_rig import AddressedClient, offloading, until_all_ready, until_offloaded

pytestmark = pytest.mark.triton


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    place = tmp_path / "repository"
    write_model(place, "linear", linear_model(), LINEAR_CONFIG)
    return place


async def test_a_name_may_be_left_to_dns_as_grpc_writes_it(linear, triton, running) -> None:
    port = triton(linear).ports.grpc
    async with offloading(running, linear, f"dns:///localhost:{port}") as client:
        await until_offloaded(client)


async def test_an_ipv6_address_stands_in_brackets(linear, triton, running) -> None:
    port = triton(linear, flags=["--grpc-address=[::1]"]).ports.grpc
    async with offloading(running, linear, f"[::1]:{port}") as client:
        await until_offloaded(client)


async def test_a_proxy_of_the_environment_does_not_take_what_is_meant_for_triton(
    linear, triton, monkeypatch
) -> None:
    server = triton(linear)
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))  # nobody listens: whoever asks this proxy is refused
        with monkeypatch.context() as environment:
            for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
                environment.delenv(name, raising=False)
            for name in ("grpc_proxy", "https_proxy", "http_proxy"):
                environment.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
            rank = server_process(
                linear, ["--triton", server.target, "--offload-from", "50", "--warmup-s", "0.02"]
            )
            rank_address = rank.__enter__()[1]
        try:
            async with AddressedClient(rank_address, timeout_s=5) as client:
                await until_all_ready(rank_address)
                await until_offloaded(client)
        finally:
            rank.__exit__(None, None, None)
