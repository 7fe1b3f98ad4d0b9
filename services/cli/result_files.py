"""Where results are written: checked before a run, not after it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from deeprecsys.errors import InvalidSettingError


def check_writable(path: Path | None) -> None:
    """Raise InvalidSettingError for a file that cannot be written; None is none."""
    if path is None:
        return
    if path.is_dir():
        raise InvalidSettingError(f"cannot write {path}: it is a directory")
    if not path.parent.is_dir():
        raise InvalidSettingError(f"cannot write {path}: there is no directory {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidSettingError(f"cannot write {path}: permission denied")


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write a result; raises InvalidSettingError when the file cannot be written after all."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidSettingError(f"cannot write {path}: {error.strerror}") from error
