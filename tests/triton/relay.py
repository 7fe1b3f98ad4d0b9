"""A relay in front of a server, whose connections can go silent without an end, as those of a vanished host do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_CHUNK_BYTES = 1 << 16


class Relay:
    """Passes bytes on between ``target`` and who connects to ``target`` here, until told to vanish.

    A vanished host neither closes nor resets what was open: its connections stay, and carry nothing any more, also
    when it is back. What connects meanwhile hears nothing either.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._behind = host, int(port)
        self._silent = (
            asyncio.Event()
        )  # of the connections made so far; each keeps the one that it was made under
        self._tasks: set[asyncio.Task[None]] = set()
        self.target = ""

    def vanish(self) -> None:
        """Let everything that is connected go silent for good, and whatever connects until the return."""
        self._silent.set()

    def come_back(self) -> None:
        """Serve those that connect from now on."""
        self._silent = asyncio.Event()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection's bytes on, both ways."""
        silent = self._silent
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        behind = None
        try:
            # asyncio's own callback on a connection's task fails where that was cancelled, which `close` alone does.
            with suppress(asyncio.CancelledError):
                if silent.is_set():
                    await asyncio.Event().wait()
                behind_reader, behind = await asyncio.open_connection(*self._behind)
                ways = _pass_on(reader, behind, silent), _pass_on(behind_reader, writer, silent)
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._tasks.discard(task)
            writer.close()
            if behind is not None:
                behind.close()

    async def close(self) -> None:
        """End all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silent: asyncio.Event) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        if not silent.is_set():
            writer.write(data)
            await writer.drain()
    if silent.is_set():
        await asyncio.Event().wait()  # not even the end of the connection is passed on
    writer.close()


@asynccontextmanager
async def relay(target: str) -> AsyncIterator[Relay]:
    """Start one on a free port of the loopback."""
    made = Relay(target)
    server = await asyncio.start_server(made.accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    made.target = f"{host}:{port}"
    try:
        yield made
    finally:
        server.close()
        await made.close()
