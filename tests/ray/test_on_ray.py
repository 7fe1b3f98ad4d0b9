"""A sweep on a real Ray cluster of several nodes, all on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from deeprecsys.errors import UnavailableError
from services.fleet.fleet_file import Case, read_fleet
from services.fleet.on_ray import on_ray
from services.fleet.sweep import run_case, run_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("default")]

FLEET = """
peak_qps = 600
[day]
trough = 0.5
points = 6
warmup_s = 0.2
duration_s = 1
least_rounds = 2
most_rounds = 2
[[models]]
name = "rmc1"
sla_ms = 100
[[nodes]]
kind = "this-machine"
count = 3
"""
MEMORY_BYTES = 100 * 2**20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": MEMORY_BYTES}
    made = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=MEMORY_BYTES)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    return path


@pytest.fixture
def cases(path: Path) -> list[Case]:
    return read_fleet(path)


def test_a_cluster_gives_the_rows_that_this_process_gives(cluster: Cluster, cases: list[Case]) -> None:
    rows = dict(on_ray(cluster.address)([(case, 5) for case in cases]))
    assert rows == {index: run_case(case, 5) for index, case in enumerate(cases)}
    assert not ray.is_initialized()


def test_a_sweep_on_a_cluster_keeps_its_rows_and_goes_on(
    cluster: Cluster, cases: list[Case], tmp_path: Path
) -> None:
    state = tmp_path / "state.jsonl"
    first = run_sweep(cases[:2], 5, state, on_ray(cluster.address), lambda *_: None)
    assert len(state.read_text().splitlines()) == 2
    rows = run_sweep(cases, 5, state, on_ray(cluster.address), lambda *_: None)
    assert rows[:2] == first
    assert len(state.read_text().splitlines()) == 6


def test_the_command_runs_on_a_cluster(cluster: Cluster, path: Path) -> None:
    code = "from services.cli.app import main; main()"
    arguments = [sys.executable, "-c", code, "simulate", str(path), "--ray", cluster.address]
    arguments += ["--state", str(path.with_suffix(".jsonl"))]
    run = subprocess.run(
        arguments, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "SIMULATED, 3 nodes, kinds measured" in run.stdout


def test_a_cluster_that_is_not_there_is_said(cases: list[Case]) -> None:
    with pytest.raises(UnavailableError, match="no Ray cluster at 127.0.0.1:1"):
        next(on_ray("127.0.0.1:1")([(cases[0], 1)]))
