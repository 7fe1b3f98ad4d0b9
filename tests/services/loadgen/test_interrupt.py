import asyncio
import signal
import threading

import pytest

from services.loadgen.interrupt import raise_on_interrupt, set_on_interrupt


def test_ctrl_c_raises_in_work_that_blocks_the_loop_and_the_handler_is_given_back():
    async def work() -> None:
        before = signal.getsignal(signal.SIGINT)
        try:
            with raise_on_interrupt():
                signal.raise_signal(signal.SIGINT)
                pytest.fail("it goes on")
        finally:
            assert signal.getsignal(signal.SIGINT) is before

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(work())


def test_other_threads_receive_no_signals_and_set_no_handlers():
    async def both() -> None:
        with set_on_interrupt(asyncio.Event()), raise_on_interrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    seen = []
    thread = threading.Thread(target=asyncio.run, args=(both(),))
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    thread.join()
    assert seen == [before]
