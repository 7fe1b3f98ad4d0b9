"""The roofline (Williams et al. 2009): which ceiling a model is against, and the class that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from services.characterise.ceilings import Ceilings
from services.characterise.dataflow import Part
from services.characterise.work import Work

Limit = Literal["memory", "compute", "neither"]
Class = Literal["embedding", "mlp", "attention"]

SECOND = 0.5
"""A second class is named where it takes at least this share of the first one's seconds."""

_CLASSES: Mapping[Class, tuple[Part, ...]] = {
    "embedding": (Part.EMBEDDING,),
    "mlp": (Part.MLP,),
    "attention": (Part.ATTENTION, Part.RECURRENCE),
}


@dataclass(frozen=True)
class PartPoint:
    """One part of a model at one batch size on one core.

    ``memory_s`` and ``compute_s``: what its bytes and its floating-point operations take at the ceilings.
    ``of_roof``: the larger of the two over the measured ``seconds``: 1 is on the roof, more is a cache's doing, 0 a
    part that takes no time. ``limit``: the ceiling that the part would meet first; ``neither`` for one without work.
    """

    part: Part
    seconds: float
    share: float
    memory_s: float
    compute_s: float
    of_roof: float
    limit: Limit


def part_point(part: Part, seconds: float, total_s: float, memory_s: float, compute_s: float) -> PartPoint:
    """Place a part of an inference that takes ``total_s`` under its roof."""
    of_roof = max(memory_s, compute_s) / seconds if seconds > 0 else 0.0
    limit: Limit = "neither"
    if max(memory_s, compute_s) > 0:
        limit = "memory" if memory_s >= compute_s else "compute"
    return PartPoint(part, seconds, seconds / total_s, memory_s, compute_s, of_roof, limit)


@dataclass(frozen=True)
class Bottleneck:
    """What a model spends its time on: one class, or two. ``limit`` and ``of_roof`` are those of the first's parts."""

    classes: tuple[Class, ...]
    shares: Mapping[Class, float]
    limit: Limit
    of_roof: float


def part_points(
    seconds: Mapping[Part, float], work: Mapping[Part, Work], candidates: int, ceilings: Ceilings
) -> tuple[PartPoint, ...]:
    """Put each part's measured seconds of one inference beside what its work takes at the ceilings of one core.

    Rows are gathered at the rate for rows of their size; inputs, outputs and weights stream.
    """
    total_s = sum(seconds.values())
    points = []
    for part, took_s in seconds.items():
        mine = work[part]
        rows = mine.gathered_rows
        gather_s = (
            candidates * mine.gathered_bytes / ceilings.gather_bytes_per_s(mine.gathered_bytes / rows)
            if rows
            else 0.0
        )
        streamed = candidates * mine.streamed_bytes + mine.weight_bytes
        memory_s = gather_s + streamed / ceilings.stream_bytes_per_s
        compute_s = mine.flops(candidates) / ceilings.flops_per_s
        points.append(part_point(part, took_s, total_s, memory_s, compute_s))
    return tuple(points)


def classify(points: tuple[PartPoint, ...]) -> Bottleneck:
    """Name the class by measurement: that of the parts which take most of the time.

    Embedding, MLP and attention (recurrences included) compete with their measured seconds; what is none of them
    never gives a class. A second class is named from SECOND of the first one's seconds on. The roofline then says
    which ceiling the first would meet first, memory or compute, and how near it is: what is missing is latency,
    overhead and data that moves within the cache.
    """
    took_s = {
        name: sum(point.seconds for point in points if point.part in parts)
        for name, parts in _CLASSES.items()
    }
    total_s = sum(point.seconds for point in points)
    ranked = sorted(took_s, key=lambda name: -took_s[name])
    first = ranked[0]
    mine = [point for point in points if point.part in _CLASSES[first]]
    joined = part_point(
        _CLASSES[first][0],
        took_s[first],
        total_s,
        sum(point.memory_s for point in mine),
        sum(point.compute_s for point in mine),
    )
    return Bottleneck(
        tuple(name for name in ranked if took_s[name] > 0 and took_s[name] >= SECOND * took_s[first]),
        {name: took_s[name] / total_s for name in ranked},
        joined.limit,
        joined.of_roof,
    )
