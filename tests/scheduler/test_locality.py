import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.ids import parse_ids
from scheduler.locality import measure_locality, stack_distances


@given(st.lists(st.integers(0, 15), max_size=120))
def test_stack_distances_are_the_places_in_a_stack_of_rows_by_last_use(ids):
    stack: list[int] = []
    expected = []
    for row in ids:
        expected.append(stack[::-1].index(row) + 1 if row in stack else 0)
        if row in stack:
            stack.remove(row)
        stack.append(row)
    assert stack_distances(np.array(ids, dtype=np.int32)).tolist() == expected


def test_the_measures_of_a_sequence_worked_out_by_hand():
    # Rows 5 5 7 5: distances 0 1 0 2. The other table's three look-ups are all of one row.
    found = measure_locality([np.array([5, 5, 7, 5]), np.array([1, 1, 1], dtype=np.uint8)])
    assert (found.look_ups, found.tables) == (7, 2)
    assert found.distinct_share == pytest.approx(3 / 7)
    assert found.top_percent_share == pytest.approx((3 + 3) / 7)  # at least one row of each
    assert found.mean_reuse_distance == pytest.approx((1 + 2 + 1 + 1) / 4)


def test_without_look_ups_there_is_no_locality_and_without_reuse_no_distance():
    assert measure_locality([]) is None
    assert measure_locality([np.array([], dtype=np.int32)]) is None
    assert measure_locality([np.arange(10)]).mean_reuse_distance is None


def test_uniform_look_ups_have_the_locality_of_theory():
    rows, n = 1000, 200_000
    found = measure_locality([parse_ids("uniform").draw(np.random.default_rng(0), rows, n, np.int32)])
    assert found.distinct_share == pytest.approx(rows / n)
    # Each row has the same chance: the distance is uniform over the stack, and ten rows take a little over a hundredth.
    assert found.mean_reuse_distance == pytest.approx((rows + 1) / 2, rel=0.02)
    assert 0.01 <= found.top_percent_share < 0.014


def test_zipf_look_ups_have_the_top_share_of_theory_and_come_back_sooner():
    rows, n = 10_000, 200_000
    ids = parse_ids("zipf:1.0").draw(np.random.default_rng(0), rows, n, np.int32)
    found = measure_locality([ids])
    harmonic = 1 / np.arange(1, rows + 1)
    assert found.top_percent_share == pytest.approx(harmonic[:100].sum() / harmonic.sum(), rel=0.03)
    assert found.mean_reuse_distance < (rows + 1) / 4
