"""Simulating a part of a day again with further seeds until its tails are known well enough."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.fleet import simulate_fleet
from scheduler.fleet_result import FleetSeen, known
from scheduler.fleet_spec import FleetSpec

TAILS = (95.0, 99.0)
"""The percentiles that must be known."""


def simulate_until_known(
    spec: FleetSpec, seed: Sequence[int], *, within: float, least: int = 5, most: int = 20
) -> list[FleetSeen]:
    """Return the rounds of a simulation, of which all together know p95 and p99 of every model.

    Known is a 95 % interval of at most ``within`` of the value to either side (``fleet_result.known``). At least
    ``least`` rounds and at most ``most`` of them; a tail that is infinite, or too noisy, is not known after the last.
    """
    rounds: list[FleetSeen] = []
    while len(rounds) < most:
        rounds.append(simulate_fleet(spec, [*seed, len(rounds)]))
        if len(rounds) >= least and widest(rounds) <= within:
            break
    return rounds


def widest(rounds: Sequence[FleetSeen]) -> float:
    """Return the largest relative half width of the tails of all models; 0 where no query came at all."""
    models = {model for seen in rounds for model in seen.models}
    each = (known([seen.latency(m) for seen in rounds], p).relative for m in models for p in TAILS)
    return max(each, default=0.0)
