"""Sweeps: the same rows wherever they run, and none simulated twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from deeprecsys.errors import InvalidSettingError, RepositoryError
from services.fleet.day import whole_days
from services.fleet.fleet_file import Case, read_fleet
from services.fleet.processes import on_processes
from services.fleet.sweep import Row, one_after_the_other, run_case, run_sweep

FLEET = """
peak_qps = 600
[day]
curve = [[0, 0.5], [12, 1.0], [24, 0.5]]
points = 2
warmup_s = 0.2
duration_s = 0.5
within = 0.5
least_rounds = 2
most_rounds = 3
[[models]]
name = "rmc1"
sla_ms = 100
[[nodes]]
kind = "this-machine"
count = 3
[sweep]
batch_size = [32, 256]
"""


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    return read_fleet(path)


def nothing(_done: int, _of: int) -> None:
    pass


class Counting:
    """Runs jobs here, counts them, and may be interrupted before one."""

    def __init__(self, interrupted_at: int | None = None) -> None:
        self.ran = 0
        self.interrupted_at = interrupted_at

    def __call__(self, jobs: Sequence[tuple[Case, int]]) -> Iterator[tuple[int, Row]]:
        for index, row in one_after_the_other(jobs):
            if self.ran == self.interrupted_at:
                raise KeyboardInterrupt
            self.ran += 1
            yield index, row


def test_an_interrupted_sweep_goes_on_where_it_was(cases: list[Case], tmp_path: Path) -> None:
    state = tmp_path / "state.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_sweep(cases, 1, state, Counting(interrupted_at=3), nothing)
    with state.open("a") as file:
        file.write('{"key": "half a li')
    told: list[tuple[int, int]] = []
    going_on = Counting()
    rows = run_sweep(cases, 1, state, going_on, lambda done, of: told.append((done, of)))
    assert going_on.ran == 1
    assert told == [(3, 4), (4, 4)]
    assert rows == run_sweep(cases, 1, tmp_path / "other.jsonl", one_after_the_other, nothing)
    third = Counting()
    assert run_sweep(cases, 1, state, third, nothing) == rows
    assert third.ran == 0


def test_another_seed_is_another_sweep(cases: list[Case], tmp_path: Path) -> None:
    state = tmp_path / "state.jsonl"
    first = run_sweep(cases[:1], 1, state, one_after_the_other, nothing)
    again = Counting()
    assert run_sweep(cases[:1], 2, state, again, nothing) != first
    assert again.ran == 1


def test_a_state_that_cannot_be_written_is_said(cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="choose another with --state"):
        run_sweep(cases[:1], 1, tmp_path / "none" / "state.jsonl", one_after_the_other, nothing)


@pytest.mark.parametrize("content", [b"# Notes\n", b"[1]\n", b'{"key": "k"}\n', b"\xff\xfe\n"])
def test_a_file_that_is_no_state_is_said_and_left_as_it_is(
    cases: list[Case], tmp_path: Path, content: bytes
) -> None:
    state = tmp_path / "notes.txt"
    state.write_bytes(content)
    with pytest.raises(InvalidSettingError, match="notes.txt"):
        run_sweep(cases[:1], 1, state, one_after_the_other, nothing)
    assert state.read_bytes() == content


@pytest.mark.slow
def test_processes_give_the_rows_that_one_process_gives(cases: list[Case]) -> None:
    jobs = [(case, 7) for case in cases]
    assert dict(on_processes(2)(jobs)) == dict(on_processes(1)(jobs))
    assert list(on_processes(2)([])) == []


def test_a_row_says_what_was_simulated_and_how_well_it_is_known(cases: list[Case]) -> None:
    row = json.loads(json.dumps(run_case(cases[1], 1)))
    assert row["labels"] == {"batch_size": 32}
    assert row["qps"] == pytest.approx(600.0, rel=1e-3)
    assert row["rounds"] in (2, 3)
    assert row["origins"] == ["measured"]
    seen = row["models"]["rmc1"]
    assert seen["queries"] == row["queries"] == pytest.approx(300 * row["rounds"], rel=0.2)
    assert seen["p50_ms"] < seen["p95_ms"] < seen["p99_ms"]
    assert seen["met"]
    assert row["watts"] == pytest.approx(3 * (5.6 + 8.4 * row["busy"]), rel=1e-6)


def test_a_day_weighs_its_parts_by_their_rates(cases: list[Case]) -> None:
    night, noon = (run_case(case, 1) for case in cases[:2])
    (day,) = whole_days([night, noon])
    assert day["qps"] == pytest.approx(450, rel=1e-3)
    assert (day["parts"], day["models"]["rmc1"]["parts_met"]) == (2, 2)
    p95 = [row["models"]["rmc1"]["p95_ms"] for row in (night, noon)]
    assert min(p95) <= day["models"]["rmc1"]["p95_ms"] <= max(p95)
    noon["models"]["rmc1"]["failed"] = noon["models"]["rmc1"]["queries"]
    (day,) = whole_days([night, noon])
    assert day["models"]["rmc1"]["failed_share"] == pytest.approx(2 / 3, rel=1e-3)


def test_each_setting_of_a_sweep_is_a_day_of_its_own(cases: list[Case]) -> None:
    days = whole_days([run_case(case, 1) for case in cases])
    assert [day["labels"]["batch_size"] for day in days] == [32, 256]
