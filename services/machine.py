"""What a measurement was taken on: the machine and the versions that a figure is worth nothing without."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from services.cores import usable_cores

_PACKAGES = ("deeprecsys", "grpcio", "numpy", "onnxruntime", "protobuf", "tritonclient")


@dataclass(frozen=True)
class Machine:
    """A machine as a reader of a figure needs to know it.

    ``cores`` are those that this process may use, ``memory_bytes`` the whole machine's; ``versions`` maps package
    names to versions, without the packages that are not installed.
    """

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    versions: dict[str, str]


def describe_machine() -> Machine:
    """Describe the machine that this process runs on."""
    return Machine(
        cpu=_cpu_name(),
        cores=usable_cores(),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions=_versions(),
    )


def _cpu_name() -> str:
    # platform.processor() is empty or just the architecture on Linux.
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
