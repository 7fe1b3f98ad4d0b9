"""Columns of a CSV or Parquet file, with errors that name file, row and field."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.errors import InvalidSettingError

F64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of one file, all [R]: texts from CSV, numpy arrays or lists from Parquet.

    ``row``: for each entry its row in the file, by which errors call it. In CSV that is the line, the header being
    the first; in Parquet rows count from 1.
    """

    path: Path
    row: Sequence[int]
    values: Mapping[str, Sequence[Any] | NDArray[Any]]

    def numbers(self, field: str) -> F64Array:
        """Return a column as float64 [R]; raises InvalidSettingError for an entry that is no finite number."""
        values = self.values[field]
        if isinstance(values, np.ndarray) and values.dtype.kind not in "iufO":
            # A column of dates or truths would become numbers, too, of a meaning that nobody stated.
            raise self.wrong(0, field, f"{values[0]} is no number")
        try:
            numbers = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            numbers = np.array([_number(value) for value in values])
        finite = np.isfinite(numbers)
        if not finite.all():
            entry = int(np.argmin(finite))
            raise self.wrong(entry, field, f"{_shown(values[entry])} is no number")
        return numbers

    def texts(self, field: str) -> list[str]:
        """Return a column as texts, without the space around them; nothing is the empty text."""
        return ["" if value is None else str(value).strip() for value in self.values[field]]

    def wrong(self, entry: int, field: str, rule: str) -> InvalidSettingError:
        """Return the error that names this file, the row of an entry and the field."""
        return InvalidSettingError(f"{self.path}, row {self.row[entry]}, {field}: {rule}")


def read_columns(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> Columns:
    """Read the columns that are needed and those optional ones that are there; other columns are left alone.

    A name that ends in ``.parquet`` is read as Parquet, any other as CSV with a header.
    Raises InvalidSettingError for a file that cannot be read, has no rows, or lacks a column.
    """
    try:
        columns = (
            _parquet(path, needed, optional) if path.suffix == ".parquet" else _csv(path, needed, optional)
        )
    except OSError as error:
        raise InvalidSettingError(f"cannot read {path}: {error.strerror or error}") from error
    if not len(columns.row):
        raise InvalidSettingError(f"{path} has no rows")
    return columns


def read_lines(path: Path, field: str) -> Columns:
    """Read a file of one entry a line, without a header, as the column ``field``; raises as ``read_columns`` does."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InvalidSettingError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidSettingError(f"{path} is no text in UTF-8") from error
    filled = [(k, line.strip()) for k, line in enumerate(lines, start=1) if line.strip()]
    if not filled:
        raise InvalidSettingError(f"{path} has no rows")
    return Columns(path, [k for k, _ in filled], {field: [line for _, line in filled]})


def _csv(path: Path, needed: Sequence[str], optional: Sequence[str]) -> Columns:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            place = _places(path, header, needed, optional)
            row: list[int] = []
            values: dict[str, list[str]] = {name: [] for name in place}
            appends: list[tuple[Callable[[str], None], int]] = [
                (values[name].append, k) for name, k in place.items()
            ]
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise InvalidSettingError(
                        f"{path}, row {reader.line_num}: {len(cells)} fields, but the header has {len(header)}"
                    )
                row.append(reader.line_num)
                for append, k in appends:
                    append(cells[k])
        except csv.Error as error:
            raise InvalidSettingError(f"{path}, row {reader.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise InvalidSettingError(f"{path} is no text in UTF-8") from error
    return Columns(path, row, dict(values))


def _parquet(path: Path, needed: Sequence[str], optional: Sequence[str]) -> Columns:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise InvalidSettingError(
            f"{path}: Parquet files need pyarrow: pip install 'deeprecsys[parquet]'"
        ) from error
    try:
        place = _places(path, pyarrow.parquet.read_schema(path).names, needed, optional)
        table = pyarrow.parquet.read_table(path, columns=list(place))
    except pyarrow.ArrowException as error:
        raise InvalidSettingError(f"cannot read {path}: {error}") from error
    # Numbers become arrays in one copy, nothing in them NaN; what else there is becomes objects.
    values = {name: _array(table.column(name)) for name in place}
    return Columns(path, range(1, table.num_rows + 1), values)


def _array(column: Any) -> NDArray[Any]:
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        # Its words are spelled out first: to_numpy would put the first word where there is none.
        column = column.cast(column.type.value_type)
    array: NDArray[Any] = column.to_numpy()
    return array


def _places(
    path: Path, header: Sequence[str], needed: Sequence[str], optional: Sequence[str]
) -> dict[str, int]:
    if not header:
        raise InvalidSettingError(f"{path} is empty")
    for name in (*needed, *optional):
        if list(header).count(name) > 1:
            raise InvalidSettingError(f"{path} has two columns {name}")
    for name in needed:
        if name not in header:
            raise InvalidSettingError(f"{path} has no column {name}; it has {', '.join(header)}")
    return {name: list(header).index(name) for name in (*needed, *optional) if name in header}


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else "nothing" if value is None else str(value)
