"""Routers: which node of a fleet gets the next query. Each is a small function of what a router can see."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

Uniform = Callable[[], float]
"""The next number of a stream, even on [0, 1)."""

_TURNS = 16
"""A node of mean weight has so many turns in one round of the round robin."""


@dataclass
class Pool:
    """The nodes that serve a model just now: their numbers, their weights, and what each has to do.

    ``outstanding``: float64 [all nodes], candidates sent to a node and not yet answered, over its weight.
    ``split``: for the size-aware router, the two parts of the pool and the size from which queries go to the second.
    """

    nodes: Sequence[int]
    weights: Sequence[float]
    outstanding: NDArray[np.float64]
    split: Split | None = None
    turn: int = 0
    _until: list[float] = field(init=False)
    _index: NDArray[np.intp] = field(init=False)
    _round: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Add the weights up."""
        self._until = list(accumulate(self.weights))
        self._index = np.array(self.nodes, dtype=np.intp)

    def pick(self, uniform: Uniform) -> int:
        """Return a node at random, in proportion to its weight."""
        return self.nodes[min(bisect_right(self._until, uniform() * self._until[-1]), len(self.nodes) - 1)]

    def next(self) -> int:
        """Return the node whose turn it is: the turns of each are evenly spread, as many as its weight."""
        if not self._round:
            mean = self._until[-1] / len(self.nodes)
            turns = [max(1, round(_TURNS * weight / mean)) for weight in self.weights]
            order = sorted(
                ((k + (position + 0.5) / len(turns)) / count, node)
                for position, (node, count) in enumerate(zip(self.nodes, turns, strict=True))
                for k in range(count)
            )
            self._round = [node for _, node in order]
        self.turn = (self.turn + 1) % len(self._round)
        return self._round[self.turn]

    def least(self, uniform: Uniform) -> int:
        """Return the node with the least to do; of several with nothing, one at random."""
        load = self.outstanding[self._index]
        start = int(uniform() * len(load))
        late, early = int(load[start:].argmin()) + start, int(load[: start + 1].argmin())
        return self.nodes[late if load[late] <= load[early] else early]


@dataclass
class Split:
    """Two pools, and the size from which queries go to the second."""

    small: Pool
    large: Pool
    large_from: int


Router = Callable[[Pool, int, Uniform], int]
"""(the pool of the query's model, candidates, randomness) -> the number of a node in the pool."""


def random(pool: Pool, _size: int, uniform: Uniform) -> int:
    """Return any node: this leaves nodes independent: each sees Poisson arrivals of its own."""
    return pool.pick(uniform)


def round_robin(pool: Pool, _size: int, _uniform: Uniform) -> int:
    """Return the node whose turn it is."""
    return pool.next()


def power_of_two(pool: Pool, _size: int, uniform: Uniform) -> int:
    """Return of two random nodes the one with less to do (Mitzenmacher, 2001)."""
    one, other = pool.pick(uniform), pool.pick(uniform)
    return one if pool.outstanding[one] <= pool.outstanding[other] else other


def least_outstanding(pool: Pool, _size: int, uniform: Uniform) -> int:
    """Return the node with the fewest outstanding candidates for its weight."""
    return pool.least(uniform)


def size_aware(pool: Pool, size: int, uniform: Uniform) -> int:
    """Send large queries to some nodes and small ones to the others (SITA-E: each part gets the work that it bears)."""
    if pool.split is None:
        return power_of_two(pool, size, uniform)
    part = pool.split.large if size >= pool.split.large_from else pool.split.small
    return power_of_two(part, size, uniform)


ROUTERS: Mapping[str, Router] = {
    "random": random,
    "round-robin": round_robin,
    "power-of-two": power_of_two,
    "least-outstanding": least_outstanding,
    "size-aware": size_aware,
}


def split_by_size(pool: Pool, preferred: set[int], sizes: NDArray[np.integer]) -> Split | None:
    """Split a pool for the size-aware router; None for a pool of one node.

    ``preferred``: nodes that should have the large queries (those with an accelerator), else the last half of them.
    ``sizes``: [Q] drawn sizes; the cut gives each part the candidates that its weight is of the whole.
    """
    count = len(pool.nodes)
    large = [k for k, node in enumerate(pool.nodes) if node in preferred]
    if not 0 < len(large) < count:
        large = list(range((count + 1) // 2, count))
    if not large:
        return None
    rest = sorted(set(range(count)) - set(large))
    parts = [
        Pool([pool.nodes[k] for k in part], [pool.weights[k] for k in part], pool.outstanding)
        for part in (rest, large)
    ]
    share = sum(parts[0].weights) / sum(pool.weights)
    ascending = np.sort(sizes)
    work = np.cumsum(ascending)
    return Split(
        parts[0],
        parts[1],
        int(ascending[min(int(np.searchsorted(work, share * work[-1])), len(work) - 1)]) + 1,
    )
