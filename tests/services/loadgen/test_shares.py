"""A plan that is dealt out and put together again is the plan; what each driver recorded is where one had put it."""

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.loadgen.driver import Limits, Plan
from services.loadgen.recording import OK, UNFINISHED, Progress, Trace
from services.loadgen.shares import merge_progress, merge_traces, split

GONE = grpc.StatusCode.UNAVAILABLE.value[0]


def plan_of(count: int) -> Plan:
    return Plan(np.arange(count) / 10.0, np.arange(count) % 3, (b"a", b"b", b"c"))


def trace_of(share, code=OK, *, cpu_s=1.0, wall_s=2.0, cut_short=None) -> Trace:
    """What a driver records that answers query k after k milliseconds."""
    count = len(share.query)
    return Trace(
        query=np.arange(count),
        scheduled_s=share.arrival_s,
        latency_s=share.query / 1e3,
        lag_s=share.query / 1e6,
        code=np.full(count, code, dtype=np.int16),
        wall_s=wall_s,
        cpu_s=cpu_s,
        cut_short=cut_short,
    )


@given(count=st.integers(1, 60), drivers=st.integers(1, 9))
def test_what_was_dealt_out_comes_back_as_one_trace_in_the_order_of_the_plan(count, drivers):
    plan = plan_of(count)
    shares = split(plan, Limits(), None, drivers)
    merged = merge_traces(shares, [trace_of(share) for share in shares], None)

    assert len(shares) == min(drivers, count)
    assert merged.query.tolist() == list(range(count))
    assert merged.scheduled_s.tolist() == plan.arrival_s.tolist()
    assert np.array_equal(merged.latency_s, np.arange(count) / 1e3)
    assert np.array_equal(merged.lag_s, np.arange(count) / 1e6)
    assert merged.cpu_s == len(shares)
    assert merged.wall_s == 2.0
    assert all((plan.payload[share.query] == share.payload).all() for share in shares)


@given(count=st.integers(1, 40), concurrency=st.integers(1, 12), drivers=st.integers(1, 5))
def test_a_closed_loop_keeps_its_number_in_flight_over_all_drivers(count, concurrency, drivers):
    shares = split(plan_of(count), Limits(), concurrency, drivers)
    assert sum(share.concurrency for share in shares) == concurrency
    assert all(share.concurrency >= 1 and len(share.query) >= 1 for share in shares)


def test_every_driver_waits_for_answers_until_the_same_time():
    shares = split(plan_of(5), Limits(drain_s=1.0), None, 2)
    assert [share.arrival_s[-1] + share.limits.drain_s for share in shares] == pytest.approx([1.4, 1.4])


def test_what_bounds_a_run_is_dealt_out_rounded_up():
    limits = Limits(max_in_flight=11, max_in_flight_bytes=101, unavailable_limit=5)
    for share in split(plan_of(8), limits, None, 2):
        got = share.limits
        assert (got.max_in_flight, got.max_in_flight_bytes, got.unavailable_limit) == (6, 51, 3)
    (alone, _) = split(plan_of(8), Limits(unavailable_limit=None), None, 2)
    assert alone.limits.unavailable_limit is None


def test_of_a_run_cut_short_only_answers_and_failures_are_kept_of_every_driver():
    shares = split(plan_of(4), Limits(), None, 2)
    traces = [trace_of(shares[0], UNFINISHED), trace_of(shares[1], GONE, cut_short="its own reason")]
    merged = merge_traces(shares, traces, "the first reason")
    assert merged.query.tolist() == [1, 3]
    assert merged.code.tolist() == [GONE, GONE]
    assert merged.cut_short == "the first reason"


def test_looks_of_several_drivers_add_up_to_one():
    looks = [
        Progress(1.0, 4.0, 10, 20, {"OK": 8}, np.array([0.001, 0.002])),
        Progress(1.1, 5.0, 11, 20, {"OK": 9, "INTERNAL": 2}, np.array([0.003, np.inf])),
    ]
    look = merge_progress(looks, 40)
    assert (look.elapsed_s, look.total_s, look.sent, look.total) == (1.1, 5.0, 21, 40)
    assert look.codes == {"OK": 17, "INTERNAL": 2}
    assert (look.p50_s, look.p99_s) == (0.003, np.inf)
