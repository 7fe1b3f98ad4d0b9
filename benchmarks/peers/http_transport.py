"""HTTP/1.1 to a peer that speaks nothing better: one POST a query over connections that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from services.loadgen.transport import SendFailedError

MOST_CONNECTIONS = 256
"""HTTP/1.1 answers in turn, so each query in flight has a connection; further ones wait for one."""

OK = 200

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HttpTransport:
    """POST to one path. Make and close it inside the running loop."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._host, self._port = host, port
        self._head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\n"
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(MOST_CONNECTIONS)

    async def send(self, payload: bytes, timeout_s: float | None) -> bytes:
        """Return the body of the answer; raises SendFailedError, with gRPC's code for what went wrong."""
        try:
            async with asyncio.timeout(timeout_s), self._free:
                status, body = await self._post(payload)
        except TimeoutError as error:
            raise SendFailedError(grpc.StatusCode.DEADLINE_EXCEEDED) from error
        except (OSError, EOFError, ValueError) as error:
            raise SendFailedError(grpc.StatusCode.UNAVAILABLE, str(error)) from error
        if status != OK:
            raise SendFailedError(grpc.StatusCode.INTERNAL, f"HTTP status {status}")
        return body

    async def _post(self, payload: bytes) -> tuple[int, bytes]:
        if self._idle:
            try:
                return await self._exchange(*self._idle.pop(), payload)
            except (ConnectionError, EOFError):
                pass  # a server ends connections that were idle for long; scoring again does no harm
        return await self._exchange(*await asyncio.open_connection(self._host, self._port), payload)

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, payload: bytes
    ) -> tuple[int, bytes]:
        try:
            writer.write(f"{self._head}Content-Length: {len(payload)}\r\n\r\n".encode())
            writer.write(payload)
            await writer.drain()
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            status = int(first.removeprefix("HTTP/1.1 ")[:3])
            fields = dict(line.lower().split(": ", 1) for line in lines if line)
            body = await reader.readexactly(int(fields.get("content-length", 0)))
        except BaseException:
            writer.close()  # what is left of an exchange that did not end would be taken for the next one's
            raise
        if fields.get("connection") == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return status, body

    def close(self) -> None:
        """Close the connections that are idle; those of queries in flight close as these are cancelled."""
        for _, writer in self._idle:
            writer.close()


@asynccontextmanager
async def http_transport(host: str, port: int, path: str) -> AsyncIterator[HttpTransport]:
    """Yield a transport to ``http://host:port/path`` and close it in the end."""
    transport = HttpTransport(host, port, path)
    try:
        yield transport
    finally:
        transport.close()
