"""A real tritonserver as a child process: for tests, benchmarks and trying things on one machine."""

from __future__ import annotations

import http.client
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import psutil

from deeprecsys.errors import UnavailableError

HOST = "127.0.0.1"
START_LIMIT_S = 30.0
END_LIMIT_S = 15.0
POLL_S = 0.02
LOG_TAIL_BYTES = 8_192
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux shows what shm_open made


class Ports(NamedTuple):
    """Where one server listens."""

    http: int
    grpc: int
    metrics: int


class TritonProcess:
    """One server on free ports of the loopback, which it keeps when it is started again after its death.

    In mode `explicit` it begins with the models of ``load`` and obeys the repository API; in mode `none` it serves all.
    The ``with`` block ends what is left of it: processes, and the shared memory, which is known by its prefix.
    """

    def __init__(
        self,
        launcher: Path,
        repository: Path,
        mode: str = "explicit",
        load: Sequence[str] = (),
        flags: Sequence[str] = (),
    ) -> None:
        self.ports = free_ports()
        self.shared_memory_prefix = f"deeprecsys_{secrets.token_hex(4)}_"
        self._command = [
            str(launcher),
            f"--model-repository={repository}",
            f"--model-control-mode={mode}",
            *(f"--load-model={name}" for name in load),
            *(f"--{name}-port={port}" for name, port in self.ports._asdict().items()),
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory_prefix}",
            *flags,
        ]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> str:
        """host:port of the gRPC service."""
        return f"{HOST}:{self.ports.grpc}"

    @property
    def pid(self) -> int:
        """The server's process id; its models run in processes of their own."""
        assert self._child is not None, "not started"
        return self._child.pid

    def __enter__(self) -> Self:
        """Start and wait until it is ready."""
        with ExitStack() as on_failure:
            on_failure.callback(self.close)
            self.start()
            on_failure.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop for good, whatever state it is in."""
        self.close()

    def start(self, limit_s: float = START_LIMIT_S) -> None:
        """Start, again if it was there before, and wait until it is ready; UnavailableError shows the log's tail."""
        self.stop()
        self._child = subprocess.Popen(  # noqa: S603 - our own
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        latest = time.monotonic() + limit_s
        while not self.is_ready():
            if self._child.poll() is not None:
                raise UnavailableError(
                    f"Triton ended with exit code {self._child.returncode}:\n{self.log_tail()}"
                )
            if time.monotonic() > latest:
                raise UnavailableError(f"Triton is not ready after {limit_s:g} s:\n{self.log_tail()}")
            time.sleep(POLL_S)

    def is_ready(self) -> bool:
        """Ask for readiness over HTTP, which is the last of the services that come up before the metrics."""
        connection = http.client.HTTPConnection(HOST, self.ports.http, timeout=1)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def stub_pids(self, model: str) -> list[int]:
        """Return the processes that run ``model``; one per instance."""
        children = [(child.pid, child.cmdline()) for child in psutil.Process(self.pid).children()]
        # A stub's first argument is <repository>/<model>/<version>/model.onnx.
        return [pid for pid, words in children if len(words) > 1 and Path(words[1]).parts[-3:-2] == (model,)]

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the server alone, not to its models' processes."""
        os.kill(self.pid, number)

    def wait(self, limit_s: float = END_LIMIT_S) -> int:
        """Wait for the end of a server that was sent a signal, and return its exit code; may raise TimeoutExpired."""
        assert self._child is not None, "not started"
        return self._child.wait(limit_s)

    def stop(self) -> None:
        """End the server and its models' processes and free its shared memory; at once, since it holds no state."""
        if self._child is None:
            return
        # The models' processes are of the server's session, and would outlive a killed server by seconds.
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._child = None
        for left in SHARED_MEMORY.glob(f"{self.shared_memory_prefix}*"):
            left.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop for good."""
        self.stop()
        self._log.close()

    def log_tail(self) -> str:
        """Return the last lines of the log of all starts; the position, which the server shares, stays where it is."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES)).decode(
            errors="replace"
        )


def free_ports() -> Ports:
    """Return three ports of the loopback that are free just now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in Ports._fields]
        for each in sockets:
            each.bind((HOST, 0))
        return Ports(*(each.getsockname()[1] for each in sockets))
