"""A run that its driver could not keep up with does not count, and says by how much."""

import dataclasses

import numpy as np
import pytest

from scheduler.measure import Sla
from services.loadgen.driver import Plan
from services.loadgen.drivers import Driven
from services.loadgen.outcome import Finished, result_of
from services.loadgen.recording import OK, Trace
from services.loadgen.request_pool import RequestPool
from services.loadgen.settings import LoadSettings, ModelShare
from services.loadgen.traffic import Lane, Traffic
from tests.services.loadgen.conftest import model_message

SETTINGS = LoadSettings("a:1", (ModelShare("tiny"),), duration_s=10.0, warmup_s=1.0, min_queries=1)


def finished(
    lag_s: float, *, sla_s: float = 0.1, cut_short: str | None = None, wall_s: float = 11.0
) -> Finished:
    """A run of 1100 queries over 11 s, all of them sent late by ``lag_s`` and answered at once."""
    arrival_s = np.arange(1100) / 100
    kept = arrival_s < wall_s
    count = int(kept.sum())
    trace = Trace(
        query=np.arange(count),
        scheduled_s=arrival_s[kept],
        latency_s=np.full(count, lag_s),
        lag_s=np.full(count, lag_s),
        code=np.full(count, OK, dtype=np.int16),
        wall_s=wall_s,
        cpu_s=2.2,
        cut_short=cut_short,
    )
    one = np.zeros(1, dtype=np.int64)
    pool = RequestPool((b"x",), np.ones(1, dtype=np.int32), np.ones(1, dtype=np.int32), one, 1, 1, None)
    lane = Lane(
        0,
        ModelShare("tiny"),
        model_message(),
        Sla(95.0, sla_s),
        1.0,
        1000,
        SETTINGS.read_laws(),
        pool,
        np.zeros(0, np.int32),
    )
    traffic = Traffic(
        Plan(arrival_s, np.zeros(1100, dtype=np.int64), (b"x",)),
        np.zeros(1100, dtype=np.int64),
        np.ones(1100, dtype=np.int32),
    )
    return Finished(SETTINGS, 100.0, [lane], traffic, Driven(trace, 3, True))


@pytest.mark.parametrize(
    ("sla_s", "lag_s", "invalid"),
    [
        (0.1, 0.0099, None),
        (0.1, 0.0125, "1 % of the queries left over 12.5 ms late, 10 ms allowed"),
        (0.005, 0.0019, None),
        (0.005, 0.0021, "1 % of the queries left over 2.1 ms late, 2 ms allowed"),
    ],
)
def test_a_tenth_of_the_target_is_what_queries_may_leave_late_and_never_less_than_2_ms(sla_s, lag_s, invalid):
    result = result_of(finished(lag_s, sla_s=sla_s))
    assert result.invalid == (None if invalid is None else f"the driver fell behind: {invalid}")
    assert result.driver.lag_p99_s == lag_s


def test_a_run_cut_short_is_measured_until_then_and_does_not_count():
    result = result_of(finished(0.001, cut_short="stopped by the user", wall_s=5.0))
    measured = result.models[0].measurement
    assert result.invalid == "cut short after 5.0 s: stopped by the user"
    assert (measured.count, measured.duration_s) == (400, 4.0)


def test_the_drivers_are_reported_with_their_share_of_the_machine():
    result = result_of(finished(0.001))
    assert (result.driver.processes, result.driver.before_others) == (3, True)
    assert result.driver.cpu_share == pytest.approx(2.2 / 11.0 / result.machine.cores)


def test_queries_that_were_never_sent_are_no_lag():
    run = finished(0.001)
    trace = run.driven.trace
    late = dataclasses.replace(trace, lag_s=np.full(len(trace.query), np.nan))
    result = result_of(dataclasses.replace(run, driven=Driven(late, 1, False)))
    assert result.driver.lag_max_s == 0.0
