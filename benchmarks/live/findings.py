"""What has been measured so far: one JSON object a line, so that an interrupted benchmark goes on where it was."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class OutOfTimeError(Exception):
    """Nothing more is begun."""


class Findings:
    """Findings by their key. Remove the file to measure anew.

    ``ends_s``: on the monotonic clock, after which nothing is begun.
    """

    def __init__(self, path: Path, ends_s: float = math.inf) -> None:
        self._path = path
        self._ends_s = ends_s
        self.found: dict[str, Any] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines():
            entry = _entry(line)
            if entry is not None:
                self.found[entry["key"]] = entry["value"]
        self._torn = bool(text) and not text.endswith("\n")

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return what is known under a key, measuring it if nothing is; OutOfTimeError when it is too late for that."""
        if key not in self.found:
            if time.monotonic() > self._ends_s:
                raise OutOfTimeError
            self.found[key] = _finite(measure())
            self._append(json.dumps({"key": key, "value": self.found[key]}) + "\n")
        return self.found[key]

    def _append(self, line: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + line if self._torn else line)
            file.flush()
            os.fsync(file.fileno())
        self._torn = False


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError:
        return None  # the last line of a run that was killed
    return entry


def _finite(value: Any) -> Any:
    """Return the value with None for what JSON cannot write: infinite and missing numbers."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
