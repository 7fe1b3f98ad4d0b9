"""The driver's place on a machine that it shares with the server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def before_others() -> Iterator[bool]:
    """Run this thread, and those it starts, before all ordinary ones; yield whether the system permits it.

    A driver stands for clients on machines of their own. Where it must share the server's cores, an ordinary thread
    waits milliseconds for a core that inference holds, and the run is invalid because its queries left late. It uses
    a small part of a core, and gives the place back at the end. Needs Linux, and root or CAP_SYS_NICE.
    """
    try:
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except (AttributeError, PermissionError):
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, *before)
