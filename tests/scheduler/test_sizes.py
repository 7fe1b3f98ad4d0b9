import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.sizes import empirical, parse_sizes

MANY = 400_000


def sizes_of(spec: str) -> np.ndarray:
    return parse_sizes(spec).draw(np.random.default_rng(0), MANY)


@pytest.mark.parametrize("spec", ["production:1e8", "lognormal:40,1,1e12", "normal:1e15,1,1e15"])
def test_no_size_is_beyond_what_a_message_can_say(spec: str) -> None:
    size = sizes_of(spec)
    assert (size >= 1).all()
    assert size.max() == 2**31 - 1


@pytest.mark.parametrize(
    ("spec", "mean", "at_percent", "largest_quarter"),
    [
        (
            "normal",
            255.5,
            {1: 181, 5: 203, 25: 234, 50: 256, 75: 277, 90: 296, 95: 308, 99: 330, 99.9: 353},
            0.290,
        ),
        (
            "normal:165,16",
            164.5,
            {1: 127, 5: 138, 25: 154, 50: 165, 75: 175, 90: 185, 95: 191, 99: 202, 99.9: 214},
            0.281,
        ),
        (
            "released",
            166.8,
            {1: 103, 5: 118, 25: 143, 50: 163, 75: 187, 90: 211, 95: 227, 99: 260, 99.9: 304},
            0.318,
        ),
        (
            "production-lognormal",
            126.6,
            {1: 19, 5: 31, 25: 62, 50: 99, 75: 159, 90: 244, 95: 314, 99: 508, 99.9: 879},
            0.511,
        ),
        (
            "production",
            103.3,
            {1: 16, 5: 24, 25: 44, 50: 66, 75: 99, 90: 207, 95: 337, 99: 712, 99.9: 965},
            0.594,
        ),
    ],
)
def test_size_laws_have_the_mean_the_percentiles_and_the_tail_weight_that_were_computed_for_them(
    spec, mean, at_percent, largest_quarter
):
    # From a table of percentiles drawn independently: the first three laws are those of the released scripts, the last
    # two the stand-ins A and B for production, of which only the largest quarter's half of the work is known.
    size = sizes_of(spec)
    assert size.mean() == pytest.approx(mean, rel=0.01)
    for percent, expected in at_percent.items():
        assert np.percentile(size, percent) == pytest.approx(expected, rel=0.02, abs=1), percent
    assert np.sort(size)[-MANY // 4 :].sum() / size.sum() == pytest.approx(largest_quarter, abs=0.01)


def test_a_lognormal_law_has_the_moments_of_its_parameters():
    log = np.log(sizes_of("lognormal:6,0.5,1e9"))
    assert log.mean() == pytest.approx(6.0, abs=0.01)
    assert log.std() == pytest.approx(0.5, abs=0.01)
    size = sizes_of("lognormal:6,0.5,1e9")
    assert size.std() / size.mean() == pytest.approx(math.sqrt(math.expm1(0.25)), rel=0.01)


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


def test_a_factor_multiplies_every_query_of_the_production_law():
    single, double = (
        parse_sizes(s).draw(np.random.default_rng(1), 5000) for s in ("production", "production:2")
    )
    assert double.mean() == pytest.approx(2 * single.mean(), rel=0.02)
    assert double.max() > 1000


def test_observed_sizes_come_from_whoever_reads_them():
    asked = []

    def read(where: str) -> np.ndarray:
        asked.append(where)
        return np.array([7, 7, 8])

    law = parse_sizes("empirical:some.csv,size", read)
    assert asked == ["some.csv,size"]
    assert law.spec == "empirical:some.csv,size"
    assert set(law.draw(np.random.default_rng(0), 100).tolist()) == {7, 8}
    with pytest.raises(ValueError, match="unknown size law"):
        parse_sizes("empirical:some.csv")
    with pytest.raises(ValueError, match="must be written empirical:FILE"):
        parse_sizes("empirical", read)
    with pytest.raises(ValueError, match="at most 2147483647"):
        parse_sizes("empirical:x", lambda where: np.array([2**31]))
