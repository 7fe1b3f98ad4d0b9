import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.arrivals import parse_arrivals, varying
from scheduler.rate_curve import step
from scheduler.sizes import parse_sizes
from scheduler.workload import Schedule, draw_schedule


@given(
    st.sampled_from(
        ["poisson", "uniform", "compat", "step:1,3", "ramp:1,2,0.5", "diurnal:1,0", "bursty:9,0.2,0.3"]
    ),
    st.integers(0, 2**40),
    st.floats(0.5, 500.0),
)
def test_any_schedule_ascends_within_its_duration_or_has_its_count(spec, seed, qps):
    law, size_law = parse_arrivals(spec), parse_sizes("production")
    by_time = draw_schedule(seed, law, size_law, qps, duration_s=3.0)
    by_count = draw_schedule(seed, law, size_law, qps, count=50)
    assert len(by_count) == 50
    assert (by_time.arrival_s < 3.0).all()
    for schedule in (by_time, by_count):
        assert schedule.arrival_s.dtype == np.float64
        assert (np.diff(schedule.arrival_s) >= 0).all()
        assert (schedule.arrival_s >= 0).all()
        assert len(schedule.size) == len(schedule)


def equal(a: Schedule, b: Schedule) -> tuple[bool, bool]:
    return np.array_equal(a.arrival_s, b.arrival_s), np.array_equal(a.size, b.size)


def test_a_seed_fixes_the_schedule_and_other_seeds_give_independent_ones():
    def draw(seed, sizes="production"):
        return draw_schedule(seed, parse_arrivals("poisson"), parse_sizes(sizes), 100.0, count=20_000)

    assert equal(draw(3), draw(3)) == (True, True)
    assert equal(draw([3, 0]), draw([3, 1])) == (False, False)
    for other in (4, [3, 1]):
        a, b = draw(3), draw(other)
        assert abs(np.corrcoef(np.diff(a.arrival_s), np.diff(b.arrival_s))[0, 1]) < 0.03
        assert abs(np.corrcoef(a.size, b.size)[0, 1]) < 0.03
    # One law can be changed without touching the draws of the other.
    assert equal(draw(3), draw(3, "mlperf")) == (True, False)


def test_sizes_can_be_cut_to_what_a_model_takes():
    schedule = draw_schedule(
        0, parse_arrivals("poisson"), parse_sizes("mlperf"), 10.0, count=1000, max_size=250
    )
    assert set(schedule.size.tolist()) == {100, 200, 250}


@pytest.mark.parametrize(
    ("qps", "span"),
    [
        (0.0, {"count": 1}),
        (-1.0, {"count": 1}),
        (math.nan, {"count": 1}),
        (math.inf, {"count": 1}),
        (1.0, {"count": 0}),
        (1.0, {"duration_s": 0.0}),
        (1.0, {"duration_s": math.nan}),
        (1.0, {}),
        (1.0, {"count": 1, "duration_s": 1.0}),
        (1e9, {"duration_s": 1.0}),
    ],
)
def test_what_makes_no_schedule_is_refused(qps, span):
    with pytest.raises(ValueError, match=r"must be|give either|exceeds"):
        draw_schedule(0, varying(step(1, 2)), parse_sizes("fixed:1"), qps, **span)
