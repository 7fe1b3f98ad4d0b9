"""System shared memory, in which a server on the same host reads tensors where this process wrote them.

A region is a file under /dev/shm that its owner holds a lock on: what a killed owner leaves behind has no lock, and is
removed by the next one that comes.
"""

from __future__ import annotations

import bisect
import fcntl
import mmap
import os
import secrets
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deeprecsys.errors import InvalidSettingError

PLACE = Path("/dev/shm")  # noqa: S108 - where Linux keeps what shm_open opens
PREFIX = "deeprecsys_rank_"
ALIGNMENT = 64
"""Blocks begin at multiples of this, and tensors within them: a cache line."""


def aligned(count: int) -> int:
    """Return the bytes that so many take up when what follows is aligned."""
    return -(-count // ALIGNMENT) * ALIGNMENT


class Arena:
    """Which parts of so many bytes are free: the first that fits is taken, neighbours join when they are given back."""

    def __init__(self, size_bytes: int) -> None:
        self._free: list[tuple[int, int]] = [(0, size_bytes)]  # begin and end, in order, never touching
        self._taken: dict[int, int] = {}

    @property
    def free_bytes(self) -> int:
        """The bytes that nobody has; not necessarily in one piece."""
        return sum(end - begin for begin, end in self._free)

    def take(self, count: int) -> int | None:
        """Return the offset of so many bytes, aligned; None when there is no such piece."""
        wanted = aligned(count)
        for index, (begin, end) in enumerate(self._free):
            if end - begin >= wanted:
                self._free[index : index + 1] = [(begin + wanted, end)] if begin + wanted < end else []
                self._taken[begin] = begin + wanted
                return begin
        return None

    def give(self, offset: int) -> None:
        """Take back what begins at ``offset``; KeyError when nothing does."""
        begin, end = offset, self._taken.pop(offset)
        index = bisect.bisect(self._free, (begin, end))
        if index < len(self._free) and self._free[index][0] == end:
            end = self._free.pop(index)[1]
        if index and self._free[index - 1][1] == begin:
            index -= 1
            begin = self._free.pop(index)[0]
        self._free.insert(index, (begin, end))


class Region:
    """Memory of ``size_bytes`` that other processes can map under ``key``; ``data`` is it as bytes.

    Raises InvalidSettingError when there is not so much: the bytes are reserved, since writing to memory that is not
    there would kill the process.
    """

    def __init__(self, size_bytes: int, place: Path = PLACE) -> None:
        sweep(place)
        self.key = f"{PREFIX}{secrets.token_hex(8)}"
        self.size_bytes = size_bytes
        self._path = place / self.key
        unlocked = place / f".{self.key}"  # nobody is told of it before it is locked and whole
        self._file = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(self._file, 0, size_bytes)
            self._map = mmap.mmap(self._file, size_bytes)
            unlocked.rename(self._path)
        except (OSError, OverflowError) as error:
            unlocked.unlink(missing_ok=True)
            os.close(self._file)
            raise InvalidSettingError(
                f"cannot have {size_bytes} bytes of shared memory in {place}: {error}; "
                "--triton-shared-memory must be lower, or what may be there higher"
            ) from error
        self.data: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)

    def close(self) -> None:
        """Remove the name; the memory goes when the last that maps it lets go."""
        with suppress(FileNotFoundError):
            self._path.unlink()
        os.close(self._file)


def is_orphan(key: str, place: Path = PLACE) -> bool:
    """Return whether nobody holds the region of this key any more."""
    try:
        file = os.open(place / key, os.O_RDWR)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # another user's
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def sweep(place: Path = PLACE) -> None:
    """Remove the regions that killed owners left behind."""
    for path in (*place.glob(f"{PREFIX}*"), *place.glob(f".{PREFIX}*")):
        if is_orphan(path.name, place):
            path.unlink(missing_ok=True)
