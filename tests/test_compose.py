"""docker-compose.yml and the Dockerfile, without an engine: valid, safe, and their commands run as processes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from services.cli.app import app
from services.cli.server_process import server_process

ROOT = Path(__file__).parents[1]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))[
    "services"
]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
HEALTHCHECK = ROOT / "deploy" / "healthcheck.py"


def compose() -> list[str]:
    """The command of compose from version 2 on, or a skip: version 1 refuses a file with a name."""
    for command in (["docker-compose"], ["docker", "compose"]):
        if shutil.which(command[0]):
            shown = subprocess.run(
                [*command, "version", "--short"], capture_output=True, text=True, check=False
            )
            if shown.returncode == 0 and re.match(r"v?[2-9]", shown.stdout):
                return command
    pytest.skip("no docker-compose of version 2 is installed")


@pytest.mark.parametrize("profiles", [(), ("gpu",), ("load",), ("gpu", "load")])
def test_the_file_is_valid_for_compose(profiles: tuple[str, ...]) -> None:
    chosen = [f"--profile={profile}" for profile in profiles]
    command = [*compose(), "-f", "docker-compose.yml", *chosen, "config", "--services"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    asked_for = {
        name for name, service in SERVICES.items() if set(service.get("profiles", [])) & set(profiles)
    }
    assert set(run.stdout.split()) == {"export", "rank", "prometheus", "grafana"} | asked_for


def test_what_needs_a_gpu_or_makes_load_is_asked_for_by_a_profile() -> None:
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {"triton": ["gpu"], "load": ["load"]}


def test_nothing_is_published_beyond_loopback() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_only_the_export_may_write_models() -> None:
    mounts = {
        name: [volume for volume in service.get("volumes", []) if volume.startswith("models:")]
        for name, service in SERVICES.items()
    }
    assert {name: found for name, found in mounts.items() if found} == {
        "export": ["models:/models"],
        "rank": ["models:/models:ro"],
        "triton": ["models:/models:ro"],
    }
    assert SERVICES["rank"]["read_only"] is True


def test_every_image_from_elsewhere_has_a_tag() -> None:
    images = [service["image"] for service in SERVICES.values() if "deeprecsys" not in service["image"]]
    images += [image for image in re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE) if ":" in image]
    assert len(images) >= 4
    for image in images:
        assert re.search(r":v?\d", image), image


def test_triton_gets_shared_memory_limits_and_a_healthcheck() -> None:
    triton = SERVICES["triton"]
    assert triton["shm_size"]
    assert set(triton["ulimits"]) == {"memlock", "stack"}
    assert triton["healthcheck"]["test"][-1].endswith(":8000/v2/health/ready")


def test_nobody_waits_for_triton() -> None:
    assert not any("triton" in service.get("depends_on", {}) for service in SERVICES.values())


@pytest.mark.parametrize("name", ["export", "rank", "load"])
def test_a_command_is_one_that_the_command_line_takes(name: str) -> None:
    program, command, *arguments = SERVICES[name]["command"]
    assert program == "deeprecsys"
    commands: Any = typer.main.get_command(app)
    context = commands.commands[command].make_context(command, list(arguments))
    assert not context.args


def test_the_image_that_serves_is_the_last_has_no_torch_and_no_root() -> None:
    stages = {
        found[1]: found
        for found in re.finditer(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S)
    }
    assert list(stages)[-1] == "rank"
    assert "[export]" not in stages["build"][2] + stages["runtime"][2] + stages["rank"][2]
    assert "--from=build " in stages["rank"][2]
    assert "--from=build-export " in stages["export"][2]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", stages["runtime"][2], re.MULTILINE)
    assert "HEALTHCHECK" in stages["rank"][2]


def test_every_file_that_the_image_is_built_from_is_let_through() -> None:
    let_through = [
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    ]
    assert all((ROOT / path).exists() for path in let_through)
    assert {"pyproject.toml", "constraints.txt", "deploy/healthcheck.py", "services"} <= set(let_through)


def health(target: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HEALTHCHECK), target]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_the_healthcheck_tells_a_serving_server_from_none(repository: Path) -> None:
    with server_process(repository, ["--warmup-s", "0.02"]) as (_, target):
        assert health(target).returncode == 0
    gone = health(target)
    assert gone.returncode == 1
    assert "UNAVAILABLE" in gone.stderr


def test_the_scrape_config_names_services_of_the_file() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    targets = [
        target
        for job in config["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    ]
    assert {target.partition(":")[0] for target in targets} <= {*SERVICES, "localhost"}
