"""The plan that a model starts with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.first_plan import HANDOVER_S, first_plan

LADDER = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def line(fixed_s: float, per_candidate_s: float) -> list[float]:
    """What the engine takes when a batch costs the scheduler fixed_s in all."""
    return [fixed_s - HANDOVER_S + per_candidate_s * n for n in LADDER]


def test_the_batch_size_is_the_smallest_of_nearly_the_cheapest() -> None:
    plan = first_plan(LADDER, line(1e-3, 1e-4), sla_s=10.0, largest_batch=4096)
    assert plan.point.batch_size == 256  # 1.019 times what 512 costs per candidate
    assert plan.point.offload_from is None
    plan = first_plan(LADDER, line(1e-4, 1e-4), sla_s=10.0, largest_batch=4096)
    assert plan.point.batch_size == 64
    plan = first_plan(LADDER, line(1e-6, 1e-4), sla_s=10.0, largest_batch=4096)
    assert plan.point.batch_size == 1


def test_a_size_that_takes_more_than_half_the_target_is_not_chosen() -> None:
    plan = first_plan(LADDER, line(1e-3, 1e-4), sla_s=0.01, largest_batch=4096)
    assert plan.point.batch_size == 32
    hopeless = first_plan(LADDER, line(1.0, 0.1), sla_s=0.01, largest_batch=4096)
    assert hopeless.point.batch_size == 1


def test_the_line_predicts_what_was_timed_and_a_cut_pays_twice_its_handover() -> None:
    plan = first_plan(LADDER, line(3.1e-4, 4e-5), sla_s=10.0, largest_batch=4096)
    assert plan.run_s(100) == pytest.approx(3.1e-4 + 100 * 4e-5)
    assert plan.smallest_cut == 16  # 2 * 310 us / 40 us, rounded up
    assert plan.smallest_cut * 4e-5 >= 2 * 3.1e-4


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=10), st.floats(1e-3, 10))
def test_any_timing_gives_a_plan_that_can_be_run(seconds: list[float], sla_s: float) -> None:
    sizes = LADDER[: len(seconds)]
    plan = first_plan(sizes, seconds, sla_s=sla_s, largest_batch=512)
    assert plan.point.batch_size in sizes
    assert 1 <= plan.smallest_cut <= plan.point.batch_size
    assert plan.fixed_s >= 0
    assert plan.per_candidate_s >= 0
    assert plan.run_s(512) < float("inf")


def test_no_timing_is_refused() -> None:
    with pytest.raises(ValueError, match="0 sizes"):
        first_plan([], [], sla_s=1.0, largest_batch=1)
