"""The Parquet files of `deeprecsys load`: every latency, and the runs' own results in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from deeprecsys.errors import InvalidSettingError
from services.report.results import Load

COLUMNS = ("run", "model", "latency_s", "measured")


@dataclass(frozen=True, eq=False)
class LatencyRun:
    """One run: its result, and by model float64 [Q], the latencies of the measured queries, infinite unanswered."""

    load: Load
    latency_s: Mapping[str, NDArray[np.float64]]


def read_latencies(path: Path) -> list[LatencyRun]:
    """Return the runs in a Parquet file. Raises InvalidSettingError, naming the file, for one that is none of these."""
    try:
        import pyarrow  # noqa: PLC0415 (an extra)
        from pyarrow import parquet  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise InvalidSettingError(
            f'{path} needs {missing.name}; install the extra: pip install "deeprecsys[parquet]"'
        ) from missing
    try:
        table = parquet.read_table(path)
    except OSError as error:
        raise InvalidSettingError(f"cannot read {path}: {error.strerror or error}") from error
    except pyarrow.ArrowException as error:
        raise InvalidSettingError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from error
    missing_columns = [name for name in COLUMNS if name not in table.column_names]
    if missing_columns:
        raise InvalidSettingError(f"{path} is no file of latencies: it has no column {missing_columns[0]}")
    facts = table.schema.metadata or {}
    keys = sorted(set(table.column("run").to_pylist()))
    return [_run(path, table, key, facts.get(f"deeprecsys.run.{key}".encode())) for key in keys]


def _run(path: Path, table: Any, key: int, facts: bytes | None) -> LatencyRun:
    if facts is None:
        raise InvalidSettingError(f"{path} has no result of run {key} in its metadata")
    try:
        load = Load.model_validate(json.loads(facts))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidSettingError(f"{path}: run {key}: {where}: {first['msg']}") from error
    mine = (table.column("run").to_numpy() == key) & table.column("measured").to_numpy()
    models = np.array(table.column("model").to_pylist())[mine]
    latency_s = np.array(table.column("latency_s").to_pylist(), dtype=np.float64)[mine]
    latency_s[np.isnan(latency_s)] = np.inf
    return LatencyRun(load, {m.model: np.sort(latency_s[models == m.model]) for m in load.models})
