"""The breaker as a table of events and answers; no clock."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.breaker import Breaker, BreakerState, Patience


def closed(now: float = 0.0, patience: Patience | None = None) -> Breaker:
    breaker = Breaker(patience)
    assert breaker.begin_probe(now)
    breaker.probe_succeeded(now)
    return breaker


def test_nothing_is_known_at_first_so_it_is_open_and_a_probe_is_due() -> None:
    breaker = Breaker()
    assert breaker.state is BreakerState.OPEN
    assert breaker.probe_due_s == -math.inf
    assert breaker.begin_probe(0.0)
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.begin_probe(0.0)  # one probe at a time
    breaker.probe_succeeded(1.0)
    assert breaker.state is BreakerState.CLOSED


def test_an_endpoint_that_is_away_opens_it_at_once() -> None:
    breaker = closed()
    assert breaker.away(sent_s=1.0, now=1.0)
    assert breaker.state is BreakerState.OPEN
    assert breaker.probe_due_s == 1.25
    assert not breaker.away(sent_s=1.0, now=1.01)  # the next ones tell nothing new
    assert not breaker.begin_probe(1.2)
    assert breaker.begin_probe(1.25)


def test_failures_open_it_only_when_several_come_without_an_answer_in_between() -> None:
    breaker = closed()
    assert not breaker.failed(1.0, 2.0)
    assert not breaker.failed(1.1, 2.1)
    breaker.answered(2.2)
    assert not breaker.failed(2.3, 3.0)
    assert not breaker.failed(2.4, 3.1)
    assert breaker.failed(2.5, 3.2)
    assert breaker.state is BreakerState.OPEN


def test_attempts_with_very_little_time_are_not_taken_for_an_outage_at_once() -> None:
    breaker = closed(patience=Patience(silent_s=0.1))
    opened = [breaker.failed(sent_s=1 + k / 100, now=1 + k / 100 + 0.002) for k in range(1, 15)]
    assert opened.index(True) == 10  # 0.1 s after the first of them was sent, not after the third


def test_an_endpoint_that_has_calls_and_says_nothing_hangs() -> None:
    breaker = closed(patience=Patience(hang_s=1.0))
    breaker.answered(5.0)
    assert breaker.hang_due_s(oldest_s=4.0) == 6.0  # it was heard since
    assert not breaker.hangs(oldest_s=4.0, now=5.9)
    assert breaker.hangs(oldest_s=4.0, now=6.0)
    assert breaker.state is BreakerState.OPEN
    assert not breaker.hangs(oldest_s=4.0, now=9.0)


def test_a_time_out_while_others_are_answered_is_slowness_and_not_silence() -> None:
    breaker = closed()
    breaker.answered(5.0)
    assert not any(breaker.failed(sent_s=4.0 + k / 10, now=6.0) for k in range(9))
    assert breaker.state is BreakerState.CLOSED


def test_probes_that_fail_come_at_growing_intervals_within_a_bound() -> None:
    breaker = closed(patience=Patience(first_wait_s=0.25, longest_wait_s=1.0))
    breaker.away(100.0, 100.0)
    now, waits = 100.0, []
    for _ in range(5):
        waits.append(breaker.probe_due_s - now)
        now = breaker.probe_due_s
        assert breaker.begin_probe(now)
        breaker.probe_failed(now)
    assert waits == [0.25, 0.25, 0.5, 1.0, 1.0]


def test_a_probe_may_name_its_own_interval() -> None:
    breaker = Breaker()
    breaker.begin_probe(0.0)
    breaker.probe_failed(0.0, wait_s=10.0)
    assert not breaker.begin_probe(9.9)
    assert breaker.begin_probe(10.0)


def test_one_that_opens_again_at_once_goes_on_doubling_and_a_steady_one_begins_anew() -> None:
    breaker = closed()
    breaker.away(20.0, 20.0)
    breaker.begin_probe(20.25)
    breaker.probe_failed(20.25)
    breaker.begin_probe(20.5)
    breaker.probe_succeeded(20.5)
    breaker.away(21.0, 21.0)
    assert breaker.probe_due_s == 21.5
    breaker.begin_probe(21.5)
    breaker.probe_succeeded(21.5)
    breaker.away(40.0, 40.0)
    assert breaker.probe_due_s == 40.25


def test_what_was_sent_before_it_closed_tells_of_an_outage_that_is_over() -> None:
    breaker = closed(now=10.0)
    assert not breaker.away(sent_s=9.0, now=11.0)
    assert not any(breaker.failed(sent_s=9.0, now=11.0) for _ in range(5))
    assert breaker.state is BreakerState.CLOSED


def test_an_answer_while_it_is_open_does_not_close_it() -> None:
    breaker = closed()
    breaker.away(1.0, 1.0)
    breaker.answered(1.1)
    assert breaker.state is BreakerState.OPEN


@pytest.mark.parametrize("end", [Breaker.probe_succeeded, Breaker.probe_failed])
def test_a_probe_that_never_began_cannot_end(end) -> None:
    with pytest.raises(ValueError, match="no probe"):
        end(closed(), 1.0)


@given(st.lists(st.tuples(st.sampled_from(["answered", "failed", "away", "probe"]), st.floats(0.0, 3.0))))
def test_whatever_happens_a_probe_is_due_within_the_longest_wait(events: list[tuple[str, float]]) -> None:
    breaker, now = closed(), 0.0
    for what, later_s in events:
        now += later_s
        if what == "answered":
            breaker.answered(now)
        elif what == "probe":
            if breaker.begin_probe(now):
                breaker.probe_failed(now)
        else:
            getattr(breaker, what)(now - later_s / 2, now)
        assert breaker.state is not BreakerState.HALF_OPEN
        if breaker.state is BreakerState.OPEN:
            assert breaker.probe_due_s <= now + 1.0
