"""Runs a sweep on a Ray cluster: the same function, mapped by an engine that is there."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deeprecsys.errors import InvalidSettingError, UnavailableError
from services.fleet.fleet_file import Case
from services.fleet.sweep import Row, Runner, run_case

_AHEAD = 2
"""So many cases per CPU are handed to the cluster at once: no CPU idles, and what an interruption wastes is little."""

PACKAGES = tuple(str(Path(__file__).parents[2] / name) for name in ("deeprecsys", "scheduler", "services"))
"""Sent along, so that every worker runs this very code; what it imports must be installed on the cluster."""


def on_ray(address: str) -> Runner:
    """Return a runner on the cluster at this address (``host:port``, ``ray://...``, ``auto`` for one on this machine).

    Raises InvalidSettingError where Ray is not installed; when it runs, UnavailableError where no cluster answers.
    """
    if find_spec("ray") is None:
        raise InvalidSettingError("--ray needs Ray: pip install 'deeprecsys[ray]'")

    def run(jobs: Sequence[tuple[Case, int]]) -> Iterator[tuple[int, Row]]:
        import ray  # noqa: PLC0415 - an extra

        _require_listening(address)
        environment = {"py_modules": list(PACKAGES)}
        try:
            ray.init(address=address, runtime_env=environment, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UnavailableError(f"no Ray cluster at {address}: {error}") from error
        try:
            yield from _map(ray, jobs)
        finally:
            ray.shutdown()

    return run


def _require_listening(address: str) -> None:
    """Raise UnavailableError where nothing listens: Ray itself tries for minutes, and then ends the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except OSError as error:
        raise UnavailableError(f"no Ray cluster at {address}: {error.strerror or error}") from error


def _map(ray: Any, jobs: Sequence[tuple[Case, int]]) -> Iterator[tuple[int, Row]]:
    remote = ray.remote(run_case)
    most = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = enumerate(jobs)
    running: dict[Any, int] = {}
    while True:
        while len(running) < most and (following := next(waiting, None)) is not None:
            index, (case, seed) = following
            running[remote.remote(case, seed)] = index
        if not running:
            return
        (done,), _ = ray.wait(list(running), num_returns=1)
        yield running.pop(done), ray.get(done)
