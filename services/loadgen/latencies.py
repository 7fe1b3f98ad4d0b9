"""Every latency of one or several runs as a Parquet file. pyarrow is an extra and is imported when first needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.errors import InvalidSettingError
from services.loadgen.recording import code_name
from services.loadgen.result import LoadResult, ModelResult


def require_parquet() -> None:
    """Raise InvalidSettingError where pyarrow is not installed: before a run, not after it."""
    if find_spec("pyarrow") is None:
        raise InvalidSettingError("Parquet files need pyarrow: pip install 'deeprecsys[parquet]'")


def write_latencies(path: Path, runs: Sequence[LoadResult]) -> None:
    """Write one row for each query, warm-up included.

    Columns: run (int32, in the order given), qps (double, the rate of its run over all models), model and version
    (strings), scheduled_s (double, from the start of its run), latency_s (double, from then; null without an answer),
    candidates (int32), code (string) and measured (bool: false for the warm-up). The result of each run, as its
    JSON file has it, is in the schema's metadata under ``deeprecsys.run.N``. Raises InvalidSettingError when the file
    cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = _schema()
    tables = [_table(k, run, model, schema) for k, run in enumerate(runs) for model in run.models]
    facts = {f"deeprecsys.run.{k}": json.dumps(run.as_dict(), allow_nan=False) for k, run in enumerate(runs)}
    whole = pa.concat_tables(tables) if tables else schema.empty_table()
    try:
        parquet.write_table(whole.replace_schema_metadata(facts), path, compression="zstd")
    except OSError as error:
        raise InvalidSettingError(f"cannot write {path}: {error.strerror or error}") from error


def _schema() -> Any:
    import pyarrow as pa

    text = pa.dictionary(pa.int16(), pa.string())
    return pa.schema(
        [
            ("run", pa.int32()),
            ("qps", pa.float64()),
            ("model", text),
            ("version", text),
            ("scheduled_s", pa.float64()),
            ("latency_s", pa.float64()),
            ("candidates", pa.int32()),
            ("code", text),
            ("measured", pa.bool_()),
        ]
    )


def _table(index: int, run: LoadResult, model: ModelResult, schema: Any) -> Any:
    import pyarrow as pa

    samples = model.samples
    count = len(samples.code)
    codes, code = np.unique(samples.code, return_inverse=True)
    names = [code_name(each) for each in codes.tolist()]
    columns = [
        pa.array(np.full(count, index, dtype=np.int32)),
        pa.array(np.full(count, run.qps)),
        _words([model.model], np.zeros(count, dtype=np.int16)),
        _words([model.version], np.zeros(count, dtype=np.int16)),
        pa.array(samples.scheduled_s),
        pa.array(samples.latency_s, mask=np.isinf(samples.latency_s)),
        pa.array(samples.size),
        _words(names, code.astype(np.int16)),
        pa.array(samples.scheduled_s >= run.settings.warmup_s),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _words(words: Sequence[str], index: NDArray[np.int16]) -> Any:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(index), pa.array(words, pa.string()))
