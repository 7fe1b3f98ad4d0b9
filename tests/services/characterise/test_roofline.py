"""The class follows from measured seconds and measured ceilings, and from no name."""

from __future__ import annotations

import pytest

from services.characterise.ceilings import Ceilings, GatherRate, measure_ceilings
from services.characterise.dataflow import Part
from services.characterise.roofline import Class, Limit, classify, part_points
from services.characterise.work import Work

CEILINGS = Ceilings(1, 20e9, 10e9, (GatherRate(64, 1e9, 0.5e9), GatherRate(256, 4e9, 2e9)), 100e9)
"""1 GB/s for rows of 64 bytes, 20 GB/s streamed, 100 GFLOP/s."""


def seconds(**parts: float) -> dict[Part, float]:
    return {part: parts.get(part, 0.0) for part in Part}


def work(**parts: Work) -> dict[Part, Work]:
    return {part: parts.get(part, Work()) for part in Part}


ROWS = work(
    embedding=Work(gathered_bytes=6400, gathered_rows=100, streamed_bytes=400),
    mlp=Work(macs=1e4, weight_bytes=1000),
)


@pytest.mark.parametrize(
    ("took", "classes", "limit"),
    [
        (seconds(embedding=8e-4, mlp=1e-4), ("embedding",), "memory"),
        (seconds(embedding=8e-4, mlp=5e-4), ("embedding", "mlp"), "memory"),
        (seconds(embedding=1e-5, mlp=4e-5), ("mlp",), "compute"),
        (seconds(embedding=1e-5, mlp=1e-3), ("mlp",), "compute"),
        (seconds(mlp=1e-4, attention=6e-5, recurrence=6e-5), ("attention", "mlp"), "neither"),
        (seconds(mlp=1e-4, other=1e-2), ("mlp",), "compute"),
    ],
)
def test_the_class_is_that_of_the_parts_that_take_the_time(
    took: dict[Part, float], classes: tuple[Class, ...], limit: Limit
) -> None:
    found = classify(part_points(took, ROWS, 64, CEILINGS))
    assert (found.classes, found.limit) == (classes, limit)
    assert sum(found.shares.values()) == pytest.approx(1 - took[Part.OTHER] / sum(took.values()))


def test_a_part_stands_under_the_ceilings_that_its_work_needs() -> None:
    points = {
        point.part: point for point in part_points(seconds(embedding=1e-3, mlp=2e-5), ROWS, 64, CEILINGS)
    }
    rows = points[Part.EMBEDDING]
    assert rows.memory_s == pytest.approx(64 * 6400 / 1e9 + 64 * 400 / 20e9)
    assert (rows.compute_s, rows.limit) == (0.0, "memory")
    assert rows.of_roof == pytest.approx(rows.memory_s / 1e-3)
    mlp = points[Part.MLP]
    assert mlp.compute_s == pytest.approx(2 * 64 * 1e4 / 100e9)
    assert mlp.memory_s == pytest.approx(1000 / 20e9)
    assert (mlp.limit, mlp.share) == ("compute", pytest.approx(2e-5 / 1.02e-3))
    assert (points[Part.OTHER].of_roof, points[Part.OTHER].limit) == (0.0, "neither")


def test_rows_between_two_measured_sizes_are_interpolated_and_beyond_them_held() -> None:
    assert CEILINGS.gather_bytes_per_s(128) == pytest.approx(2.5e9)
    assert CEILINGS.small_pages_bytes_per_s(128) == pytest.approx(1.25e9)
    assert CEILINGS.gather_bytes_per_s(4) == 1e9
    assert CEILINGS.gather_bytes_per_s(4096) == 4e9
    assert CEILINGS.stream_bytes_per_s == 20e9


def test_ceilings_are_measured_in_plausible_units() -> None:
    seen: list[str] = []
    found = measure_ceilings(2, table_bytes=1 << 21, matrices=(32, 64), repeats=2, progress=seen.append)
    assert (found.cores, len(seen)) == (2, 3)
    rates = [found.read_bytes_per_s, found.copy_bytes_per_s, found.flops_per_s]
    rates += [
        rate for gather in found.gather for rate in (gather.bytes_per_s, gather.small_pages_bytes_per_s)
    ]
    assert all(1e6 < rate < 1e14 for rate in rates)
    assert [gather.row_bytes for gather in found.gather] == [64, 128, 256, 512]
