import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.workload import (
    RateCurve,
    Schedule,
    diurnal,
    draw_schedule,
    empirical,
    parse_arrivals,
    parse_ids,
    parse_sizes,
    ramp,
    step,
    varying,
)

MANY = 400_000


def sizes_of(spec: str) -> np.ndarray:
    return parse_sizes(spec).draw(np.random.default_rng(0), MANY)


def arrivals(spec: str, qps: float, duration_s: float, seed: int = 0) -> np.ndarray:
    return draw_schedule(
        seed, parse_arrivals(spec), parse_sizes("fixed:1"), qps, duration_s=duration_s
    ).arrival_s


# --- sizes ---


@pytest.mark.parametrize(
    ("spec", "mean", "at_percent", "largest_quarter"),
    [
        ("production", 103, {50: 66, 75: 99, 95: 337, 99: 712}, 0.59),
        ("production-lognormal", 126.6, {50: 99, 75: 159, 95: 314, 99: 508}, 0.51),
        ("released", 166.8, {50: 163, 75: 187, 95: 227, 99: 260}, 0.32),
        ("normal", 255.5, {50: 256, 75: 277, 95: 308, 99: 330}, 0.29),
    ],
)
def test_size_laws_have_the_percentiles_and_the_tail_weight_of_theory(
    spec, mean, at_percent, largest_quarter
):
    size = sizes_of(spec)
    assert size.mean() == pytest.approx(mean, rel=0.01)
    for percent, expected in at_percent.items():
        assert np.percentile(size, percent) == pytest.approx(expected, rel=0.02)
    assert np.sort(size)[-MANY // 4 :].sum() / size.sum() == pytest.approx(largest_quarter, abs=0.01)


def test_the_production_tail_is_a_bounded_pareto():
    tail = sizes_of("production")
    tail = tail[tail >= 100]
    assert len(tail) / MANY == pytest.approx(0.25, abs=0.003)
    for x in (200, 400, 800):
        survival = (x**-1.1 - 1000**-1.1) / (100**-1.1 - 1000**-1.1)
        assert (tail >= x).mean() == pytest.approx(survival, abs=0.005)


def test_mlperf_sizes_have_mlperfs_shares():
    size = sizes_of("mlperf")
    twentieths = {n: 20 * float((size == n).mean()) for n in np.unique(size)}
    assert twentieths == pytest.approx({100: 2, 200: 12, 300: 2, 400: 1, 500: 1, 600: 1, 700: 1}, abs=0.15)


def test_fixed_and_observed_sizes():
    assert set(sizes_of("fixed:100").tolist()) == {100}
    law = empirical([3, 3, 3, 9])
    drawn = law.draw(np.random.default_rng(0), MANY)
    assert drawn.dtype == np.int32
    assert (drawn == 3).mean() == pytest.approx(0.75, abs=0.01)
    with pytest.raises(ValueError, match="at least 1"):
        empirical([3, 0])
    with pytest.raises(ValueError, match="some"):
        empirical([])


@given(
    st.sampled_from(
        ["lognormal:50,9", "lognormal:-50,9", "normal:0,1000", "normal:-1e300,1", "lognormal:1e9,1"]
    )
)
def test_sizes_stay_between_one_and_the_maximum_for_any_parameters(spec):
    size = parse_sizes(spec).draw(np.random.default_rng(0), 1000)
    assert size.dtype == np.int32
    assert 1 <= size.min() <= size.max() <= 1024


# --- arrivals ---


def test_poisson_gaps_are_exponential():
    gaps = np.diff(arrivals("poisson", 1000.0, 200.0))
    assert gaps.mean() == pytest.approx(1e-3, rel=0.01)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.01)
    for x in (0.5, 1.0, 3.0):
        assert (gaps > x * 1e-3).mean() == pytest.approx(math.exp(-x), abs=0.005)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.01


def test_poisson_counts_vary_as_much_as_their_mean():
    counts = np.bincount(arrivals("poisson", 100.0, 2000.0).astype(int), minlength=2000)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.1)


def test_uniform_arrivals_are_even_from_zero():
    times = arrivals("uniform", 1000.0, 10.0)
    assert len(times) == 10_000
    assert times[0] == 0.0
    assert np.diff(times) == pytest.approx(1e-3)


def test_the_compat_law_has_whole_milliseconds_and_too_little_variation():
    gaps = np.diff(arrivals("compat", 40.0, 2000.0))
    assert gaps * 1e3 == pytest.approx(np.rint(gaps * 1e3))
    assert gaps.mean() == pytest.approx(0.025, rel=0.01)
    assert gaps.std() / gaps.mean() == pytest.approx(0.2, rel=0.02)


def test_a_step_changes_the_rate_at_its_time():
    times = arrivals("step:40,2.25", 400.0, 80.0)
    before, after = times[times < 40], times[times >= 40]
    assert len(before) == pytest.approx(16_000, rel=0.03)
    assert len(after) == pytest.approx(36_000, rel=0.03)
    gaps = np.diff(after)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.03)


def test_a_ramp_and_a_day_follow_their_curves():
    for spec, curve in (("ramp:10,30,3", ramp(10, 30, 3)), ("diurnal:20,0.25", diurnal(20, 0.25))):
        times = arrivals(spec, 2000.0, 40.0)
        for until in (5.0, 15.0, 20.0, 33.0, 40.0):
            assert (times < until).sum() == pytest.approx(2000 * curve.area(until), rel=0.03)
    assert diurnal(20, 0.25).area(20.0) == pytest.approx(20 * 0.625)


@pytest.mark.parametrize(
    "curve",
    [RateCurve(), step(3, 0.1), ramp(0, 5, 4), diurnal(7, 0.0), RateCurve((0, 1, 1, 2, 2), (1, 1, 0, 0, 2))],
)
def test_the_inverse_of_a_curves_area_is_its_inverse(curve):
    area = np.linspace(0.01, 30.0, 500)
    times = curve.inverse(area)
    assert (np.diff(times) > 0).all()
    assert [curve.area(t) for t in times] == pytest.approx(area.tolist())


@pytest.mark.parametrize(
    "knots",
    [((), ()), ((1.0,), (1.0,)), ((0.0, 2.0, 1.0), (1.0,) * 3), ((0.0,), (0.0,)), ((0.0, 1.0), (1.0, -1.0)),
     ((0.0,), (math.nan,)), ((0.0, 1.0), (1.0,))],
)  # fmt: skip
def test_knots_that_make_no_curve_are_refused(knots):
    with pytest.raises(ValueError, match="rate curve"):
        RateCurve(*knots)


def test_a_repeating_curve_needs_a_period_with_some_rate():
    with pytest.raises(ValueError, match="repeating"):
        RateCurve((0.0, 1.0), (0.0, 0.0), repeats=True)
    with pytest.raises(ValueError, match="diurnal"):
        parse_arrivals("diurnal:0,0.5")


# --- schedules ---


@given(
    st.sampled_from(["poisson", "uniform", "compat", "step:1,3", "ramp:1,2,0.5", "diurnal:1,0"]),
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


# --- ids ---


def test_uniform_ids_cover_the_table_evenly():
    ids = parse_ids("uniform").draw(np.random.default_rng(0), 100, MANY, np.int32)
    assert ids.dtype == np.int32
    share = np.bincount(ids, minlength=100) / MANY
    assert len(share) == 100
    assert share == pytest.approx(np.full(100, 0.01), rel=0.1)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.3])
@pytest.mark.parametrize("rows", [1, 2, 50, 100_000])
def test_zipf_ids_have_zipfs_shares_spread_over_the_table(exponent, rows):
    ids = parse_ids(f"zipf:{exponent}").draw(np.random.default_rng(0), rows, MANY, np.int64)
    assert 0 <= ids.min() <= ids.max() < rows
    share = np.sort(np.bincount(ids, minlength=rows) / MANY)[::-1][:5]
    weight = np.arange(1, rows + 1) ** -exponent
    assert share == pytest.approx((weight / weight.sum())[:5], rel=0.05, abs=5e-4)


# --- laws by name ---


@pytest.mark.parametrize("parse", [parse_arrivals, parse_sizes, parse_ids])
def test_an_unknown_law_is_refused_with_the_known_ones(parse):
    with pytest.raises(ValueError, match=r"unknown .* law 'nonsense'; known: \w+"):
        parse("nonsense")
    with pytest.raises(ValueError, match="unknown"):
        parse("")


@pytest.mark.parametrize(
    ("parse", "spec"),
    [
        (parse_sizes, "lognormal"),
        (parse_sizes, "lognormal:5"),
        (parse_sizes, "lognormal:5,0.2,10,10"),
        (parse_sizes, "lognormal:5,nan"),
        (parse_sizes, "lognormal:5,-1"),
        (parse_sizes, "normal:5"),
        (parse_sizes, "fixed:0"),
        (parse_sizes, "fixed:1.5"),
        (parse_sizes, "fixed:x"),
        (parse_sizes, "production:0"),
        (parse_arrivals, "step:-1,2"),
        (parse_arrivals, "ramp:5,1,2"),
        (parse_arrivals, "poisson:5"),
        (parse_ids, "zipf:0"),
        (parse_ids, "zipf"),
    ],
)
def test_a_law_with_wrong_numbers_is_refused_and_says_how_it_is_written(parse, spec):
    with pytest.raises(ValueError, match="written"):
        parse(spec)


def test_a_factor_multiplies_every_query_of_the_production_law():
    single, double = (
        parse_sizes(s).draw(np.random.default_rng(1), 5000) for s in ("production", "production:2")
    )
    assert double.mean() == pytest.approx(2 * single.mean(), rel=0.02)
    assert double.max() > 1000
