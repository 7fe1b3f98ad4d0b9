import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.reuse import ReuseProfile, ReuseStream, stride


def by_the_book(distances: list[int], rows: int) -> list[int]:
    """The model in its plainest form: one list, the last row at its end."""
    stack: list[int] = []
    touched = 0
    ids = []
    for distance in distances:
        if 0 < distance <= len(stack):
            row = stack.pop(len(stack) - distance)
        elif touched < rows:
            row, touched = touched * stride(rows) % rows, touched + 1
        else:
            row = stack.pop(0)
        stack.append(row)
        ids.append(row)
    return ids


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 12), st.integers(0, 10))
def test_look_ups_are_those_of_the_model_whatever_the_table_and_the_profile(seed, rows, deepest, new_tenths):
    rest = np.full(deepest, (1 - new_tenths / 10) / deepest)
    profile = ReuseProfile(np.arange(1, deepest + 1), rest, new_tenths / 10)
    ids = ReuseStream(profile, rows).draw(np.random.default_rng(seed), 300, np.int64)
    upto = np.cumsum(rest)
    draws = np.random.default_rng(seed).random(300)
    distances = [
        int(d) if d <= deepest else 0
        for d in 1 + np.searchsorted(upto / max(1e-9, upto[-1] + new_tenths / 10), draws, "right")
    ]
    assert ids.tolist() == by_the_book(distances, rows)


def test_what_lies_too_deep_comes_back_longest_ago_first_once_the_table_is_used_up():
    profile = ReuseProfile(np.array([1]), np.array([0.25]), 0.75)
    ids = ReuseStream(profile, 9000).draw(np.random.default_rng(0), 40_000, np.int64)
    changes = ids[np.flatnonzero(np.diff(ids, prepend=-1))]
    assert changes[:9000].tolist() == changes[9000:18_000].tolist()
    assert sorted(changes[:9000].tolist()) == list(range(9000))


@pytest.mark.parametrize("rows", [1, 2, 3, 10, 97, 1000, 65_536])
def test_the_multiples_of_a_stride_visit_every_row_once(rows):
    assert len(set((np.arange(rows) * stride(rows) % rows).tolist())) == rows


@pytest.mark.parametrize(
    ("distance", "probability", "new", "rule"),
    [
        ([1, 2], [0.5, 0.4], 0.2, "sum to 1, not to 1.1"),
        ([1, 2], [0.5, 0.4], 0.0, "sum to 1, not to 0.9"),
        ([1, 2], [1.5, -0.5], 0.0, "at least 0"),
        ([1, 2], [float("nan"), 0.5], 0.5, "at least 0"),
        ([0, 2], [0.5, 0.5], 0.0, "at least 1 and ascend"),
        ([2, 2], [0.5, 0.5], 0.0, "at least 1 and ascend"),
        ([1], [0.5, 0.5], 0.0, "one probability for each"),
    ],
)
def test_what_is_no_distribution_of_distances_is_refused(distance, probability, new, rule):
    with pytest.raises(ValueError, match=rule):
        ReuseProfile(np.array(distance), np.array(probability), new)
