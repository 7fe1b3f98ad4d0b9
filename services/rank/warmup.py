"""Warm-up: a model's first batches, timed, so that the scheduler starts from this machine and not from a guess."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deeprecsys.errors import RepositoryError
from deeprecsys.tensors import Array
from services.rank.engine import Engine, EngineError
from services.rank.model import InputSpec, ModelSpec

LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
MIN_ROUNDS, MAX_ROUNDS = 3, 40
"""Sizes are timed in rounds, and the fastest of each counts: whatever disturbs a run only makes it slower."""


@dataclass(frozen=True, slots=True)
class Timing:
    """CPU seconds of one batch of each size, on one thread with fresh inputs."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]


def warm_up(engine: Engine, spec: ModelSpec, budget_s: float) -> Timing:
    """Time batches of each size of the ladder, in rounds, for about ``budget_s`` but at least MIN_ROUNDS.

    A size that takes longer than the target ends the ladder. Raises RepositoryError when the model fails on valid
    inputs or does not return one row per candidate.
    """
    rng = np.random.default_rng(0)
    sizes = [size for size in LADDER if size <= spec.largest_batch]
    # The first runs read the file's pages and grow the arena: not timed.
    for size in (1, *sizes[-3:-2] * 2):
        _run(engine, spec, random_batch(spec, size, rng))
    fastest_s: dict[int, float] = {}
    deadline_s = time.perf_counter() + budget_s
    for rounds in range(MAX_ROUNDS):
        if rounds >= MIN_ROUNDS and time.perf_counter() > deadline_s:
            break
        for size in sizes:
            run_s = _run(engine, spec, random_batch(spec, size, rng))
            fastest_s[size] = min(run_s, fastest_s.get(size, run_s))
            if run_s > spec.sla.seconds:
                sizes = [s for s in sizes if s <= size]
                break
    return Timing(tuple(fastest_s), tuple(fastest_s.values()))


def _run(engine: Engine, spec: ModelSpec, inputs: Mapping[str, Array]) -> float:
    size = len(next(iter(inputs.values())))
    # The engine runs on this thread, so the thread's own clock leaves out whatever else the machine is doing.
    started_s = time.thread_time()
    try:
        (scores,) = engine.run(inputs, [spec.score_output])
    except EngineError as error:
        raise RepositoryError(
            f"fails on a valid batch of {size}: {str(error).splitlines()[0][:300]}"
        ) from error
    run_s = time.thread_time() - started_s
    columns = max(1, len(spec.tasks))
    if scores.shape not in {(size, columns), (size,) if columns == 1 else (size, columns)}:
        raise RepositoryError(
            f'output "{spec.score_output}" has the shape {list(scores.shape)} for {size} candidates; '
            f"axis 0 must be the candidates"
        )
    return run_s


def random_batch(spec: ModelSpec, size: int, rng: np.random.Generator) -> dict[str, Array]:
    """Return valid inputs of ``size`` candidates by name, with ids spread over their tables."""
    return {declared.name: _random_input(declared, size, rng) for declared in spec.inputs}


def _random_input(declared: InputSpec, size: int, rng: np.random.Generator) -> Array:
    """Return a valid input: ids spread over their tables, so that no cache flatters the timing."""
    shape = (size, *(1 if axis == -1 else axis for axis in declared.shape))
    if declared.id_rows is not None:
        per_column = declared.id_rows if len(declared.id_rows) > 1 else declared.id_rows[0]
        high = np.asarray(per_column).reshape((1, -1, *[1] * (len(shape) - 2)) if len(shape) > 1 else (-1,))
        return rng.integers(0, high, size=shape, dtype=np.int64).astype(declared.dtype)
    if declared.dtype.kind == "f":
        return rng.random(shape, dtype=np.float32).astype(declared.dtype, copy=False)
    return np.zeros(shape, dtype=declared.dtype)
