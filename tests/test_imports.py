"""Who may import whom: the table of ARCHITECTURE.md, held by reading every import of every module."""

from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FORBIDDEN = {
    "scheduler": {
        "services",
        "deeprecsys",
        "asyncio",
        "time",
        "threading",
        "multiprocessing",
        "grpc",
        "onnxruntime",
        "tritonclient",
        "prometheus_client",
        "torch",
        "pydantic",
        "ray",
    },
    "deeprecsys": {"services", "scheduler", "onnxruntime", "tritonclient", "torch"},
    "services/rank": {
        "services.characterise",
        "services.loadgen",
        "services.models",
        "services.cli",
        "torch",
        "onnx",
    },
    "services/loadgen": {"services.rank", "services.models", "services.cli", "torch", "onnx", "onnxruntime"},
    "services/models": {"services.rank", "services.loadgen", "services.cli", "grpc"},
    "services/characterise": {"services.loadgen", "services.models", "services.cli", "torch", "grpc"},
    "services/fleet": {
        "services.rank",
        "services.loadgen",
        "services.models",
        "services.cli",
        "grpc",
        "onnxruntime",
    },
    "services/report": {
        "services.rank",
        "services.loadgen",
        "services.models",
        "services.cli",
        "torch",
        "onnx",
        "grpc",
    },
    "services/cli": {"torch", "onnx", "onnxruntime"},
    "services/triton_server": {
        "services.rank",
        "services.loadgen",
        "services.models",
        "services.cli",
        "torch",
        "onnx",
        "tritonclient",
    },
}
ONLY_HERE = {
    "ddsketch": ("scheduler/sketch.py",),
    "ray": ("services/fleet/on_ray.py",),
    "torch": ("services/models/",),
    "mlperf_loadgen": ("services/loadgen/mlperf_process.py",),
    "onnxruntime": (
        "services/rank/cpu.py",
        "services/models/parity.py",
        "services/characterise/",
        "services/triton_server/onnxruntime_backend/",
    ),
    "prometheus_client": (
        "services/rank/metrics.py",
        "services/rank/state_metrics.py",
        "services/rank/http_pages.py",
    ),
    "matplotlib": ("services/report/",),
    "jinja2": ("services/report/page.py",),
    "tritonclient": (
        "services/rank/repository.py",
        "services/rank/triton_",
        "services/models/triton_config.py",
    ),
}


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def touches(names: set[str], target: str) -> bool:
    return any(name == target or name.startswith(f"{target}.") for name in names)


@pytest.mark.parametrize("room", FORBIDDEN)
def test_each_room_keeps_to_its_imports(room: str) -> None:
    found = modules(room)
    assert found
    wrong = [
        f"{path.relative_to(ROOT)} imports {target}"
        for path in found
        for target in FORBIDDEN[room]
        if touches(imported(path), target)
    ]
    assert not wrong


@pytest.mark.parametrize("library", ONLY_HERE)
def test_heavy_libraries_stay_in_their_files(library: str) -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for room in ("scheduler", "services", "deeprecsys")
        for path in modules(room)
        if touches(imported(path), library)
    }
    assert users
    assert all(user.startswith(ONLY_HERE[library]) for user in users), users


def test_the_generic_import_names_belong_to_this_distribution_alone() -> None:
    owners = importlib.metadata.packages_distributions()
    for name in ("deeprecsys", "scheduler", "services"):
        assert set(owners.get(name, ["deeprecsys"])) == {"deeprecsys"}
