import numpy as np
import pytest

from scheduler.ids import parse_ids
from scheduler.locality import stack_distances
from scheduler.reuse import ReuseProfile

MANY = 400_000
PROFILE = ReuseProfile(np.array([1, 20, 300]), np.array([0.3, 0.2, 0.1]), 0.4)


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


def test_reuse_ids_have_the_stack_distances_of_the_profile_that_someone_reads():
    asked = []

    def read(where: str) -> ReuseProfile:
        asked.append(where)
        return PROFILE

    law = parse_ids("reuse:profile.csv", read)
    ids = law.draw(np.random.default_rng(0), 1_000_000, MANY, np.int32)
    assert asked == ["profile.csv"]
    assert law.spec == "reuse:profile.csv"
    assert ids.dtype == np.int32
    share = np.bincount(stack_distances(ids)) / MANY
    assert [share[d] for d in (0, 1, 20, 300)] == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.005)
    with pytest.raises(ValueError, match="unknown id law"):
        parse_ids("reuse:profile.csv")


def test_a_law_that_remembers_goes_on_where_its_stream_stopped_and_others_say_that_they_do_not():
    law, rng = parse_ids("reuse:x", lambda where: PROFILE), np.random.default_rng(0)
    draw = law.stream(10_000)
    parts = [draw(rng, 50, np.int64) for _ in range(100)]
    whole = law.draw(np.random.default_rng(0), 10_000, 5000, np.int64)
    assert np.concatenate(parts).tolist() == whole.tolist()
    assert law.remembers
    assert not parse_ids("uniform").remembers
    assert not parse_ids("zipf:1.2").remembers
