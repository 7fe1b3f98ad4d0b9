from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.routers import ROUTERS, Pool, least_outstanding, power_of_two, split_by_size


def uniform(seed: int = 0) -> Callable[[], float]:
    rng = np.random.default_rng(seed)
    return lambda: float(rng.random())


def pool(
    nodes: list[int], weights: list[float] | None = None, outstanding: list[float] | None = None
) -> Pool:
    todo = np.array(outstanding or [0.0] * (max(nodes) + 1))
    return Pool(nodes, weights or [1.0] * len(nodes), todo)


@given(
    st.sampled_from(sorted(ROUTERS)),
    st.lists(st.integers(0, 30), min_size=1, max_size=12, unique=True),
    st.integers(1, 1000),
    st.integers(0, 99),
)
def test_every_router_answers_with_a_node_that_is_there(
    name: str, nodes: list[int], size: int, seed: int
) -> None:
    made = pool(sorted(nodes))
    made.split = split_by_size(made, set(nodes[:1]), np.arange(1, 1000))
    draw = uniform(seed)
    assert {ROUTERS[name](made, size, draw) for _ in range(20)} <= set(nodes)


@pytest.mark.parametrize("name", ["random", "round-robin", "power-of-two", "size-aware"])
def test_nodes_get_queries_in_proportion_to_their_weights(name: str) -> None:
    made, draw = pool([2, 5, 7], [1.0, 1.0, 4.0]), uniform()
    count = Counter()
    for _ in range(6000):
        node = ROUTERS[name](made, 10, draw)
        count[node] += 1
        made.outstanding[node] += 1 / {2: 1.0, 5: 1.0, 7: 4.0}[node]
    assert count[7] / 6000 == pytest.approx(4 / 6, abs=0.03)
    assert count[2] / 6000 == pytest.approx(1 / 6, abs=0.03)


def test_the_turns_of_the_round_robin_are_evenly_spread() -> None:
    made = pool([0, 1, 2])
    turns = [ROUTERS["round-robin"](made, 1, uniform()) for _ in range(300)]
    assert all(set(turns[k : k + 3]) == {0, 1, 2} for k in range(0, 300, 3))


def test_power_of_two_never_takes_the_busiest_of_many_unless_it_drew_it_twice() -> None:
    made, draw = pool([0, 1, 2, 3], outstanding=[0.0, 0.0, 0.0, 9.0]), uniform()
    count = Counter(power_of_two(made, 1, draw) for _ in range(4000))
    assert count[3] / 4000 == pytest.approx(1 / 16, abs=0.015)


def test_the_least_outstanding_is_taken_and_of_equals_any() -> None:
    made, draw = pool([0, 1, 2, 3], outstanding=[5.0, 2.0, 7.0, 2.0]), uniform()
    count = Counter(least_outstanding(made, 1, draw) for _ in range(400))
    assert set(count) == {1, 3}
    assert min(count.values()) > 80


def test_sizes_are_split_so_that_both_parts_get_the_work_of_their_weight() -> None:
    sizes = np.random.default_rng(0).integers(1, 1001, 50_000)
    made = pool([0, 1, 2, 3], [1.0, 1.0, 1.0, 3.0])
    split = split_by_size(made, {3}, sizes)
    assert split is not None
    assert split.large.nodes == [3]
    assert split.small.nodes == [0, 1, 2]
    assert sizes[sizes >= split.large_from].sum() / sizes.sum() == pytest.approx(0.5, abs=0.01)
    made.split, draw = split, uniform()
    assert ROUTERS["size-aware"](made, split.large_from, draw) == 3
    assert ROUTERS["size-aware"](made, split.large_from - 1, draw) != 3


def test_without_preferred_nodes_the_last_half_takes_the_large_queries_and_one_node_takes_all() -> None:
    split = split_by_size(pool([1, 4, 6, 8]), set(), np.arange(1, 1000))
    assert split is not None
    assert split.large.nodes == [6, 8]
    assert split_by_size(pool([3]), {3}, np.arange(1, 1000)) is None
