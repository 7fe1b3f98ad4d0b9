import pytest

from deeprecsys.errors import InvalidSettingError
from services.loadgen.rates import parse_rates


@pytest.mark.parametrize(
    ("text", "rates"),
    [("50", (50.0,)), ("50,100,200", (50.0, 100.0, 200.0)), ("10:20:3", (10.0, 15.0, 20.0))],
)
def test_rates_are_a_list_or_equal_steps(text, rates):
    assert parse_rates(text) == rates


@pytest.mark.parametrize(
    "text",
    ["", "0,10", "-1", "nan", "inf", "10,10", "20,10", "a,b", "10:20", "20:10:3", "10:20:x", "1:2:3:4"],
)
def test_rates_that_make_no_curve_are_refused_with_how_to_write_them(text):
    with pytest.raises(InvalidSettingError, match="must be written 50,100,200 or LO:HI:N"):
        parse_rates(text)


@pytest.mark.parametrize("count", [1, 0, -3, 1001])
def test_a_range_has_a_number_of_rates_that_makes_sense(count):
    with pytest.raises(InvalidSettingError, match="has 2 to 1000 rates"):
        parse_rates(f"10:20:{count}")
