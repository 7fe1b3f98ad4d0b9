import math

import numpy as np
import pytest

from scheduler import arrivals as laws
from scheduler.arrivals import parse_arrivals
from scheduler.rate_curve import diurnal, ramp


def arrivals(spec: str, qps: float, duration_s: float, seed: int = 0) -> np.ndarray:
    return parse_arrivals(spec).draw(np.random.default_rng(seed), qps, duration_s=duration_s)


def counts(times: np.ndarray, window_s: float, duration_s: float) -> np.ndarray:
    windows = int(duration_s / window_s)
    return np.bincount((times / window_s).astype(int), minlength=windows)[:windows]


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


def test_a_day_can_be_compressed_and_keeps_its_shape_and_its_peak_rate():
    long, short = arrivals("diurnal:400,0.25", 300.0, 400.0), arrivals("diurnal:20,0.25", 6000.0, 20.0)
    by_phase = [np.histogram(t / day, bins=8, range=(0, 1))[0] for t, day in ((long, 400.0), (short, 20.0))]
    assert by_phase[0] == pytest.approx(by_phase[1], rel=0.06)
    assert counts(short, 1.0, 20.0)[9:11].mean() == pytest.approx(6000, rel=0.03)


def test_arrivals_whose_rate_varies_are_poisson_in_every_stretch_of_it():
    # What thinning promises: counts of equal windows over many days have variance equal to mean at each time of day.
    times = arrivals("diurnal:4,0.1", 200.0, 4.0 * 2000)
    per_phase = counts(times, 0.25, 4.0 * 2000).reshape(2000, 16)
    assert per_phase.var(axis=0) / per_phase.mean(axis=0) == pytest.approx(np.ones(16), abs=0.15)
    assert abs(np.corrcoef(per_phase[:, 3], per_phase[:, 4])[0, 1]) < 0.1


# --- bursts ---

BURSTY = {"ratio": 8.0, "share": 0.1, "dwell_s": 0.5}
QPS, LONG_S = 100.0, 20_000.0


def rates() -> tuple[float, float, float, float]:
    """Return the rates outside and in bursts, and how often a second each of the two states is left."""
    ratio, share, dwell_s = BURSTY.values()
    calm = QPS / (1 - share + ratio * share)
    return calm, ratio * calm, share / (1 - share) / dwell_s, 1 / dwell_s


@pytest.fixture(scope="module")
def bursts() -> np.ndarray:
    return arrivals("bursty:8,0.1,0.5", QPS, LONG_S)


def test_bursty_arrivals_have_the_mean_rate_that_was_asked_for(bursts):
    assert len(bursts) / LONG_S == pytest.approx(QPS, rel=0.02)


@pytest.mark.parametrize("window_s", [0.1, 0.5, 2.0, 20.0])
def test_bursty_counts_have_the_index_of_dispersion_of_theory(bursts, window_s):
    # Fischer and Meier-Hellstern, "The Markov-modulated Poisson process (MMPP) cookbook", 1993, for two states.
    calm, burst, leave_calm, leave_burst = rates()
    both = leave_calm + leave_burst
    limit = 2 * (burst - calm) ** 2 * leave_calm * leave_burst
    limit /= both**2 * (calm * leave_burst + burst * leave_calm)
    expected = 1 + limit * (1 + math.expm1(-both * window_s) / (both * window_s))
    seen = counts(bursts, window_s, LONG_S)
    assert seen.var() / seen.mean() == pytest.approx(expected, rel=0.1)


def test_bursty_gaps_have_the_coefficient_of_variation_and_the_tail_of_theory(bursts):
    calm, burst, leave_calm, leave_burst = rates()
    gaps = np.diff(bursts)
    both = leave_calm + leave_burst
    squared = 1 + 2 * leave_calm * leave_burst * (burst - calm) ** 2 / (
        both**2 * (burst * calm + calm * leave_burst + burst * leave_calm)
    )
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(squared, rel=0.03)
    # P(gap > t) = pi exp((Q - L) t) L 1 / (pi L 1): the states' shares, generator and rates.
    share = np.array([1 - BURSTY["share"], BURSTY["share"]])
    rate = np.diag([calm, burst])
    generator = np.array([[-leave_calm, leave_calm], [leave_burst, -leave_burst]])
    values, vectors = np.linalg.eig(generator - rate)
    for t in (0.01, 0.03, 0.1):
        survive = (vectors * np.exp(values * t)) @ np.linalg.inv(vectors)
        start = share @ rate / (share @ rate).sum()
        assert (gaps > t).mean() == pytest.approx((start @ survive).sum(), rel=0.05), t


def test_one_seed_bursts_at_the_same_times_at_every_rate_and_length():
    slow, fast = (arrivals("bursty:50,0.1,2", qps, 60.0) for qps in (200.0, 2000.0))
    longer = arrivals("bursty:50,0.1,2", 2000.0, 120.0)
    busy = [np.histogram(t, bins=60, range=(0, 60))[0] for t in (slow, fast, longer)]
    assert np.corrcoef(busy[0], busy[1])[0, 1] > 0.95
    assert np.corrcoef(busy[1], busy[2])[0, 1] > 0.95
    other = np.histogram(arrivals("bursty:50,0.1,2", 2000.0, 60.0, seed=1), bins=60, range=(0, 60))[0]
    assert np.corrcoef(busy[1], other)[0, 1] < 0.5


def test_bursty_arrivals_by_number_have_that_number_and_the_mean_rate():
    times = parse_arrivals("bursty:8,0.1,0.5").draw(np.random.default_rng(0), QPS, count=500_000)
    assert len(times) == 500_000
    assert (np.diff(times) >= 0).all()
    assert times[-1] == pytest.approx(5000.0, rel=0.05)


def test_a_ratio_of_one_is_a_poisson_process():
    gaps = np.diff(arrivals("bursty:1,0.3,1", 100.0, 2000.0))
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(1.0, rel=0.02)


def test_more_bursts_or_queries_than_memory_holds_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"bursts in 1000 s exceed 500000: let them last longer"):
        arrivals("bursty:8,0.5,0.0001", 1.0, 1000.0)
    monkeypatch.setattr(laws, "MAX_QUERIES", 1000)
    with pytest.raises(ValueError, match=r"exceeds 1000"):
        arrivals("bursty:8,0.5,0.1", 1000.0, 10.0)
