"""The real Triton server for tests; `make triton` installs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from services.triton_server.install import is_installed
from services.triton_server.launcher import LAUNCHER
from services.triton_server.process import SHARED_MEMORY, TritonProcess

PLACE = Path(__file__).parents[2] / ".triton"

TritonFactory = Callable[..., TritonProcess]


@pytest.fixture(scope="session")
def launcher() -> Path:
    """The command `tritonserver`, or a skip that says how to get it."""
    if not is_installed(PLACE):
        pytest.skip("no Triton server in .triton: `make triton` installs it on Linux on x86-64")
    return PLACE / LAUNCHER


@pytest.fixture
def triton(launcher: Path) -> Iterator[TritonFactory]:
    """A factory of running servers, `triton(repository, load=["ncf"])`; at the end nothing of them is left."""
    started: list[TritonProcess] = []

    def start(
        repository: Path, mode: str = "explicit", load: Sequence[str] = (), flags: Sequence[str] = ()
    ) -> TritonProcess:
        process = TritonProcess(launcher, repository, mode, load, flags)
        everything.enter_context(process)
        started.append(process)
        return process

    with ExitStack() as everything:
        yield start
    for process in started:
        assert not list(SHARED_MEMORY.glob(f"{process.shared_memory_prefix}*"))
