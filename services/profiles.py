"""Latency profiles on disk: one JSON file a model, the machine beside the seconds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from deeprecsys.errors import InvalidSettingError, RepositoryError
from scheduler.latency import LatencyProfile
from services.machine import describe_machine


def read_profile(path: Path) -> LatencyProfile:
    """Return the profile in a file; InvalidSettingError says what is wrong with it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSettingError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidSettingError(f"{path} is not JSON: {error}") from error
    try:
        return LatencyProfile.from_dict(data)
    except ValueError as error:
        raise InvalidSettingError(f"{path}: {error}") from error


def write_profile(path: Path, profile: LatencyProfile) -> None:
    """Write a profile measured on this machine; RepositoryError when the file cannot be written."""
    data = {"machine": dataclasses.asdict(describe_machine()), **profile.to_dict()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RepositoryError(
            f"cannot write {path}: {error.strerror}; choose another with --output"
        ) from error
