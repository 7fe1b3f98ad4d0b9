"""The event loop of everything that drives load."""

from __future__ import annotations

import asyncio
import selectors


def precise_loop() -> asyncio.AbstractEventLoop:
    """Return a loop whose timers keep microseconds."""
    # epoll and poll wait in whole milliseconds, rounded up, which would send nearly every query late; select waits
    # in microseconds, and a driver has few enough files open for it.
    return asyncio.SelectorEventLoop(selectors.SelectSelector())
