import math

import numpy as np
import pytest

from scheduler.arrivals import parse_arrivals
from scheduler.rate_curve import RateCurve, diurnal, ramp, step


@pytest.mark.parametrize(
    "curve",
    [RateCurve(), step(3, 0.1), ramp(0, 5, 4), diurnal(7, 0.0), RateCurve((0, 1, 1, 2, 2), (1, 1, 0, 0, 2))],
)
def test_the_inverse_of_a_curves_area_is_its_inverse(curve):
    area = np.linspace(0.01, 30.0, 500)
    times = curve.inverse(area)
    assert (np.diff(times) > 0).all()
    assert [curve.area(t) for t in times] == pytest.approx(area.tolist())


@pytest.mark.parametrize(
    "knots",
    [((), ()), ((1.0,), (1.0,)), ((0.0, 2.0, 1.0), (1.0,) * 3), ((0.0,), (0.0,)), ((0.0, 1.0), (1.0, -1.0)),
     ((0.0,), (math.nan,)), ((0.0, 1.0), (1.0,))],
)  # fmt: skip
def test_knots_that_make_no_curve_are_refused(knots):
    with pytest.raises(ValueError, match="rate curve"):
        RateCurve(*knots)


def test_a_repeating_curve_needs_a_period_with_some_rate():
    with pytest.raises(ValueError, match="repeating"):
        RateCurve((0.0, 1.0), (0.0, 0.0), repeats=True)
    with pytest.raises(ValueError, match="diurnal"):
        parse_arrivals("diurnal:0,0.5")
