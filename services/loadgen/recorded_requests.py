"""The requests of a trace whose inputs were recorded too: files of arrays, checked against the model and serialised."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.client import build_request
from deeprecsys.errors import InvalidSettingError
from deeprecsys.tensors import DTYPES
from deeprecsys.v1 import rank_pb2
from services.loadgen.trace_file import TraceFile

_DAMAGED = (
    EOFError,
    KeyError,
    MemoryError,  # of a damaged header that asks for more than there is
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise for a file that is not what it should be: they have no class of their own for it."""


@dataclass(frozen=True, eq=False)
class RecordedRequests:
    """Serialised requests of one model, [K], and the candidates of each, int32 [K].

    request_of: int32 [F], for each file of a trace the index of its request, -1 for those of other models.
    """

    payloads: tuple[bytes, ...]
    size: NDArray[np.int32]
    request_of: NDArray[np.int32]


NOTHING_RECORDED = RecordedRequests((), np.empty(0, np.int32), np.empty(0, np.int32))


def recorded_requests(
    trace: TraceFile, model: rank_pb2.Model, *, version: str, max_size: int, budget_bytes: int
) -> RecordedRequests:
    """Build a request for each file of inputs that the model's queries name.

    Raises InvalidSettingError, naming the row of the trace, for a file that cannot be read or does not fit the model or
    the query's size, and for requests beyond the budget.
    """
    rows = trace.queries.rows(model.name)
    rows = rows[trace.inputs_of[rows] >= 0]
    payloads: list[bytes] = []
    sizes: list[int] = []
    request_of = np.full(len(trace.inputs), -1, dtype=np.int32)
    for row in rows.tolist():
        file, size = int(trace.inputs_of[row]), int(trace.queries.size[row])
        where = f"{trace.path}, row {trace.row[row]}, inputs: {trace.inputs[file]}"
        if size > max_size:
            raise InvalidSettingError(f"{where}: {size} candidates, the server takes {max_size}")
        if request_of[file] < 0:
            arrays = _load(trace.inputs[file], where)
            _check(model, arrays, size, where)
            request_of[file] = len(payloads)
            payloads.append(build_request(model.name, arrays, version=version).SerializeToString())
            sizes.append(size)
            budget_bytes -= len(payloads[-1])
        elif sizes[request_of[file]] != size:
            raise InvalidSettingError(
                f"{where}: {sizes[request_of[file]]} candidates, but this query's size is {size}"
            )
        if budget_bytes < 0:
            raise InvalidSettingError(f"{where}: the recorded inputs up to here do not fit the request pool")
    return RecordedRequests(tuple(payloads), np.array(sizes, dtype=np.int32), request_of)


def _load(path: Path, where: str) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.lib.npyio.NpzFile):
                return {name: loaded[name] for name in loaded.files}
    except OSError as error:
        raise InvalidSettingError(f"{where}: cannot be read: {error.strerror or error}") from error
    except _DAMAGED as error:
        raise InvalidSettingError(f"{where}: is no .npz of plain arrays") from error
    raise InvalidSettingError(f"{where}: is no .npz of plain arrays")


def _check(model: rank_pb2.Model, arrays: dict[str, NDArray[Any]], size: int, where: str) -> None:
    wanted = {spec.name: spec for spec in model.inputs}
    if arrays.keys() != wanted.keys():
        raise InvalidSettingError(
            f"{where}: holds {', '.join(sorted(arrays)) or 'nothing'}, the inputs of {model.name} are "
            f"{', '.join(sorted(wanted))}"
        )
    for name, array in arrays.items():
        spec = wanted[name]
        row = list(spec.shape[1:])
        fits = array.ndim == len(row) + 1 and all(
            have == want or want < 0 for have, want in zip(array.shape[1:], row, strict=True)
        )
        if not fits or array.shape[0] not in (1, size):
            shape = ", ".join("any" if want < 0 else str(want) for want in (size, *row))
            raise InvalidSettingError(f"{where}: {name} has shape {list(array.shape)}, not [{shape}]")
        if array.dtype.newbyteorder("<") != DTYPES.get(spec.data_type):
            raise InvalidSettingError(
                f"{where}: {name} holds {array.dtype}, the model takes {DTYPES.get(spec.data_type)}"
            )
