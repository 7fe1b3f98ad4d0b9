"""The driver's precedence is given back, and nothing that begins meanwhile has it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from services.loadgen.precedence import before_others

POLICY = "import os; print(os.sched_getscheduler(0))"


def policy() -> int:
    return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK


def test_precedence_lasts_for_the_block_and_is_not_inherited() -> None:
    waiting, go_on = threading.Event(), threading.Event()
    seen: list[int] = []

    def look() -> None:
        waiting.set()
        go_on.wait(20)
        seen.append(policy())

    thread = threading.Thread(target=look)
    thread.start()
    waiting.wait(20)
    with before_others() as permitted:
        inside = policy()
        child = subprocess.run([sys.executable, "-c", POLICY], capture_output=True, text=True, check=True)
    go_on.set()
    thread.join()
    assert inside == (os.SCHED_FIFO if permitted else os.SCHED_OTHER)
    assert int(child.stdout) == os.SCHED_OTHER
    assert policy() == os.SCHED_OTHER
    assert seen == [os.SCHED_OTHER]


@pytest.mark.parametrize("error", [PermissionError, OSError, ProcessLookupError])
def test_a_system_that_does_not_permit_it_is_no_error(
    monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with before_others() as permitted:
        assert not permitted
