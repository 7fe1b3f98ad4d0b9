import pytest

from scheduler.arrivals import parse_arrivals
from scheduler.ids import parse_ids
from scheduler.sizes import parse_sizes


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
        (parse_arrivals, "bursty"),
        (parse_arrivals, "bursty:0.5,0.1,1"),
        (parse_arrivals, "bursty:8,0,1"),
        (parse_arrivals, "bursty:8,1,1"),
        (parse_arrivals, "bursty:8,0.1,0"),
        (parse_arrivals, "bursty:inf,0.1,1"),
        (parse_arrivals, "diurnal:nan,0.5"),
        (parse_ids, "zipf:nan"),
        (parse_ids, "zipf:101"),
        (parse_ids, "zipf:0"),
        (parse_ids, "zipf"),
    ],
)
def test_a_law_with_wrong_numbers_is_refused_and_says_how_it_is_written(parse, spec):
    with pytest.raises(ValueError, match="written"):
        parse(spec)
