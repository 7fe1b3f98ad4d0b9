"""A Rank server as a child process, for the commands and benchmarks that need one of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from deeprecsys.errors import UnavailableError

STOP_TIMEOUT_S = 60.0
DEATH_TIMEOUT_S = 2.0
"""How long a server that stopped answering may take to be gone: its sockets close before it is."""

LOG_TAIL_BYTES = 16_384


@contextmanager
def server_process(
    repository: Path, arguments: Sequence[str] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start `deeprecsys serve` on a free port, yield it and its host:port once it serves, stop it at the end.

    Its log is kept aside. Raises UnavailableError, with the log's last line, when the server ends before it
    serves, while it is used, or badly at the end.
    """
    command = [sys.executable, "-m", "services.cli.app", "serve", "--repository", str(repository)]
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(  # noqa: S603 - our own
            [*command, "--port", "0", *arguments], stdout=subprocess.PIPE, stderr=log
        )
        try:
            address = _address(child, log)
            with _explained(child, log):
                yield child, address
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
            _wait(child)
        if child.returncode:
            raise UnavailableError(_ending(child, log, "badly"))


def _address(child: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    assert child.stdout is not None
    line = child.stdout.readline().decode().strip()
    if not line.startswith("listening on "):
        _wait(child)
        raise UnavailableError(_ending(child, log, "before it served"))
    return line.split()[-1]


@contextmanager
def _explained(child: subprocess.Popen[bytes], log: IO[bytes]) -> Iterator[None]:
    """Say why there is no answer where it is because the server died."""
    try:
        yield
    except UnavailableError as error:
        if _is_gone(child):
            raise UnavailableError(_ending(child, log, "while it was used")) from error
        raise


def _is_gone(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(DEATH_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _ending(child: subprocess.Popen[bytes], log: IO[bytes], when: str) -> str:
    reason = _last_line(log).removeprefix("error: ")
    return f"the server ended {when}, with exit code {child.returncode}" + (f": {reason}" if reason else "")


def _last_line(log: IO[bytes]) -> str:
    """Return the last line that is not empty; the position, which the child shares, stays where it is."""
    size = os.fstat(log.fileno()).st_size
    tail = os.pread(log.fileno(), LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES))
    lines = [line.strip() for line in tail.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _wait(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    finally:
        if child.stdout is not None:
            child.stdout.close()
