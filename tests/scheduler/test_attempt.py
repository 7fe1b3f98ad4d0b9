"""How long a query may stay with an accelerator, and what the CPU would take instead: exact sums."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.attempt import CPU_MARGIN, MARGIN_S, PATIENCE, TIME_MARGIN, attempt_s, is_hopeless
from scheduler.batching import Batcher
from scheduler.plan import POLICIES, OperatingPoint, Plan
from scheduler.query import Complete, Offload, Query, Run

PLAN = Plan(OperatingPoint(100, offload_from=50), sla_s=0.1, fixed_s=0.01, per_candidate_s=0.001)


def query(size: int = 100, arrival_s: float = 0.0, expires_s: float = math.inf) -> Query:
    made = Query("m", size, arrival_s, expires_s)
    made.plan = PLAN
    return made


def batcher(workers: int = 1, policy: str = "paper", plan: Plan = PLAN, max_waiting: int = 1000) -> Batcher:
    made = Batcher(workers, POLICIES[policy], max_waiting)
    made.set_plan("m", plan)
    return made


# ---- the limit of an attempt ----


def test_an_attempt_leaves_the_cpu_its_time_and_a_margin() -> None:
    left_s = attempt_s(query(expires_s=1.0), cpu_s=0.2, now=0.1)
    assert left_s == pytest.approx(0.9 - 0.2 * (1 + CPU_MARGIN) - MARGIN_S - TIME_MARGIN * 1.0)


def test_without_a_deadline_of_the_client_the_target_counts_from_the_arrival() -> None:
    left_s = attempt_s(query(arrival_s=5.0), cpu_s=0.0, now=5.02)
    assert left_s == pytest.approx(0.08 - MARGIN_S - TIME_MARGIN * 0.1)


def test_a_deadline_that_the_cpu_just_meets_leaves_no_time_for_an_attempt() -> None:
    assert attempt_s(query(expires_s=1.0), cpu_s=0.7, now=0.0) < 0


def test_where_the_cpu_would_miss_the_deadline_in_any_case_the_accelerator_has_all_that_is_left() -> None:
    for cpu_s in (0.8, 1.0, 100.0):
        assert attempt_s(query(expires_s=1.0), cpu_s, now=0.0) == pytest.approx(1.0 - MARGIN_S)


def test_a_target_is_no_deadline_so_an_attempt_that_would_get_less_than_half_of_it_may_pass_it() -> None:
    assert attempt_s(query(), cpu_s=0.02, now=0.0) == pytest.approx(
        0.1 - MARGIN_S - 0.02 * (1 + CPU_MARGIN) - 0.02
    )
    for cpu_s in (0.04, 0.2):
        assert attempt_s(query(), cpu_s, now=0.01) == pytest.approx(PATIENCE * 0.1 - 0.01)


def test_a_target_as_tight_as_the_margin_is_left_to_the_accelerator() -> None:
    tight = query()
    tight.plan = replace(PLAN, sla_s=MARGIN_S)
    assert attempt_s(tight, cpu_s=0.0001, now=0.0) == pytest.approx(PATIENCE * MARGIN_S)


def test_there_is_no_attempt_where_no_time_is_left() -> None:
    assert attempt_s(query(), cpu_s=0.0, now=PATIENCE * 0.1) <= 0
    assert attempt_s(query(expires_s=1.0), cpu_s=0.0, now=1.0) < 0


@given(cpu_s=st.floats(0, 10), now=st.floats(0, 2), expires_s=st.floats(0.01, 2) | st.just(math.inf))
def test_an_attempt_never_lasts_beyond_the_end_and_never_takes_the_time_of_a_cpu_that_would_be_in_time(
    cpu_s: float, now: float, expires_s: float
) -> None:
    left_s = attempt_s(query(expires_s=expires_s), cpu_s, now)
    end_s = expires_s if expires_s < math.inf else PATIENCE * 0.1
    assert now + left_s <= end_s + 1e-9
    if expires_s < math.inf and now + cpu_s * (1 + CPU_MARGIN) + MARGIN_S <= end_s:
        assert now + left_s + cpu_s <= end_s


def test_the_cpu_is_hopeless_only_where_it_is_predicted_to_miss_a_deadline_that_is_still_to_come() -> None:
    assert is_hopeless(query(expires_s=1.0), cpu_s=0.6, now=0.5)
    assert not is_hopeless(query(expires_s=1.0), cpu_s=0.4, now=0.5)
    assert not is_hopeless(query(), cpu_s=100.0, now=0.5)
    assert not is_hopeless(query(expires_s=1.0), cpu_s=0.4, now=1.5)  # it is late already, and is told so


# ---- what the CPU would take ----


def test_an_idle_cpu_takes_the_rounds_of_batches_that_the_query_makes() -> None:
    assert batcher().cpu_seconds(query(100), 0.0) == pytest.approx(0.11)
    assert batcher().cpu_seconds(query(101), 0.0) == pytest.approx(0.22)
    assert batcher(workers=2).cpu_seconds(query(200), 0.0) == pytest.approx(0.11)


def test_a_policy_that_cuts_shares_the_query_over_the_workers() -> None:
    assert batcher(workers=2, policy="adaptive").cpu_seconds(query(100), 0.0) == pytest.approx(0.06)


def test_a_whole_query_is_one_inference_however_large() -> None:
    whole = query(500)
    whole.plan = Plan(OperatingPoint(1), 0.1, 0.01, 0.001, whole=True)
    assert batcher(workers=2).cpu_seconds(whole, 0.0) == pytest.approx(0.51)


def test_what_runs_and_what_waits_goes_first() -> None:
    busy = batcher()
    for _ in range(3):
        assert all(isinstance(i, Run) for i in busy.arrive(Query("m", 40, 0.0), 0.0))
    # At 0.02 the running batch has 0.03 left; two more queries wait, and share a batch or not, at most 0.09 + 0.01.
    assert busy.cpu_seconds(query(100), 0.02) == pytest.approx(0.03 + 0.09 + 0.11, abs=0.011)


# ---- coming back from the accelerator ----


def test_a_query_that_comes_back_is_never_refused_for_the_length_of_the_queue() -> None:
    full = batcher(max_waiting=100)
    full.arrive(Query("m", 10, 0.0), 0.0)
    full.arrive(Query("m", 40, 0.0), 0.0)
    large = Query("m", 80, 0.0)
    assert full.arrive(large, 0.0) == [Offload(large)]
    assert full.offload_failed(large, 0.1) == []
    assert full.waiting("m") == 120


def test_a_query_that_comes_back_is_scored_by_the_workers() -> None:
    idle = batcher()
    large = Query("m", 80, 0.0)
    idle.arrive(large, 0.0)
    (run,) = idle.offload_failed(large, 0.1)
    assert isinstance(run, Run)
    assert idle.finish(run.worker, 0.2) == [Complete(large)]
    assert not large.offloaded
