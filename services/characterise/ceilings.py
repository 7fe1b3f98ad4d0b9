"""What this machine can do at best: memory bandwidth, streamed and row by row, and multiply-accumulates.

Memory is driven by numpy: a maximum over an array (reading), a copy (reading and writing), ``take`` of random rows
of a table far larger than the last-level cache. The table lies in huge pages where the system has them, which is the
ceiling, and in pages of 4 KiB, which is how ONNX Runtime maps the tables of a model. Matrices are driven by ONNX
Runtime's own MatMul of two sizes with constant weights, one thread a core, as the models run. Each figure is the best
of REPEATS.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from services.rank.cpu import session_options

ROW_BYTES = (64, 128, 256, 512)
TABLE_BYTES = 512 << 20
MATRICES = (512, 1024)
REPEATS = 7
_AT_ONCE_BYTES = 1 << 19
"""Rows of one ``take``: its result stays in the cache, as a batch's does."""
_TAKES = 100


@dataclass(frozen=True)
class GatherRate:
    """Bytes of random rows of ``row_bytes`` read in a second: at best, and from a table in pages of 4 KiB."""

    row_bytes: int
    bytes_per_s: float
    small_pages_bytes_per_s: float


@dataclass(frozen=True)
class Ceilings:
    """The best of ``cores`` cores at once, all together. Rates are bytes or floating-point operations a second."""

    cores: int
    read_bytes_per_s: float
    copy_bytes_per_s: float
    gather: tuple[GatherRate, ...]
    flops_per_s: float

    @property
    def stream_bytes_per_s(self) -> float:
        """The better of reading and copying."""
        return max(self.read_bytes_per_s, self.copy_bytes_per_s)

    def gather_bytes_per_s(self, row_bytes: float) -> float:
        """Return the rate for rows of so many bytes, by straight lines between the logarithms of those measured."""
        return self._rate(row_bytes, [rate.bytes_per_s for rate in self.gather])

    def small_pages_bytes_per_s(self, row_bytes: float) -> float:
        """Return the same rate from a table in pages of 4 KiB."""
        return self._rate(row_bytes, [rate.small_pages_bytes_per_s for rate in self.gather])

    def _rate(self, row_bytes: float, rates: list[float]) -> float:
        known = np.log([rate.row_bytes for rate in self.gather])
        return float(np.interp(np.log(max(1.0, row_bytes)), known, rates))


def measure_ceilings(
    cores: int,
    *,
    table_bytes: int = TABLE_BYTES,
    matrices: Sequence[int] = MATRICES,
    repeats: int = REPEATS,
    progress: Callable[[str], None] = lambda _: None,
) -> Ceilings:
    """Measure this machine on so many cores at once. Takes some seconds and twice ``table_bytes`` of memory."""
    progress("stream")
    read, copy = (_stream(cores, table_bytes, repeats, kind) for kind in ("read", "copy"))
    progress("rows")
    huge, small = (_table(table_bytes, advice) for advice in ("MADV_HUGEPAGE", "MADV_NOHUGEPAGE"))
    gather = tuple(
        GatherRate(row_bytes, *(_gather(cores, table, row_bytes, repeats) for table in (huge, small)))
        for row_bytes in ROW_BYTES
    )
    progress("matrices")
    flops_per_s = max(_matrix(cores, size, repeats) for size in matrices)
    return Ceilings(cores, read, copy, gather, flops_per_s)


def _stream(cores: int, table_bytes: int, repeats: int, kind: str) -> float:
    each = table_bytes // (2 * cores)

    def prepare(_: int) -> Callable[[], object]:
        source, target = np.ones(each // 4, np.float32), np.ones(each // 4, np.float32)
        return source.max if kind == "read" else lambda: np.copyto(target, source)

    moved = each * (1 if kind == "read" else 2)
    return cores * moved / _best_s(cores, prepare, repeats)


def _table(table_bytes: int, advice: str) -> NDArray[np.float32]:
    memory = mmap.mmap(-1, table_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, advice):
        with contextlib.suppress(OSError):  # a kernel without huge pages: both tables are then alike
            memory.madvise(getattr(mmap, advice))
    table = np.frombuffer(memory, np.float32)
    table[:] = 1.0
    return table


def _gather(cores: int, table: NDArray[np.float32], row_bytes: int, repeats: int) -> float:
    rows = table.reshape(-1, row_bytes // 4)
    count = _AT_ONCE_BYTES // row_bytes

    def prepare(core: int) -> Callable[[], object]:
        rng = np.random.default_rng([row_bytes, core])
        drawn = [rng.integers(0, len(rows), (_TAKES, count)) for _ in range(repeats + 1)]
        target = np.empty((count, row_bytes // 4), np.float32)

        def take() -> None:
            # "raise" would gather into a buffer first; ids that were used once sit in the cache.
            for ids in drawn.pop():
                np.take(rows, ids, axis=0, out=target, mode="clip")

        return take

    return cores * _TAKES * count * row_bytes / _best_s(cores, prepare, repeats)


def _matrix(cores: int, size: int, repeats: int) -> float:
    session = ort.InferenceSession(_product(size), session_options(), providers=["CPUExecutionProvider"])

    def prepare(core: int) -> Callable[[], object]:
        left = np.random.default_rng(core).random((size, size), dtype=np.float32)
        return lambda: session.run(None, {"left": left})

    return cores * 2.0 * size**3 / _best_s(cores, prepare, repeats)


def _product(size: int) -> bytes:
    """Return a model that multiplies its input [N, size] by constant weights."""
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415 (an extra)

    weights = np.random.default_rng(0).random((size, size), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "weights"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", TensorProto.FLOAT, ["n", size])],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, ["n", size])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def _best_s(cores: int, prepare: Callable[[int], Callable[[], object]], repeats: int) -> float:
    """Return the quickest of the repeats, each as long as its slowest core; the first run of each is left out."""
    together = threading.Barrier(cores)
    seconds = np.zeros((repeats, cores))

    def work(core: int) -> None:
        deed = prepare(core)
        deed()
        for repeat in range(repeats):
            together.wait()
            started_s = time.perf_counter()
            deed()
            seconds[repeat, core] = time.perf_counter() - started_s

    threads = [threading.Thread(target=work, args=(core,)) for core in range(cores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return float(seconds.max(axis=1).min())
