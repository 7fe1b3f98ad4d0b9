"""What Ctrl-C does to a run: it ends early and keeps what it has, whatever it is doing."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def set_on_interrupt(stop: asyncio.Event) -> Iterator[None]:
    """Let Ctrl-C set the event instead of raising; only the main thread can receive it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)


@contextmanager
def raise_on_interrupt() -> Iterator[None]:
    """Let Ctrl-C raise at once in work that blocks the event loop, which would only see it afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
