"""The cores that a container really gives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.cores import usable_cores

V1 = "4:memory:/box\n1:cpu,cpuacct:/box/inner\n0::/\n"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


class Machine:
    """A tree of control groups and the file that says where this process is in it."""

    def __init__(self, place: Path) -> None:
        self.cgroups, self.membership = place / "cgroup", place / "membership"

    def member_of(self, text: str) -> Machine:
        self.membership.write_text(text)
        return self

    def v2(self, group: str, text: str) -> Machine:
        return self._write(Path(group) / "cpu.max", text)

    def v1(self, mount: str, group: str, quota: int) -> Machine:
        self._write(Path(mount, group, "cpu.cfs_period_us"), "100000\n")
        return self._write(Path(mount, group, "cpu.cfs_quota_us"), f"{quota}\n")

    def _write(self, name: Path, text: str) -> Machine:
        path = self.cgroups / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return self

    def cores(self) -> int:
        return usable_cores(self.cgroups, self.membership)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_a_quota_the_affinity_decides(machine: Machine) -> None:
    assert machine.cores() == 8
    assert machine.member_of("0::/box\n").v2("box", "max 100000\n").cores() == 8
    assert machine.member_of(V1).v1("cpu", "box/inner", -1).cores() == 8


@pytest.mark.parametrize(
    ("quota", "cores"), [("250000 100000", 3), ("5000 100000", 1), ("9900000 100000", 8)]
)
def test_a_quota_of_the_process_own_group_is_respected(quota: str, cores: int, machine: Machine) -> None:
    assert machine.member_of("0::/system.slice/deeprecsys.service\n").cores() == 8
    assert machine.v2("system.slice/deeprecsys.service", quota).cores() == cores


@pytest.mark.parametrize(("above", "own", "cores"), [(300_000, 500_000, 3), (500_000, 300_000, 3)])
def test_the_tightest_quota_on_the_way_up_counts(above: int, own: int, cores: int, machine: Machine) -> None:
    machine.member_of("0::/a/b\n").v2("a", f"{above} 100000").v2("a/b", f"{own} 100000")
    assert machine.cores() == cores


def test_another_groups_quota_does_not_count(machine: Machine) -> None:
    assert machine.member_of("0::/a\n").v2("b", "100000 100000").v2("a/b", "100000 100000").cores() == 8


def test_a_containers_own_group_is_found_at_the_root(machine: Machine) -> None:
    assert machine.v2("", "250000 100000").cores() == 3
    assert machine.member_of("0::/docker/0123\n").cores() == 3


def test_a_group_outside_of_the_namespace_leaves_the_root(machine: Machine) -> None:
    machine.v2("", "250000 100000").v2("../outside", "100000 100000")
    assert machine.member_of("0::/../outside\n").cores() == 3


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize("group", ["", "box", "box/inner"])
def test_a_cgroup_v1_quota_is_respected(mount: str, group: str, machine: Machine) -> None:
    assert machine.member_of(V1).v1(mount, group, 150_000).cores() == 2


def test_a_cgroup_v1_of_another_controller_does_not_count(machine: Machine) -> None:
    assert machine.member_of("1:cpuset:/box\n").v1("cpu", "box", 150_000).cores() == 8
