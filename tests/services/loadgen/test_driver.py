import asyncio
import os
import signal

import grpc
import numpy as np
import pytest

from services.loadgen import driver
from services.loadgen.driver import Limits, Plan, drive
from services.loadgen.interrupt import set_on_interrupt
from services.loadgen.recording import DROPPED, OK, UNFINISHED, code_name
from services.loadgen.transport import SendFailedError


def plan(*arrival_s: float, payload: bytes = b"query") -> Plan:
    count = len(arrival_s)
    return Plan(np.array(arrival_s), np.arange(count), tuple(payload + str(i).encode() for i in range(count)))


class Recording:
    """A transport that notes what it was given and does what ``react`` says."""

    def __init__(self, react=None):
        self.sent, self.timeouts, self.react = [], [], react

    async def send(self, payload, timeout_s):
        self.sent.append(payload)
        self.timeouts.append(timeout_s)
        if self.react is not None:
            await self.react(len(self.sent))
        return b""


async def forever(_nth):
    await asyncio.Event().wait()


async def test_queries_leave_in_the_order_of_the_schedule_and_never_before_their_time():
    transport = Recording()
    trace = await drive(plan(0.0, 0.01, 0.01, 0.03), transport)

    assert transport.sent == [b"query0", b"query1", b"query2", b"query3"]
    assert (trace.lag_s >= -1e-6).all()
    assert (trace.latency_s >= trace.lag_s).all()
    assert trace.code.tolist() == [OK] * 4


async def test_a_query_leaves_on_time_although_the_one_before_has_no_answer():
    async def first_waits_for_the_last(nth):
        if nth == 1:
            await released.wait()
        if nth == 3:
            released.set()

    released = asyncio.Event()
    trace = await drive(plan(0.0, 0.01, 0.02), Recording(first_waits_for_the_last))
    assert trace.code.tolist() == [OK] * 3
    assert trace.latency_s[0] >= 0.02


async def test_latency_counts_from_the_scheduled_time_when_the_driver_is_late():
    late = plan(-5.0)
    trace = await drive(late, Recording())
    assert trace.latency_s[0] >= trace.lag_s[0] >= 5.0


async def test_the_deadline_counts_from_the_scheduled_time():
    transport = Recording()
    await drive(plan(-0.5), transport, Limits(deadline_s=1.0))
    await drive(plan(-5.0), transport, Limits(deadline_s=1.0))
    assert 0 < transport.timeouts[0] <= 0.5
    assert transport.timeouts[1] == 0.0


async def test_what_has_no_answer_by_the_end_of_the_drain_is_infinitely_late():
    trace = await drive(plan(0.0, 0.0), Recording(forever), Limits(drain_s=0.01))
    assert trace.code.tolist() == [UNFINISHED] * 2
    assert np.isinf(trace.latency_s).all()
    assert trace.cut_short is None


async def test_queries_beyond_the_drivers_memory_are_dropped_and_counted():
    limits = Limits(drain_s=0.01, max_in_flight=2)
    trace = await drive(plan(0.0, 0.0, 0.0), Recording(forever), limits)
    assert trace.code.tolist() == [UNFINISHED, UNFINISHED, DROPPED]

    limits = Limits(drain_s=0.01, max_in_flight_bytes=13)
    trace = await drive(plan(0.0, 0.0, 0.0), Recording(forever), limits)
    assert trace.code.tolist() == [UNFINISHED, UNFINISHED, DROPPED]


async def test_stopping_keeps_what_was_answered_and_forgets_the_rest():
    async def second_stops(nth):
        if nth == 2:
            stop.set()
            await forever(nth)

    stop = asyncio.Event()
    trace = await drive(plan(0.0, 0.01, 60.0), Recording(second_stops), stop=stop)
    assert trace.query.tolist() == [0]
    assert trace.cut_short == "stopped by the user"


async def test_ctrl_c_stops_a_run():
    async def interrupt(nth):
        os.kill(os.getpid(), signal.SIGINT)

    stop = asyncio.Event()
    handler = signal.getsignal(signal.SIGINT)
    with set_on_interrupt(stop):
        trace = await drive(plan(0.0, 60.0), Recording(interrupt), stop=stop)
    assert trace.cut_short == "stopped by the user"
    assert signal.getsignal(signal.SIGINT) is handler


async def test_a_long_row_of_unavailable_ends_the_run_and_other_failures_do_not():
    async def refused_then_gone(nth):
        raise SendFailedError(
            grpc.StatusCode.RESOURCE_EXHAUSTED if nth <= 5 else grpc.StatusCode.UNAVAILABLE, "as asked"
        )

    arrivals = np.concatenate((np.zeros(8), [60.0])).tolist()
    trace = await drive(plan(*arrivals), Recording(refused_then_gone), Limits(unavailable_limit=3))
    names = [code_name(c) for c in trace.code.tolist()]
    assert names == ["RESOURCE_EXHAUSTED"] * 5 + ["UNAVAILABLE"] * 3


async def test_a_fault_of_the_transport_is_raised_and_never_measured():
    async def fault(nth):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await drive(plan(0.0, 60.0), Recording(fault))


async def test_a_closed_loop_sends_the_next_query_when_one_is_answered():
    in_flight, most = 0, 0

    async def counting(nth):
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0)
        in_flight -= 1

    transport = Recording(counting)
    trace = await drive(plan(*[0.0] * 50), transport, concurrency=8)
    assert most == 8
    assert len(transport.sent) == 50
    assert (trace.lag_s == trace.lag_s.clip(0, None)).all()
    assert (np.diff(trace.scheduled_s) >= 0).all()


async def test_progress_tells_of_sends_and_codes(monkeypatch):
    monkeypatch.setattr(driver, "PROGRESS_EVERY_S", 0.02)
    seen = []

    async def some_fail(nth):
        if nth == 2:
            raise SendFailedError(grpc.StatusCode.INTERNAL)

    await drive(plan(0.0, 0.0, 0.2), Recording(some_fail), on_progress=seen.append)
    assert seen[-1].codes == {"OK": 1, "INTERNAL": 1}
    assert (seen[-1].sent, seen[-1].total) == (2, 3)
    assert seen[-1].p99_s == float("inf")


async def test_an_empty_plan_ends_at_once():
    trace = await drive(plan(), Recording())
    assert len(trace.query) == 0
