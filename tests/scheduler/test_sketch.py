from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.measure import percentile
from scheduler.sketch import ACCURACY, LatencySketch, blended, merged

PERCENTS = (0.0, 1.0, 50.0, 95.0, 99.0, 99.9, 100.0)


def of(*seconds: float) -> LatencySketch:
    sketch = LatencySketch()
    sketch.add(np.array(seconds))
    return sketch


@given(
    st.lists(st.floats(1e-6, 1e4) | st.just(math.inf), min_size=1, max_size=300),
    st.sampled_from(PERCENTS),
)
def test_every_percentile_is_within_the_accuracy_of_the_true_one(seconds: list[float], p: float) -> None:
    true = percentile(np.array(seconds), p)
    assert of(*seconds).percentile(p) == pytest.approx(true, rel=1.001 * ACCURACY)


def test_the_accuracy_holds_for_a_heavy_tail_of_many() -> None:
    seconds = np.random.default_rng(0).pareto(1.1, 100_000) * 1e-3 + 1e-4
    sketch = of(*seconds)
    for p in PERCENTS:
        assert sketch.percentile(p) == pytest.approx(percentile(seconds, p), rel=1.001 * ACCURACY)


def test_sketches_of_parts_add_up_to_that_of_the_whole() -> None:
    seconds = np.random.default_rng(1).lognormal(-5, 1, 3000)
    parts = merged(of(*part) for part in np.split(seconds, 3))
    whole = of(*seconds)
    assert parts.count == 3000
    assert [parts.percentile(p) for p in PERCENTS] == [whole.percentile(p) for p in PERCENTS]


def test_queries_without_an_answer_are_infinitely_late() -> None:
    sketch = of(*[0.01] * 94, *[math.inf] * 6)
    assert sketch.count == 100
    assert sketch.failed == 6
    assert sketch.percentile(90) == pytest.approx(0.01, rel=ACCURACY)
    assert sketch.percentile(95) == math.inf


def test_nothing_has_no_percentile() -> None:
    assert LatencySketch().percentile(95) == math.inf
    assert of().count == 0
    assert blended([(LatencySketch(), 1.0)], 95) == math.inf


def test_a_sketch_survives_json() -> None:
    seconds = np.append(np.random.default_rng(2).lognormal(-5, 1, 500), math.inf)
    sketch = of(*seconds)
    again = LatencySketch.from_dict(json.loads(json.dumps(sketch.to_dict())))
    assert again.count == sketch.count
    assert [again.percentile(p) for p in PERCENTS] == [sketch.percentile(p) for p in PERCENTS]


def test_parts_of_a_mixture_count_by_their_weights_and_not_by_their_queries() -> None:
    slow, quick = of(*[1.0] * 1000), of(*[0.001] * 10)
    assert blended([(slow, 1.0), (quick, 9.0)], 89) == pytest.approx(0.001, rel=ACCURACY)
    assert blended([(slow, 1.0), (quick, 9.0)], 91) == pytest.approx(1.0, rel=ACCURACY)
    assert blended([(of(math.inf), 1.0), (quick, 9.0)], 95) == math.inf
