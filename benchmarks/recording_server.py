"""The Rank server as it is, with a note of every batch that it ran.

First line out: the address and each model's batch size. Then `batches` on standard input is answered with what ran
since the last such command: the candidates of each batch, when it was handed to a worker and the seconds until it was
back, and the seconds that each query spent in the dispatcher. The end of the input stops the server.
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
    """Notes every batch, and every query's time."""

    def __init__(self) -> None:
        self.noted = self._nothing()

    def take(self) -> dict[str, list[float]]:
        """Return what was noted, and begin anew."""
        noted, self.noted = self.noted, self._nothing()
        return noted

    def observe_arrival(self, query: Query, now: float) -> None:
        """Not of interest."""

    def observe_batch(self, batch: Batch, run_s: float) -> None:
        """Note a batch."""
        self.noted["batches"].append(batch.size)
        self.noted["started_s"].append(batch.started_s)
        self.noted["run_s"].append(run_s)

    def observe(self, query: Query, now: float) -> None:
        """Note a query that is complete."""
        self.noted["answered_s"].append(now - query.arrival_s)

    @staticmethod
    def _nothing() -> dict[str, list[float]]:
        return {"batches": [], "started_s": [], "run_s": [], "answered_s": []}


async def main() -> None:
    recorder = Recorder()
    stop = asyncio.Event()
    sizes = BatchSizes()
    logging.basicConfig(level=logging.INFO, handlers=[sizes])

    def command() -> None:
        if sys.stdin.readline().strip() == "batches":
            say(recorder.take())
        else:
            stop.set()

    asyncio.get_running_loop().add_reader(sys.stdin, command)
    settings = ServeSettings(repository=Path(sys.argv[1]), port=0)
    await serve(
        settings, lambda address: say({"address": address, "batch_size": sizes.found}), stop, [recorder]
    )


def say(message: object) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
