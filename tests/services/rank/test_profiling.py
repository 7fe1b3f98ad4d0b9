"""A profile is what was measured, and survives its file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scheduler.latency import LatencyProfile
from services.rank.cpu import CpuEngine
from services.rank.profiling import measure_profile
from services.rank.repository import build_spec, read_listing
from tests.services.rank.test_server_life import cli


class Counting:
    """A real engine that notes the candidates of every run."""

    def __init__(self, engine: CpuEngine) -> None:
        self._engine = engine
        self.ran: list[int] = []

    def run(self, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        self.ran.append(len(inputs["dense"]))
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


@pytest.mark.slow
def test_the_command_writes_a_profile_that_can_be_read_back(repository: Path, tmp_path: Path) -> None:
    arguments = ("--repository", str(repository), "--output", str(tmp_path / "p"), "--seconds", "0.01")
    done = cli("profile", "linear", *arguments)
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "p" / "linear.json").read_text())
    assert data.pop("machine")["cores"] >= 1
    assert LatencyProfile.from_dict(data).model == "linear"
    assert "us/candidate" in done.stdout
    wrong = cli("profile", "nope", *arguments)
    assert wrong.returncode == 2
    assert "has no model nope; it has linear, two_task" in wrong.stderr
