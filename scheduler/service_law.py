"""Service laws: how long an inference takes on a simulated core or accelerator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from numpy.random import Generator

from scheduler.latency import BackendProfile

Draw = Callable[[int, int, float], float]
"""(candidates, cores at work with this one included, now in seconds) -> seconds that the inference takes."""

ServiceLaw = Callable[[Generator], Draw]
"""Makes a Draw for one run, its randomness from the run's generator. Infinite seconds: the inference fails at once."""

_FIRST_DRAWN, _MOST_DRAWN = 64, 4096
"""How many factors are drawn at once: few for a node that hardly works, in a fleet there are thousands."""


def linear(
    fixed_s: float, per_candidate_s: float, *, sigma: float = 0.0, contention: float = 0.0
) -> ServiceLaw:
    """Service of fixed_s + per_candidate_s * n, times 1 + contention * (other cores at work), log-normal about it.

    ``sigma`` is the spread of the noise's logarithm; its mean is 1.
    """

    def make(rng: Generator) -> Draw:
        noise = _noise(rng, sigma)

        def draw(candidates: int, busy: int, _now: float) -> float:
            return (fixed_s + per_candidate_s * candidates) * (1 + contention * (busy - 1)) * noise()

        return draw

    return make


def measured(backend: BackendProfile, cores: int, largest: int = 1024) -> ServiceLaw:
    """Service as a profile has it: between ``alone`` and ``busy`` by the cores at work, log-normal about the mean."""
    alone = backend.alone.table_s(largest)
    # Per core at work besides this one; a profile of one core has no such thing.
    slope = (backend.busy.table_s(largest) - alone) / max(1, cores - 1)
    sigma = backend.busy.sigma if cores > 1 else backend.alone.sigma

    def make(rng: Generator) -> Draw:
        noise = _noise(rng, sigma)
        mean_s, each_s = alone.tolist(), slope.tolist()

        def draw(candidates: int, busy: int, _now: float) -> float:
            n = min(candidates, largest)
            seconds: float = mean_s[n] + each_s[n] * (busy - 1)
            return seconds * (candidates / n) * noise()

        return draw

    return make


def slowed(law: ServiceLaw, factor: float, periods: Sequence[tuple[float, float, float]] = ()) -> ServiceLaw:
    """Service that takes ``factor`` times as long, and in (from_s, until_s, times) periods so much longer again."""
    if factor == 1.0 and not periods:
        return law

    def make(rng: Generator) -> Draw:
        draw = law(rng)

        def steady(candidates: int, busy: int, now: float) -> float:
            return factor * draw(candidates, busy, now)

        def troubled(candidates: int, busy: int, now: float) -> float:
            seconds = factor * draw(candidates, busy, now)
            for from_s, until_s, times in periods:
                if from_s <= now < until_s:
                    seconds *= times
            return seconds

        return troubled if periods else steady

    return make


def _noise(rng: Generator, sigma: float) -> Callable[[], float]:
    """Return a log-normal factor of mean 1 at each call; drawing singly would cost more than the simulation."""
    if sigma <= 0:
        return lambda: 1.0

    def drawn() -> Iterator[float]:
        count = _FIRST_DRAWN
        while True:
            yield from rng.lognormal(-sigma * sigma / 2, sigma, count).tolist()
            count = min(2 * count, _MOST_DRAWN)

    return drawn().__next__
