"""What has been measured so far: one JSON object a line, so that an interrupted benchmark goes on where it was."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Findings:
    """Findings by their key. Remove the file to measure anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, Any] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = _entry(line)
                if entry is not None:
                    self.found[entry["key"]] = entry["value"]

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return what is known under a key, measuring it if nothing is."""
        if key not in self.found:
            self.found[key] = _finite(measure())
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "value": self.found[key]}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return self.found[key]


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
