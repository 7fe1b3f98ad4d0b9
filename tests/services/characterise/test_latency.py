"""A profile is what was measured."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from deeprecsys.errors import RepositoryError
from services.characterise.latency import measure_profile
from services.rank.cpu import CpuEngine
from services.rank.engine import EngineError
from services.rank.repository import build_spec, read_listing


class Counting:
    """A real engine that notes the candidates of every run, and its inputs."""

    def __init__(self, engine: CpuEngine) -> None:
        self._engine = engine
        self.ran: list[int] = []
        self.inputs: set[bytes] = set()

    def run(self, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        self.ran.append(len(inputs["dense"]))
        self.inputs.add(inputs["dense"].tobytes() + inputs["ids"].tobytes())
        return self._engine.run(inputs, outputs)


def test_every_size_up_to_the_models_largest_is_timed_alone_and_with_all_cores_busy(repository: Path) -> None:
    listing = read_listing(repository / "linear")
    engine = Counting(CpuEngine(listing.model_file("1")))
    spec = build_spec(listing, "1", CpuEngine(listing.model_file("1")).ports())
    seen: list[int] = []
    found = measure_profile(engine, spec, 2, seconds_each=0.001, progress=seen.append)
    assert seen == [1, 2, 4, 8, 16, 32, 64]
    assert (found.model, found.cores) == ("linear", 2)
    cpu = found.backend("cpu")
    for curve in (cpu.alone, cpu.busy):
        assert [point.batch_size for point in curve.points] == seen
        assert all(0 < p.p50_s <= p.p95_s <= p.p99_s for p in curve.points)
        assert all(
            a.mean_s <= b.mean_s * (1 + 1e-9) for a, b in zip(curve.points, curve.points[1:], strict=False)
        )
    assert set(engine.ran) == set(seen)
    assert engine.ran.count(64) >= 3 * 20
    assert len(engine.inputs) == len(engine.ran)  # none is used twice: its rows would sit in a cache
    assert engine.ran[:3] == [64, 64, 64]  # they read the tables in, and are not counted


class Disturbed:
    """An engine to which something happens in batches of 1 only."""

    def run(self, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        if len(inputs["dense"]) == 1:
            time.sleep(0.005)
        return []


def test_a_disturbed_batch_is_not_taken_to_be_slower_than_larger_ones_nor_makes_them_slow(
    repository: Path,
) -> None:
    listing = read_listing(repository / "linear")
    spec = build_spec(listing, "1", CpuEngine(listing.model_file("1")).ports())
    found = measure_profile(Disturbed(), spec, 1, seconds_each=0.001)
    for curve in (found.backend("cpu").alone, found.backend("cpu").busy):
        assert all(point.mean_s < 0.005 for point in curve.points)
        assert curve.points[0].mean_s <= curve.points[1].mean_s * (1 + 1e-9)


class Failing:
    """An engine whose model fails on every input."""

    def run(self, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        raise EngineError("Gather: index out of bounds\nat 0x1")


def test_a_model_that_fails_on_valid_inputs_is_named_with_the_reason(repository: Path) -> None:
    listing = read_listing(repository / "linear")
    spec = build_spec(listing, "1", CpuEngine(listing.model_file("1")).ports())
    with pytest.raises(
        RepositoryError, match="linear: fails on a valid batch of 64: Gather: index out of bounds$"
    ):
        measure_profile(Failing(), spec, 1)
