"""The Rank server as it is, with a note of every batch that it ran.

First line out: the address and each model's batch size. Then `batches` on standard input is answered with the
candidates of each batch since the last such command; the end of the input stops the server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path

from scheduler.query import Batch, Query
from services.rank.server import serve
from services.rank.settings import ServeSettings


class BatchSizes(logging.Handler):
    """Reads the batch sizes off the log lines of the models."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Note the batch size of a model that became ready."""
        if hasattr(record, "batch_size"):
            self.found[record.model.partition("/")[0]] = record.batch_size  # type: ignore[attr-defined]


class Recorder:
    """Notes the candidates of every batch."""

    def __init__(self, ran: list[int]) -> None:
        self._ran = ran

    def observe_arrival(self, query: Query, now: float) -> None:
        """Not of interest."""

    def observe_batch(self, batch: Batch, run_s: float) -> None:  # noqa: ARG002
        """Note a batch."""
        self._ran.append(batch.size)

    def observe(self, query: Query, now: float) -> None:
        """Not of interest."""


async def main() -> None:
    ran: list[int] = []
    stop = asyncio.Event()
    sizes = BatchSizes()
    logging.basicConfig(level=logging.INFO, handlers=[sizes])

    def command() -> None:
        if sys.stdin.readline().strip() == "batches":
            say({"batches": ran.copy()})
            ran.clear()
        else:
            stop.set()

    asyncio.get_running_loop().add_reader(sys.stdin, command)
    settings = ServeSettings(repository=Path(sys.argv[1]), port=0)
    await serve(
        settings, lambda address: say({"address": address, "batch_size": sizes.found}), stop, [Recorder(ran)]
    )


def say(message: object) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
