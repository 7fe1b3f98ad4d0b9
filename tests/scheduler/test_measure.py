import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.measure import Measurement, Sla, feasible, max_qps, percentile, shortfall, summarise

SLA = Sla(95, 0.1)
GOOD = Measurement(
    offered_qps=100.0,
    completed_qps=100.0,
    candidates_per_s=1e4,
    duration_s=10.0,
    count=1000,
    failed=0,
    p50_s=0.01,
    p95_s=0.05,
    p99_s=0.1,
    p999_s=0.2,
    max_s=0.3,
    tail_s=0.05,
    kept_up=True,
)


def measured(latency_s, *, qps=100.0, window=(0.0, 10.0), sla=SLA, **how) -> Measurement:
    latency = np.asarray(latency_s, dtype=float)
    scheduled = np.arange(len(latency)) / qps
    return summarise(sla, scheduled, latency, np.full(len(latency), 10), window=window, **how)


# --- percentiles ---


def test_a_percentile_is_an_observed_value_and_never_below_numpys():
    assert percentile(np.arange(101.0), 95) == 95.0
    assert percentile(np.array([1.0, 2.0]), 50) == 2.0
    assert percentile(np.array([3.0]), 99) == 3.0
    assert percentile(np.array([]), 50) == math.inf


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=60), st.integers(0, 100))
def test_percentiles_are_numpys_higher_ones(values, percent):
    array = np.array(values)
    assert percentile(array, percent) == np.percentile(array, percent, method="higher")


def test_infinite_values_never_become_nan_or_finite():
    values = np.array([1.0] * 94 + [math.inf] * 6)
    assert percentile(values, 95) == math.inf
    assert percentile(values, 90) == 1.0


# --- summaries ---


def test_a_summary_counts_rates_over_the_window_without_warm_up():
    m = measured(np.full(1200, 0.02), window=(2.0, 12.0))
    assert m.count == 1000
    assert m.offered_qps == 100.0
    assert m.completed_qps == pytest.approx(100.0, abs=0.5)
    assert m.candidates_per_s == pytest.approx(1000.0, abs=5)
    assert (m.p50_s, m.tail_s, m.max_s) == (0.02, 0.02, 0.02)
    assert m.kept_up
    assert m.invalid is None


def test_a_failed_query_is_infinitely_late():
    latency = np.full(1000, 0.02)
    latency[::10] = math.inf
    m = measured(latency)
    assert m.failed == 100
    assert m.p50_s == 0.02
    assert m.tail_s == m.p95_s == m.max_s == math.inf


def test_a_short_run_is_invalid_and_a_given_reason_comes_first():
    assert Sla(99, 1.0).min_count == 1000
    assert measured(np.full(199, 0.02)).invalid == "too short: 199 queries measured, 200 needed for a p95"
    assert measured(np.full(200, 0.02)).invalid is None
    assert measured(np.full(5, 0.02), min_count=5).invalid is None
    assert measured(np.full(5, 0.02), invalid="the driver fell behind").invalid == "the driver fell behind"


def test_a_run_without_queries_or_answers_is_a_result_and_no_crash():
    assert measured([]).invalid is not None
    nothing = measured(np.full(500, math.inf))
    assert nothing.completed_qps == 0.0
    assert not feasible(nothing, SLA)
    assert measured([0.1], window=(1.0, 1.0)).offered_qps == 0.0


def test_a_queue_that_grows_did_not_keep_up():
    growing = np.linspace(0.0, 3.0, 1000)  # a server of 77 % of the rate
    m = measured(growing)
    assert m.completed_qps < 0.98 * m.offered_qps
    assert not m.kept_up


def test_a_queue_that_grows_slowly_shows_at_the_end():
    # Completions are within 2 % of arrivals and 96 % of all queries are in time, but the last ones are not.
    latency = np.full(1000, 0.02)
    latency[-40:] = 0.15
    m = measured(latency, sla=Sla(95, 0.1))
    assert m.tail_s <= 0.1
    assert not m.kept_up


def test_steady_traffic_keeps_up_whatever_its_rate():
    rng = np.random.default_rng(0)
    for qps, count in ((20.0, 200), (100.0, 1000), (2000.0, 20_000)):
        for _ in range(20):
            m = measured(rng.exponential(0.03, count), qps=qps, window=(0.0, count / qps))
            assert m.kept_up


def test_long_queries_in_flight_at_the_end_of_a_short_window_are_no_backlog():
    m = measured(np.full(250, 0.9), qps=25.0, sla=Sla(95, 1.0))
    assert m.completed_qps < 0.98 * m.offered_qps
    assert m.kept_up


# --- what is feasible ---


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"invalid": "too short"}, "invalid: too short"),
        ({"failed": 2}, "2 of 1000 queries failed"),
        ({"tail_s": 0.11}, "p95 of 110 ms is over 100 ms"),
        ({"tail_s": math.inf}, "p95 of inf ms is over 100 ms"),
        ({"p99_s": 0.21}, "p99 of 210 ms is over 200 ms"),
        ({"p999_s": 0.51}, "p99.9 of 510 ms is over 500 ms"),
        ({"kept_up": False, "completed_qps": 60.0}, "completions fell behind: 60 of 100 queries/s"),
    ],
)
def test_each_rule_of_feasibility_holds_on_its_own(change, reason):
    assert feasible(GOOD, SLA)
    worse = dataclasses.replace(GOOD, **change)
    assert not feasible(worse, SLA)
    assert shortfall(worse, SLA) == reason


def test_the_limits_themselves_are_feasible():
    limit = dataclasses.replace(GOOD, failed=1, tail_s=0.1, p99_s=0.2, p999_s=0.5)
    assert feasible(limit, SLA)


@pytest.mark.parametrize(
    ("percent", "seconds"), [(0, 1), (100, 1), (95, 0), (95, math.inf), (math.nan, 1), (95, -1)]
)
def test_impossible_targets_are_refused(percent, seconds):
    with pytest.raises(ValueError, match="target"):
        Sla(percent, seconds)


# --- the search ---


def server_of(capacity_qps: float, asked: list[float]):
    def measure(qps: float) -> Measurement:
        asked.append(qps)
        return dataclasses.replace(GOOD, offered_qps=qps, tail_s=0.05 if qps <= capacity_qps else 1.0)

    return measure


@pytest.mark.parametrize("capacity", [3.7, 50.0, 99.0, 100.0, 4321.0])
@pytest.mark.parametrize("start", [10.0, 100.0, 1000.0])
def test_the_search_finds_the_capacity_within_tolerance_in_few_probes(capacity, start):
    asked: list[float] = []
    found = max_qps(server_of(capacity, asked), SLA, start)
    assert capacity / 1.0201 <= found.qps <= capacity
    assert found.measurement is not None
    assert found.measurement.offered_qps == found.qps
    assert [p.qps for p in found.probes] == asked
    assert len(asked) <= 16
    assert "p95 of 1000 ms" in found.why


def test_the_search_doubles_then_bisects():
    asked: list[float] = []
    max_qps(server_of(150.0, asked), SLA, 50.0, tolerance=0.2)
    assert asked == pytest.approx([50, 100, 200, 100 * 2**0.5, 100 * 2**0.75])


def test_a_small_stride_stays_near_a_start_that_is_nearly_right():
    asked: list[float] = []
    max_qps(server_of(110.0, asked), SLA, 100.0, tolerance=0.2, stride=1.25)
    assert asked == pytest.approx([100, 125, 100 * 1.25**0.5])


def test_a_missed_rate_is_confirmed_so_that_one_disturbance_does_not_bound_the_search():
    disturbed = iter([False, True])

    def measure(qps: float) -> Measurement:
        m = server_of(100.0, asked)(qps)
        return dataclasses.replace(m, tail_s=9.0) if next(disturbed, False) else m

    asked: list[float] = []
    found = max_qps(measure, SLA, 20.0, confirm_miss=True)
    assert asked[:2] == [20.0, 40.0]
    assert asked.count(40.0) == 2
    assert 98 < found.qps <= 100
    assert asked[-1] == min(rate for rate in asked if rate > 100)


def test_no_rate_within_the_target_is_a_result():
    found = max_qps(server_of(0.0, []), SLA, 64.0, floor_qps=1.0)
    assert (found.qps, found.measurement) == (0.0, None)
    assert found.probes[-1].qps == 1.0
    assert found.why.startswith("no rate tried meets the target; at 1 queries/s: p95")


def test_a_search_without_end_stops_at_its_number_of_probes():
    found = max_qps(server_of(math.inf, []), SLA, 1.0, max_probes=5)
    assert found.qps == 16.0
    assert "ended after 5 probes" in found.why


def test_an_invalid_measurement_is_taken_once_more():
    invalid = iter([True, False])

    def measure(qps: float) -> Measurement:
        return dataclasses.replace(
            server_of(30.0, asked)(qps), invalid="noise" if next(invalid, False) else None
        )

    asked: list[float] = []
    assert max_qps(measure, SLA, 20.0).qps > 29
    assert asked[:3] == [20.0, 20.0, 40.0]


def test_rates_that_stay_invalid_bound_the_search_from_above_with_their_reason():
    def measure(qps: float) -> Measurement:
        return dataclasses.replace(GOOD, invalid="the driver fell behind" if qps > 70 else None)

    found = max_qps(measure, SLA, 10.0)
    assert 68 < found.qps <= 70
    assert "the driver fell behind" in found.why


def test_a_search_that_is_invalid_everywhere_ends_with_the_reason():
    asked: list[float] = []

    def measure(qps: float) -> Measurement:
        asked.append(qps)
        return dataclasses.replace(GOOD, invalid="too short")

    found = max_qps(measure, SLA, 10.0)
    assert found.qps == 0.0
    assert found.why == "invalid: too short (at 5 queries/s)"
    assert asked == [10.0, 10.0, 5.0, 5.0]


@pytest.mark.parametrize(
    ("start", "how"),
    [(0.0, {}), (math.nan, {}), (1.0, {"tolerance": 0.0}), (1.0, {"max_probes": 0}), (1.0, {"stride": 1.0})],
)
def test_impossible_searches_are_refused(start, how):
    with pytest.raises(ValueError, match="above"):
        max_qps(server_of(1.0, []), SLA, start, **how)
