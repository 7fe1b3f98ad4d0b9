import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import replay
from scheduler.replay import BadRowError, recorded_queries


def recorded(times=(100.0, 101.0, 101.0, 104.0), sizes=(5, 6, 7, 8), models=("b", "a", "b", "b")):
    return recorded_queries(np.array(times), np.array(sizes), models)


def test_a_replay_at_the_recorded_rate_sends_each_models_queries_when_they_came():
    queries = recorded()
    assert queries.models == ("a", "b")
    assert queries.share("b") == 0.75
    # Three gaps in 4 s: with one more, the next round starts after 16/3 s.
    assert queries.period_s == pytest.approx(16 / 3)
    assert queries.qps == pytest.approx(0.75)
    schedule, row = queries.replay("b", 0.75, 16 / 3)
    assert schedule.arrival_s.tolist() == [0.0, 1.0, 4.0]
    assert schedule.size.tolist() == [5, 7, 8]
    assert schedule.size.dtype == np.int32
    assert row.tolist() == [0, 2, 3]


def test_a_faster_replay_shrinks_all_gaps_alike_and_starts_again_at_the_end():
    schedule, row = recorded().replay("b", 1.5, 5.0)
    assert schedule.arrival_s == pytest.approx([0.0, 0.5, 2.0, 8 / 3, 8 / 3 + 0.5, 8 / 3 + 2])
    assert row.tolist() == [0, 2, 3] * 2


def test_sizes_are_cut_to_what_a_model_takes():
    assert recorded().replay("b", 0.75, 5.0, max_size=6)[0].size.tolist() == [5, 6, 6]


@given(
    st.lists(st.floats(0, 1e6), min_size=2, max_size=30).filter(lambda t: max(t) - min(t) > 1e-3),
    st.floats(0.01, 100.0),
    st.floats(0.1, 50.0),
)
def test_any_replay_ascends_within_its_duration_and_has_its_rate(times, qps, rounds):
    queries = recorded(sorted(times), [1] * len(times), ["m"] * len(times))
    duration_s = rounds * len(times) / qps
    schedule, row = queries.replay("m", qps, duration_s)
    assert (np.diff(schedule.arrival_s) >= 0).all()
    assert ((schedule.arrival_s >= 0) & (schedule.arrival_s < duration_s)).all()
    assert abs(len(schedule) - rounds * len(times)) <= len(times)
    assert len(row) == len(schedule)


def test_a_replay_of_the_whole_has_every_query_once():
    queries = recorded(np.cumsum([0.1] * 1000), [1] * 1000, ["m"] * 1000)
    for speed in (1.0, 3.0, 7.7, 0.01):
        qps = queries.qps * speed
        assert queries.replay("m", qps, 1000 / qps)[1].tolist() == list(range(1000))


@pytest.mark.parametrize(
    ("changes", "row", "field", "rule"),
    [
        ({"times": (1.0, 3.0, 2.5, 4.0)}, 2, "time", "2.5 goes back behind 3"),
        ({"times": (1.0, float("nan"), 2.5, 4.0)}, 1, "time", "no number of seconds"),
        ({"times": (1.0, 2.0, 3.0, float("inf"))}, 3, "time", "no number of seconds"),
        ({"times": (1.0, 2.0, 3.0, 1e13)}, 3, "time", "no number of seconds"),
        ({"sizes": (1, 2, -3, 4)}, 2, "size", "-3 is no whole number of candidates"),
        ({"sizes": (1, 2, 3, 0)}, 3, "size", "0 is no whole number"),
        ({"sizes": (1, 2.5, 3, 4)}, 1, "size", "2.5 is no whole number"),
        ({"sizes": (1, 2**31, 3, 4)}, 1, "size", "no whole number"),
        ({"sizes": (1, float("nan"), 3, 4)}, 1, "size", "nan is no whole number"),
        ({"models": ("a", "a", "", "a")}, 2, "model", "is empty"),
    ],
)
def test_a_query_that_cannot_be_is_named_by_row_and_field(changes, row, field, rule):
    with pytest.raises(BadRowError, match=rule) as caught:
        recorded(**changes)
    assert (caught.value.row, caught.value.field) == (row, field)


def test_what_has_no_rate_is_no_recording(monkeypatch):
    with pytest.raises(ValueError, match="holds no queries"):
        recorded((), (), ())
    with pytest.raises(ValueError, match="two different times"):
        recorded((3.0,), (1,), ("a",))
    with pytest.raises(ValueError, match="two different times"):
        recorded((3.0, 3.0), (1, 1), ("a", "a"))
    with pytest.raises(ValueError, match="the rate must be above 0"):
        recorded().replay("a", 0.0, 1.0)
    with pytest.raises(KeyError):
        recorded().replay("c", 1.0, 1.0)
    queries = recorded()
    monkeypatch.setattr(replay, "MAX_QUERIES", 3)
    with pytest.raises(ValueError, match="exceed 3"):
        queries.replay("a", 10.0, 1.0)
    with pytest.raises(ValueError, match="more than 3"):
        recorded()
