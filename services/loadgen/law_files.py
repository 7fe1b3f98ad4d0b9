"""The laws that are written with a file: observed sizes, and profiles of how soon table rows are looked up again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deeprecsys.errors import InvalidSettingError
from scheduler.ids import IdLaw, parse_ids
from scheduler.reuse import ReuseProfile
from scheduler.sizes import MAX_SIZE, SizeLaw, parse_sizes
from services.loadgen.columns import Columns, read_columns, read_lines

NEW = "new"


def size_law(spec: str) -> SizeLaw:
    """Return the size law of a text, reading the file of ``empirical:FILE[,COLUMN]``.

    Without a column the file has one size a line; with one it is CSV or Parquet. Raises InvalidSettingError for a text
    that is no law, or a file that gives none.
    """
    try:
        return parse_sizes(spec, _read_sizes)
    except ValueError as error:
        raise InvalidSettingError(str(error)) from error


def id_law(spec: str) -> IdLaw:
    """Return the id law of a text, reading the profile of ``reuse:FILE``.

    A profile is CSV or Parquet with the columns ``distance`` (a whole number of at least 1, or ``new``) and
    ``probability``; see ``scheduler.reuse``. Raises InvalidSettingError for a text that is no law, or a file that gives
    none.
    """
    try:
        return parse_ids(spec, _read_profile)
    except ValueError as error:
        raise InvalidSettingError(str(error)) from error


def whole_numbers(columns: Columns, field: str, most: int, what: str) -> NDArray[np.int64]:
    """Return a column as int64 [R], each from 1 to ``most``; raises InvalidSettingError for any other entry."""
    numbers = columns.numbers(field)
    good = (numbers >= 1) & (numbers <= most) & (numbers == np.floor(numbers))
    if not good.all():
        entry = int(np.argmin(good))
        raise columns.wrong(entry, field, f"{numbers[entry]:g} is no whole {what} of at least 1")
    return numbers.astype(np.int64)


def _read_sizes(where: str) -> NDArray[np.int64]:
    name, comma, column = where.rpartition(",")
    columns = read_columns(Path(name), [column]) if comma else read_lines(Path(where), "size")
    return whole_numbers(columns, column if comma else "size", MAX_SIZE, "number of candidates")


def _read_profile(where: str) -> ReuseProfile:
    columns = read_columns(Path(where), ["distance", "probability"])
    probability = columns.numbers("probability")
    if (probability < 0).any():
        entry = int(np.argmax(probability < 0))
        raise columns.wrong(entry, "probability", f"{probability[entry]:g} is below 0")
    texts = columns.texts("distance")
    new = np.array([text == NEW for text in texts])
    # A row of new look-ups has no distance: any will do while the others are checked.
    known = Columns(columns.path, columns.row, {"distance": ["1" if text == NEW else text for text in texts]})
    distance = whole_numbers(known, "distance", MAX_SIZE, "distance")[~new]
    order = np.argsort(distance, kind="stable")
    twice = np.flatnonzero(np.diff(distance[order]) == 0)
    if len(twice):
        entry = int(np.flatnonzero(~new)[order[twice[0] + 1]])
        raise columns.wrong(entry, "distance", f"{distance[order[twice[0]]]} is there twice")
    try:
        return ReuseProfile(distance[order], probability[~new][order], float(probability[new].sum()))
    except ValueError as error:
        raise InvalidSettingError(f"{where}, probability: {error}") from error
