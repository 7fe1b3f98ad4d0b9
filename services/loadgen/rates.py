"""The rates of a sweep, as a person writes them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from deeprecsys.errors import InvalidSettingError

MAX_RATES = 1000


def parse_rates(text: str) -> tuple[float, ...]:
    """Read ``50,100,200`` or ``LO:HI:N``, N rates in equal steps from LO to HI, as queries per second.

    Raises InvalidSettingError for anything else, and for rates that are not above 0 and ascending.
    """
    try:
        if ":" in text:
            low, high, count = text.split(":")
            rates = np.linspace(float(low), float(high), _count(count)).tolist()
        else:
            rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    ascending = all(a < b for a, b in pairwise(rates))
    if not rates or not ascending or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise InvalidSettingError(
            f"rates {text!r} must be written 50,100,200 or LO:HI:N, ascending from above 0 queries/s"
        )
    return tuple(rates)


def _count(text: str) -> int:
    count = int(text)
    if not 2 <= count <= MAX_RATES:
        raise InvalidSettingError(f"a sweep from one rate to another has 2 to {MAX_RATES} rates, not {count}")
    return count
