"""HTTP/1.1 for the peer that speaks nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from benchmarks.peers.http_transport import HttpTransport, http_transport
from services.loadgen.transport import SendFailedError


class Server:
    """Answers each request on a connection by what ``answer`` makes of its head and body; nothing hangs up."""

    def __init__(self, answer: Callable[[str, bytes], Awaitable[bytes | None]]) -> None:
        self.answer = answer
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.split("Content-Length: ")[1].split("\r\n")[0])
                answer = await self.answer(head, await reader.readexactly(length))
                if answer is None:
                    return
                writer.write(answer)
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()


@asynccontextmanager
async def talking(answer) -> AsyncIterator[tuple[Server, HttpTransport]]:
    server = Server(answer)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=1 << 20)
    port = listening.sockets[0].getsockname()[1]
    try:
        async with http_transport("127.0.0.1", port, "/predict") as transport:
            yield server, transport
    finally:
        listening.close()


def reply(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


async def test_queries_are_posts_over_connections_that_are_kept() -> None:
    heads = []

    async def echo(head: str, body: bytes) -> bytes:
        heads.append(head)
        return reply(body[::-1])

    async with talking(echo) as (server, transport):
        assert await transport.send(b"abc", 5.0) == b"cba"
        assert await transport.send(bytes(100_000), None) == bytes(100_000)
        assert server.connections == 1
        assert heads[0].startswith("POST /predict HTTP/1.1\r\n")
        both = await asyncio.gather(transport.send(b"de", 5.0), transport.send(b"fg", 5.0))
        assert both == [b"ed", b"gf"]
        assert server.connections == 2


async def test_a_connection_that_the_server_ends_is_not_used_again() -> None:
    async def once(head: str, body: bytes) -> bytes:
        return reply(body, more="Connection: close\r\n")

    async with talking(once) as (server, transport):
        assert await transport.send(b"a", 5.0) == b"a"
        assert await transport.send(b"b", 5.0) == b"b"
        assert server.connections == 2


async def test_a_connection_that_the_server_ended_while_it_was_idle_costs_no_query() -> None:
    connections = 0

    async def answer_and_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply(b"scores"))
        await writer.drain()
        writer.close()
        ended.set()

    ended = asyncio.Event()
    listening = await asyncio.start_server(answer_and_end, "127.0.0.1", 0)
    async with listening, http_transport(*listening.sockets[0].getsockname(), "/predict") as transport:
        for _ in range(3):
            assert await transport.send(b"", 5.0) == b"scores"
            await ended.wait()
        assert connections == 3


@pytest.mark.parametrize(
    ("answer", "timeout_s", "code"),
    [
        (reply(b"", "503 Service Unavailable"), 5.0, grpc.StatusCode.INTERNAL),
        (None, 5.0, grpc.StatusCode.UNAVAILABLE),
        (b"nonsense\r\n\r\n", 5.0, grpc.StatusCode.UNAVAILABLE),
        (b"", 0.05, grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
    ids=["status", "hung up", "no HTTP", "too late"],
)
async def test_what_goes_wrong_has_a_code(answer: bytes | None, timeout_s: float, code) -> None:
    async def react(head: str, body: bytes) -> bytes | None:
        return answer

    async with talking(react) as (_, transport):
        with pytest.raises(SendFailedError) as caught:
            await transport.send(b"query", timeout_s)
    assert caught.value.code is code


async def test_nobody_listening_is_unavailable() -> None:
    listening = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    listening.close()
    await listening.wait_closed()
    async with http_transport("127.0.0.1", port, "/predict") as transport:
        with pytest.raises(SendFailedError) as caught:
            await transport.send(b"query", 1.0)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
