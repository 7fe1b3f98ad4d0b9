"""A peer's server as a child process: until it answers, what memory all its processes hold, and its end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from services.loadgen.service import Service
from services.loadgen.settings import MIB
from services.loadgen.transport import SendFailedError

START_LIMIT_S = 60.0
RETRY_S, RETRY_TIMEOUT_S = 0.2, 5.0
END_LIMIT_S = 15.0
LOG_TAIL_BYTES = 2_048


class PeerFailedError(Exception):
    """A peer does not serve; the message says why."""


@contextmanager
def peer_process(
    command: Sequence[str],
    service: Service,
    request: bytes,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[int]:
    """Start a server, yield its process id once it answers ``request``, and end all its processes.

    request: a serialised RankRequest. environment: what differs from ours. folder: where it runs, here when None.
    PeerFailedError shows the log's last line.
    """
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=folder,
            env={**os.environ, **(environment or {})},
        )
        try:
            asyncio.run(_first_answer(child, log, service, service.encode(request)))
            yield child.pid
        finally:
            end(child)


async def _first_answer(
    child: subprocess.Popen[bytes], log: IO[bytes], service: Service, payload: bytes
) -> None:
    latest_s = time.monotonic() + START_LIMIT_S
    async with service.connect() as transport:
        while True:
            try:
                answer = await transport.send(payload, RETRY_TIMEOUT_S)
            except SendFailedError as failure:
                if child.poll() is not None:
                    raise PeerFailedError(
                        f"ended with code {child.returncode}: {_last_line(log)}"
                    ) from failure
                if time.monotonic() > latest_s:
                    raise PeerFailedError(f"no answer, {failure}: {_last_line(log)}") from failure
                await asyncio.sleep(RETRY_S)
            else:
                if service.count_scores(answer) < 1:
                    raise PeerFailedError(f"an answer without scores: {_last_line(log)}")
                return


def end(child: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, and end each of its processes that is left after END_LIMIT_S."""
    tree = [] if child.poll() is not None else [child.pid, *_descendants(child.pid)]
    family = [psutil.Process(pid) for pid in tree if psutil.pid_exists(pid)]
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    # A server's workers outlive it by moments, or, where it was killed, for good.
    _, left = psutil.wait_procs(family, timeout=2.0)
    for process in left:
        process.kill()  # psutil makes sure that the number is still that process's
    psutil.wait_procs(left, timeout=2.0)


def _descendants(pid: int) -> list[int]:
    try:
        return [process.pid for process in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def memory_mib(pid: int) -> dict[str, float]:
    """Return the resident memory in MiB of a process and all below it, and how many they are.

    ``rss_mib`` counts a page once for each process that shares it, ``pss_mib`` once in all.
    """
    rss = pss = processes = 0
    for each in (pid, *_descendants(pid)):
        try:
            memory = psutil.Process(each).memory_full_info()
        except psutil.NoSuchProcess:
            continue
        rss, pss, processes = rss + memory.rss, pss + memory.pss, processes + 1
    return {"rss_mib": rss / MIB, "pss_mib": pss / MIB, "processes": processes}


def _last_line(log: IO[bytes]) -> str:
    """Return the last line that is not empty; the position, which the server shares, stays where it is."""
    size = os.fstat(log.fileno()).st_size
    tail = os.pread(log.fileno(), LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES)).decode(errors="replace")
    return next((line.strip() for line in reversed(tail.splitlines()) if line.strip()), "it logged nothing")
