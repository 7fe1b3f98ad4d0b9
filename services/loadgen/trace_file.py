"""Recorded queries in a file: when each came, for which model, how many candidates it had, and perhaps its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.errors import InvalidSettingError
from scheduler.replay import BadRowError, RecordedQueries, recorded_queries
from services.loadgen.columns import read_columns


@dataclass(frozen=True, eq=False)
class TraceFile:
    """A trace to replay.

    queries: what it holds. inputs: files of recorded inputs. inputs_of: int32 [Q], each query's index in ``inputs``, -1
    where they are to be drawn. row: int64 [Q], each query's row in the file at ``path``.
    """

    path: Path
    queries: RecordedQueries
    inputs: tuple[Path, ...]
    inputs_of: NDArray[np.int32]
    row: NDArray[np.int64]

    def as_dict(self) -> dict[str, Any]:
        """Return what a result says of the trace: JSON-able, without the queries themselves."""
        return {
            "path": str(self.path),
            "queries": len(self.queries),
            "seconds": self.queries.period_s,
            "qps": self.queries.qps,
            "models": {name: self.queries.share(name) for name in self.queries.models},
            "recorded_inputs": int(np.count_nonzero(self.inputs_of >= 0)),
        }


def read_trace(path: Path, models: Sequence[str] = ()) -> TraceFile:
    """Read a CSV or Parquet file with the columns ``time`` (seconds from any origin), ``size`` and ``model``.

    models: those whose queries to keep, all when empty; a file without the column ``model`` takes the one whose queries
    all are. The optional column ``inputs`` names an ``.npz`` file (relative to the trace) with an array for each input
    of the model; where it is empty, inputs are drawn. Raises InvalidSettingError, naming file, row and field, for what
    cannot be replayed.
    """
    columns = read_columns(path, ["time", "size"], ["model", "inputs"])
    time_s, size = columns.numbers("time"), columns.numbers("size")
    if "model" in columns.values:
        names = columns.texts("model")
    elif len(models) == 1:
        names = [models[0]] * len(time_s)
    else:
        raise InvalidSettingError(f"{path} has no column model: name the one model that its queries are for")
    try:
        whole = recorded_queries(time_s, size, names)
    except BadRowError as error:
        raise columns.wrong(error.row, error.field, error.rule) from error
    except ValueError as error:
        raise InvalidSettingError(f"{path} {error}") from error
    for name in models:
        if name not in whole.models:
            raise InvalidSettingError(f"{path} has no queries of {name}; it has {', '.join(whole.models)}")
    inputs, inputs_of = _inputs(path, columns.texts("inputs") if "inputs" in columns.values else [])
    inputs_of = inputs_of if len(inputs_of) else np.full(len(whole), -1, dtype=np.int32)
    row = np.asarray(columns.row, dtype=np.int64)
    trace = TraceFile(path, whole, inputs, inputs_of, row)
    return _only(trace, models) if models else trace


def _inputs(path: Path, texts: list[str]) -> tuple[tuple[Path, ...], NDArray[np.int32]]:
    """Return the files that are named, and for each text the index of its file or -1."""
    names = sorted({text for text in texts if text})
    place = {name: k for k, name in enumerate(names)}
    index = np.array([place.get(text, -1) for text in texts], dtype=np.int32)
    return tuple(path.parent / name for name in names), index


def _only(trace: TraceFile, models: Sequence[str]) -> TraceFile:
    whole = trace.queries
    rows = np.flatnonzero(np.isin(whole.model, [whole.models.index(name) for name in models]))
    names = [whole.models[k] for k in whole.model[rows].tolist()]
    try:
        kept = recorded_queries(whole.time_s[rows], whole.size[rows], names)
    except ValueError as error:
        raise InvalidSettingError(f"{trace.path}, queries of {', '.join(models)}: {error}") from error
    return TraceFile(trace.path, kept, trace.inputs, trace.inputs_of[rows], trace.row[rows])
