from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from scheduler.fleet_arrivals import Life, Steps, draw, lives, there
from scheduler.fleet_spec import Event, Traffic, Trouble, rolling_restart
from scheduler.measure import Sla
from scheduler.rate_curve import RateCurve, diurnal
from tests.scheduler.fleets import group, kind, spec

FAILED, DRAINED, SLOW = Trouble.FAILED, Trouble.DRAINED, Trouble.SLOW


def test_a_node_without_trouble_lives_through() -> None:
    slow = Event(SLOW, (0,), 0.0, 9.0, 2.0)
    assert lives(spec(2, events=(slow,))) == [[Life(0.0, 2.5)]] * 2


def test_a_failure_ends_a_life_and_loses_what_it_had_and_a_drain_loses_nothing() -> None:
    events = (Event(FAILED, (0,), 101.0, 102.0), Event(DRAINED, (1,), 101.0, 102.0))
    made = lives(spec(2, events=events, start_s=100.0))
    assert made == [[Life(0.0, 1.0, 1.0), Life(2.0, 2.5)], [Life(0.0, 1.0), Life(2.0, 2.5)]]


def test_a_failure_while_draining_loses_what_is_left() -> None:
    events = (Event(DRAINED, (0,), 1.0, 2.0), Event(FAILED, (0,), 1.5, 2.2))
    assert lives(spec(1, events=events)) == [[Life(0.0, 1.0, 1.5), Life(2.2, 2.5)]]


def test_a_node_that_is_away_all_the_time_has_no_life() -> None:
    assert lives(spec(1, events=(Event(FAILED, (0,), -1.0, math.inf),))) == [[]]


def test_a_rolling_restart_has_each_node_away_once_and_so_many_at_once() -> None:
    events = rolling_restart(range(5), 10.0, 3.0, at_once=2)
    assert [(e.nodes, e.from_s, e.until_s) for e in events] == [
        ((0, 1), 10.0, 13.0),
        ((2, 3), 13.0, 16.0),
        ((4,), 16.0, 19.0),
    ]


def test_the_weight_of_the_nodes_that_are_there_follows_them() -> None:
    made = [[Life(0.0, 1.0), Life(2.0, 3.0)], [Life(0.0, 3.0)]]
    total = there([3.0, 1.0], made, 3.0)
    assert total.at(np.array([0.5, 1.0, 1.9, 2.0])).tolist() == [4.0, 1.0, 1.0, 4.0]
    assert total.least == 1.0
    assert not total.lacking
    assert there([3.0], [[Life(1.0, 2.0)]], 3.0).lacking
    assert Steps(0.0, []).least == math.inf


def test_queries_come_at_the_rate_of_the_day_split_by_share() -> None:
    traffic = (Traffic("a", 3.0, Sla(95.0, 0.1)), Traffic("b", 1.0, Sla(95.0, 0.1)))
    two = kind(models=("a", "b"))
    day = RateCurve((0.0, 100.0, 100.0, 200.0), (1.0, 1.0, 0.2, 0.2), repeats=True)
    made = spec(
        groups=(group(1, two),),
        traffic=traffic,
        qps=1000.0,
        day=day,
        start_s=90.0,
        duration_s=20.0,
        warmup_s=0.0,
    )
    arrivals = draw(made, np.random.default_rng(0), [(t, np.ones_like, 1.0) for t in traffic])
    assert len(arrivals.between(0.0, 10.0).size) == pytest.approx(10_000, rel=0.04)
    late = arrivals.between(10.0, 20.0)
    assert len(late.size) == pytest.approx(2000, rel=0.08)
    assert late.models.count("a") / len(late.models) == pytest.approx(0.75, abs=0.04)
    assert (np.diff(arrivals.arrival_s) >= 0).all()


def test_a_mix_that_shifts_changes_the_sizes_from_then_on() -> None:
    traffic = Traffic("m", 1.0, Sla(95.0, 0.1), ((0.0, "fixed:10"), (51.0, "fixed:20")))
    made = replace(spec(1), traffic=(traffic,), start_s=50.0, qps=500.0)
    arrivals = draw(made, np.random.default_rng(0), [(traffic, np.ones_like, 1.0)])
    assert set(arrivals.between(0.0, 1.0).size.tolist()) == {10}
    assert set(arrivals.between(1.0, 2.5).size.tolist()) == {20}


def test_a_rate_curve_tells_its_value_and_its_most() -> None:
    curve = RateCurve((0.0, 10.0, 10.0, 20.0), (1.0, 2.0, 0.5, 1.0), repeats=True)
    assert curve.at(np.array([0.0, 5.0, 10.0, 15.0, 20.0, 25.0])).tolist() == [1.0, 1.5, 0.5, 0.75, 1.0, 1.5]
    assert curve.most(0.0, 5.0) == 1.5
    assert curve.most(12.0, 14.0) == pytest.approx(0.7)
    assert curve.most(15.0, 35.0) == 2.0
    assert curve.most(18.0, 22.0) == pytest.approx(1.2)
    day = diurnal(100.0, 0.4)
    assert day.most(0.0, 100.0) == 1.0
    assert float(day.at(np.array([150.0]))[0]) == pytest.approx(1.0)
    assert RateCurve().most(3.0, 4.0) == 1.0
