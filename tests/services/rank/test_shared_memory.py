"""Shared memory: blocks never overlap, nothing is lost, and what killed owners leave behind is removed."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprecsys.errors import InvalidSettingError
from services.rank.shared_memory import ALIGNMENT, PREFIX, Arena, Region, aligned, is_orphan, sweep

SIZE = 1 << 12

OWNER = """
import sys, pathlib, time
from services.rank.shared_memory import Region
region = Region(4096, pathlib.Path(sys.argv[1]))
print(region.key, flush=True)
time.sleep(60)
"""


@given(st.lists(st.one_of(st.integers(1, SIZE), st.integers(-20, -1)), max_size=60))
def test_blocks_are_aligned_and_never_overlap_and_all_that_is_given_back_is_whole_again(steps) -> None:
    arena, blocks = Arena(SIZE), {}
    for step in steps:
        if step > 0:
            offset = arena.take(step)
            if offset is not None:
                assert offset % ALIGNMENT == 0
                assert offset + step <= SIZE
                assert all(offset + step <= b or b + n <= offset for b, n in blocks.items())
                blocks[offset] = step
        elif blocks:
            offset = sorted(blocks)[step % len(blocks)]
            arena.give(offset)
            del blocks[offset]
        assert arena.free_bytes == SIZE - sum(map(aligned, blocks.values()))
    for offset in blocks:
        arena.give(offset)
    assert arena.take(SIZE) == 0


def test_where_nothing_fits_nothing_is_taken() -> None:
    arena = Arena(256)
    assert [arena.take(64) for _ in range(5)] == [0, 64, 128, 192, None]
    arena.give(0)
    arena.give(128)
    assert arena.take(65) is None  # 128 bytes are free, in two pieces
    arena.give(64)
    assert arena.take(192) == 0


def test_a_block_is_given_back_once() -> None:
    arena = Arena(256)
    offset = arena.take(10)
    assert offset is not None
    arena.give(offset)
    with pytest.raises(KeyError):
        arena.give(offset)


def test_another_process_sees_what_is_written(tmp_path: Path) -> None:
    region = Region(SIZE, tmp_path)
    region.data[:3] = [1, 2, 3]
    with (tmp_path / region.key).open("rb") as file:
        assert bytes(mmap.mmap(file.fileno(), 3, prot=mmap.PROT_READ)) == b"\1\2\3"
    region.close()
    assert list(tmp_path.iterdir()) == []
    assert np.array_equal(region.data[:3], [1, 2, 3])  # what still maps it keeps it


def test_the_region_of_a_killed_owner_is_removed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        key = owner.stdout.readline().strip()
        assert key.startswith(PREFIX)
        sweep(tmp_path)
        assert (tmp_path / key).exists()
        assert not is_orphan(key, tmp_path)
        os.kill(owner.pid, signal.SIGKILL)
    assert is_orphan(key, tmp_path)
    assert (tmp_path / key).exists()
    Region(SIZE, tmp_path).close()  # the next owner sweeps
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [1 << 60, 1 << 64])
def test_sizes_beyond_all_memory_are_refused_and_leave_nothing(tmp_path: Path, size: int) -> None:
    with pytest.raises(InvalidSettingError, match="--triton-shared-memory must be lower"):
        Region(size, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_an_owner_left_that_was_killed_before_it_was_ready_is_removed(tmp_path: Path) -> None:
    (tmp_path / f".{PREFIX}0").write_bytes(b"half")
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
