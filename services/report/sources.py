"""From files to results: each file is read, known by its names, and checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from deeprecsys.errors import InvalidSettingError
from services.report.latencies import LatencyRun, read_latencies
from services.report.results import SHAPES, Result

R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Source:
    """A file and the result in it."""

    path: Path
    result: Result


@dataclass(frozen=True)
class Sources:
    """All results of a report, and the files of folders that hold none that the report knows.

    ``latencies``: the runs in each Parquet file.
    """

    known: tuple[Source, ...]
    passed_over: tuple[Path, ...] = ()
    latencies: Mapping[Path, list[LatencyRun]] = field(default_factory=dict)

    def of(self, shape: type[R]) -> list[R]:
        """Return the results of one shape, in the order of their files."""
        return [source.result for source in self.known if isinstance(source.result, shape)]


def read_sources(paths: Sequence[Path]) -> Sources:
    """Read files, and of folders every ``*.json`` and ``*.parquet`` file.

    A file that is named must be a result; one that merely lies in a folder, and that no shape fits, is passed over.
    Raises InvalidSettingError, naming file and entry, for what is missing, no JSON, or a result with nonsense in it.
    """
    known: list[Source] = []
    passed_over: list[Path] = []
    latencies: dict[Path, list[LatencyRun]] = {}
    for path in paths:
        files = sorted([*path.glob("*.json"), *path.glob("*.parquet")]) if path.is_dir() else [path]
        if not files:
            raise InvalidSettingError(f"{path} holds no .json or .parquet file")
        for file in files:
            if file.suffix == ".parquet":
                latencies[file] = read_latencies(file)
                continue
            data = _load(file)
            shape = shape_of(data)
            if shape is not None:
                known.append(Source(file, _checked(shape, data, file)))
            elif file == path:
                raise InvalidSettingError(f"{file} is no result that the report knows{_hint(data)}")
            else:
                passed_over.append(file)
    return Sources(tuple(known), tuple(passed_over), latencies)


def shape_of(data: Any) -> type[Result] | None:
    """Return the shape that has all its names in the data, at its top or in its rows; None when none has."""
    if not isinstance(data, Mapping):
        return None
    names = set(data)
    rows = data.get("rows")
    for row in rows if isinstance(rows, list) else []:
        names.update(row if isinstance(row, Mapping) else ())
    return next((shape for shape in SHAPES if shape.known_by <= names), None)


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSettingError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:  # also bytes that are no UTF-8
        raise InvalidSettingError(f"{file} is not JSON: {error}") from error


def _checked(shape: type[Result], data: Any, file: Path) -> Result:
    try:
        return shape.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InvalidSettingError(f"{file}: {where}: {first['msg']}{more}") from error


def _hint(data: Any) -> str:
    if not isinstance(data, Mapping):
        return f": it holds {_kind(data)}, not an object"
    return f"; its names are {_some(data)}" if data else ": it is empty"


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")


def _kind(data: Any) -> str:
    return "a list" if isinstance(data, list) else f"a {type(data).__name__}"
