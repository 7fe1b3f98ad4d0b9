"""A Rank server as a child process, for the commands and benchmarks that need one of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from deeprecsys.errors import UnavailableError

STOP_TIMEOUT_S = 60.0


@contextmanager
def server_process(
    repository: Path, arguments: Sequence[str] = (), log: IO[bytes] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start `deeprecsys serve` on a free port, yield it and its host:port once it serves, stop it at the end.

    ``log`` gets its standard error. Raises UnavailableError when it ends before it serves, or badly at the end.
    """
    command = [
        sys.executable,
        "-m",
        "services.cli.app",
        "serve",
        "--repository",
        str(repository),
        "--port",
        "0",
    ]
    child = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=log)  # noqa: S603 - our own
    try:
        assert child.stdout is not None
        line = child.stdout.readline().decode().strip()
        if not line.startswith("listening on "):
            raise UnavailableError(f"the server ended before it served, with exit code {child.wait()}")
        yield child, line.split()[-1]
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
        code = _wait(child)
    if code:
        raise UnavailableError(f"the server ended with exit code {code}")


def _wait(child: subprocess.Popen[bytes]) -> int:
    try:
        return child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()
    finally:
        if child.stdout is not None:
            child.stdout.close()
