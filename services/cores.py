"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Return the cores allowed by the affinity mask and by every CPU quota over this process, at least 1.

    ``cgroups``: where the control groups are mounted. ``membership``: the file that says which one this process is
    in. A quota of a group above it counts as well; both versions of control groups are read.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quotas = [quota for quota in _quotas(cgroups, membership) if quota is not None]
    return max(1, min([affinity, *(math.ceil(quota) for quota in quotas)]))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float | None]:
    # The roots are read without being asked for: in a container that has no namespace of its own for control
    # groups the paths are the host's, and the container's own group is mounted at the root.
    unified, cpu, mounts = "/", "/", {"cpu"}
    for line in _read(membership).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            unified = path
        elif "cpu" in controllers.split(","):
            cpu = path
            mounts.add(controllers)
    for group in _up_from(unified):
        yield _quota_v2(cgroups / group / "cpu.max")
    for mount in mounts:
        for group in _up_from(cpu):
            yield _quota_v1(cgroups / mount / group)


def _up_from(path: str) -> Iterator[PurePosixPath]:
    """Yield the group and those above it, the root last, relative to the root; only the root for one outside."""
    group = PurePosixPath(path.lstrip("/"))
    if ".." not in group.parts:
        yield group
        yield from group.parents
    else:
        yield PurePosixPath()


def _quota_v2(path: Path) -> float | None:
    fields = _read(path).split()
    if len(fields) != 2 or fields[0] == "max":
        return None
    return int(fields[0]) / int(fields[1])


def _quota_v1(directory: Path) -> float | None:
    quota, period = _read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")
    if not quota or not period or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
