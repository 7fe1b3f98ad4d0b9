"""The commands of `rank` and `triton` in docker-compose.yml, started as they stand as local processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tritonclient import grpc as triton_client

from deeprecsys import RankClient
from services.cli.server_process import server_process
from services.triton_server.process import TritonProcess
from tests.conftest import LINEAR_CONFIG, linear_model, linear_scores, write_model
from tests.triton.offloading_rig import query

pytestmark = [pytest.mark.triton, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))[
    "services"
]
LIMIT_S = 20.0


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    place = tmp_path / "repository"
    write_model(place, "linear", linear_model(), LINEAR_CONFIG)
    return place


def triton_by_compose(launcher: Path, repository: Path) -> TritonProcess:
    program, *flags = SERVICES["triton"]["command"]
    assert program == "tritonserver"
    flags.remove("--model-repository=/models")
    flags.remove("--model-control-mode=explicit")
    return TritonProcess(launcher, repository, mode="explicit", flags=flags)


def rank_by_compose(repository: Path, state: Path, triton: str) -> list[str]:
    """What follows `deeprecsys serve`, with the places of this machine for those of a container."""
    places = {
        "/models": repository,
        "/state": state,
        "0.0.0.0": "127.0.0.1",
        "triton:8001": triton,
        "8501": "0",
    }
    program, command, *arguments = SERVICES["rank"]["command"]
    assert (program, command) == ("deeprecsys", "serve")
    assert set(places) <= set(arguments)
    return [*(str(places.get(argument, argument)) for argument in arguments), "--warmup-s", "0.02"]


def check_scores(target: str) -> None:
    with RankClient(target, timeout_s=LIMIT_S) as client:
        inputs = query(20)
        answer = client.rank("linear", inputs)
    expected = linear_scores(inputs["dense"], inputs["ids"])
    assert abs(answer.scores.reshape(-1) - expected).max() < 1e-5


def test_rank_finds_triton_loads_its_models_there_and_is_healthy(
    launcher: Path, repository: Path, tmp_path: Path
) -> None:
    with triton_by_compose(launcher, repository) as triton:
        arguments = rank_by_compose(repository, tmp_path / "state", triton.target)
        with server_process(repository, arguments) as (_, target):
            check_scores(target)
            healthcheck = [sys.executable, str(ROOT / "deploy" / "healthcheck.py"), target]
            subprocess.run(healthcheck, check=True, timeout=LIMIT_S)
            wait_until_loaded(triton.target)


def wait_until_loaded(target: str) -> None:
    latest = time.monotonic() + LIMIT_S
    with triton_client.InferenceServerClient(target) as client:
        while not client.is_model_ready("linear", client_timeout=LIMIT_S):
            assert time.monotonic() < latest
            time.sleep(0.05)


def test_rank_serves_where_the_name_of_triton_does_not_resolve(repository: Path, tmp_path: Path) -> None:
    arguments = rank_by_compose(repository, tmp_path / "state", "no-such-host.invalid:8001")
    with server_process(repository, arguments) as (_, target):
        check_scores(target)
