"""The driver's place on a machine that it shares with the server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TASKS = Path("/proc/self/task")


@contextmanager
def before_others() -> Iterator[bool]:
    """Run this process's threads before all ordinary ones; yield whether the system permits it.

    A driver stands for clients on machines of their own. Where it must share the server's cores, an ordinary thread
    waits milliseconds for a core that inference holds, and the run is invalid because its queries left late. Threads
    and processes that begin meanwhile are ordinary ones. Needs Linux, and root or CAP_SYS_NICE.
    """
    raised: list[tuple[int, int, os.sched_param]] = []
    try:
        for task in _TASKS.iterdir():
            thread = int(task.name)
            before = (thread, os.sched_getscheduler(thread), os.sched_getparam(thread))
            os.sched_setscheduler(thread, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
            raised.append(before)
    except (AttributeError, OSError):
        pass  # not this system, not permitted, or a thread that has just ended: those raised so far are
    try:
        yield bool(raised)
    finally:
        for thread, policy, parameter in raised:
            _set_back(thread, policy, parameter)


def _set_back(thread: int, policy: int, parameter: os.sched_param) -> None:
    try:
        os.sched_setscheduler(thread, policy, parameter)
    except ProcessLookupError:
        return  # it has ended
