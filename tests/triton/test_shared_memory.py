"""A Triton's Python backend holds shared memory, which outlives a killed server unless somebody frees it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from services.triton_server.process import SHARED_MEMORY
from tests.conftest import LINEAR_CONFIG, linear_model, write_model

pytestmark = pytest.mark.triton


@pytest.mark.parametrize("ending", [None, signal.SIGKILL, signal.SIGSTOP])
def test_what_a_server_held_in_shared_memory_is_gone_once_it_is_stopped(
    tmp_path: Path, triton, ending
) -> None:
    write_model(tmp_path / "repository", "linear", linear_model(), LINEAR_CONFIG)
    server = triton(tmp_path / "repository", load=["linear"])
    mine = f"{server.shared_memory_prefix}*"
    held = {place.name for place in SHARED_MEMORY.glob(mine)}
    assert held
    if ending is not None:
        server.send_signal(ending)
    if ending is signal.SIGKILL:
        server.wait()
        assert {place.name for place in SHARED_MEMORY.glob(mine)} == held  # the server itself frees nothing
    server.stop()
    assert not list(SHARED_MEMORY.glob(mine))
