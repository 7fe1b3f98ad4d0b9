"""The check that a model passes before it is published: it computes the right thing, and we would notice if not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from deeprecsys.errors import ExportError
from services.models.candidates import Arrays, Scorer, random_candidates, random_ids
from services.models.spec import DENSE_INPUT, SCORE_OUTPUT, ModelSpec

BATCH_SIZES = (1, 7, 256)
MAX_ERROR = 1e-5
MIN_SCORE_STD = 0.05
MIN_REDRAW_MOVE = 0.005
REDRAW_CANDIDATES = 32

_RUNTIME_FAULTS: tuple[type[Exception], ...] = (
    RuntimeError,
    MemoryError,
    *(kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
"""What ONNX Runtime raises: its own classes have no common one."""


@dataclass(frozen=True)
class Parity:
    """What the check measured; all in units of a score.

    ``max_error``: the largest difference between ONNX Runtime and torch. ``score_std``: the smallest deviation
    of any task's scores over random candidates. ``smallest_redraw_move``: how far the least influential table
    moves a score when its ids are drawn anew. ``rolled_error``: the difference seen when every candidate gets
    its neighbour's ids, which has to be large for the parity to mean anything.
    """

    max_error: float
    score_std: float
    smallest_redraw_move: float
    rolled_error: float


@dataclass(frozen=True)
class Reference:
    """Inputs and the outputs that torch gave for them."""

    inputs: Arrays
    outputs: Mapping[str, NDArray[np.float32]]


def references(spec: ModelSpec, score: Scorer, rng: np.random.Generator) -> tuple[Reference, ...]:
    """Score fresh random candidates with ``score``, once for each of BATCH_SIZES."""
    drawn = [random_candidates(spec, size, rng) for size in BATCH_SIZES]
    return tuple(Reference(inputs, score(inputs)) for inputs in drawn)


def check(spec: ModelSpec, path: Path, expected: tuple[Reference, ...], rng: np.random.Generator) -> Parity:
    """Check the ONNX file at ``path`` against ``expected``; raises ExportError if it must not be published."""
    largest = expected[-1]
    found = {name: array.shape[1:] for name, array in largest.outputs.items()}
    if found != spec.outputs:
        raise ExportError(f"{spec.slug}: not published: outputs are {found}, not {dict(spec.outputs)}")
    with _runtime_faults(spec.slug):
        score = onnx_scorer(path)
        parity = Parity(
            max_error=max(_error(score(reference.inputs), reference.outputs) for reference in expected),
            score_std=float(largest.outputs[SCORE_OUTPUT].std(axis=0).min()),
            smallest_redraw_move=min(_redraw_moves(spec, score, largest.inputs, rng)),
            rolled_error=_error(score(_rolled(largest.inputs)), largest.outputs),
        )
    rules = (
        (parity.max_error <= MAX_ERROR, f"ONNX Runtime and torch differ by {parity.max_error:.2g}"),
        (parity.score_std >= MIN_SCORE_STD, f"scores spread by only {parity.score_std:.2g}"),
        (
            parity.smallest_redraw_move >= MIN_REDRAW_MOVE,
            f"a table moves no score by more than {parity.smallest_redraw_move:.2g}",
        ),
        (parity.rolled_error > MAX_ERROR, "candidates with each other's ids pass the check"),
    )
    for holds, problem in rules:
        if not holds:  # a NaN fails here as well
            raise ExportError(f"{spec.slug}: not published: {problem}")
    return parity


@contextmanager
def _runtime_faults(slug: str) -> Iterator[None]:
    try:
        yield
    except _RUNTIME_FAULTS as error:
        raise ExportError(
            f"{slug}: not published: ONNX Runtime cannot run it: {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def onnx_scorer(path: Path) -> Scorer:
    """Open ``path`` in ONNX Runtime on one thread and return it as a function of its inputs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _error(found: Mapping[str, NDArray[np.float32]], wanted: Mapping[str, NDArray[np.float32]]) -> float:
    """Return the largest difference over all outputs; infinite if they differ in name or shape."""
    if {name: array.shape for name, array in found.items()} != {
        name: array.shape for name, array in wanted.items()
    }:
        return float("inf")
    return max(float(np.abs(found[name] - wanted[name]).max()) for name in wanted)


def _redraw_moves(spec: ModelSpec, score: Scorer, inputs: Arrays, rng: np.random.Generator) -> list[float]:
    """Return for each table the farthest that redrawing its ids moves a score."""
    few = {name: array[:REDRAW_CANDIDATES] for name, array in inputs.items()}
    before = score(few)[SCORE_OUTPUT]
    moves = []
    for group in spec.groups:
        fresh = random_ids(group, REDRAW_CANDIDATES, rng)
        for table in range(group.tables):
            ids = few[group.input].copy()
            column = (slice(None), table) if "tables" in group.axes else (slice(None),)
            ids[column] = fresh[column]
            after = score({**few, group.input: ids})[SCORE_OUTPUT]
            moves.append(float(np.abs(after - before).max()))
    return moves


def _rolled(inputs: Arrays) -> dict[str, NDArray[np.generic]]:
    return {
        name: array if name == DENSE_INPUT else np.roll(array, 1, axis=0) for name, array in inputs.items()
    }
