"""Operating points that outlive the process: one small JSON file in the state directory, replaced atomically."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from scheduler.plan import OperatingPoint
from services.machine import describe_machine
from services.rank.model import ModelSpec

_log = logging.getLogger(__name__)

FILE = "operating_points.json"


class LearntPoints:
    """The points by model, version, machine and target. ``directory`` None keeps nothing.

    A file that cannot be read counts as empty, with a warning: the service learns anew. A write that fails is
    logged and never stops the service.
    """

    def __init__(self, directory: Path | None) -> None:
        self._path = None if directory is None else directory / FILE
        machine = describe_machine()
        identity = json.dumps([machine.cpu, machine.cores, machine.memory_bytes])
        self._machine = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._points: dict[str, dict[str, Any]] = {} if self._path is None else _read(self._path)

    def find(self, spec: ModelSpec) -> OperatingPoint | None:
        """Return the point that was kept for this model on this machine under this target."""
        kept = self._points.get(self._key(spec))
        if kept is None:
            return None
        try:
            return OperatingPoint(int(kept["batch_size"]), kept.get("offload_from"))
        except (KeyError, TypeError, ValueError):
            _log.warning("a kept operating point is not usable", extra={"model": spec.key})
            return None

    def keep(self, spec: ModelSpec, point: OperatingPoint) -> None:
        """Keep a point for the next start."""
        if self._path is None:
            return
        kept = {"model": spec.key, "batch_size": point.batch_size, "offload_from": point.offload_from}
        if self._points.get(self._key(spec)) == kept:
            return
        self._points[self._key(spec)] = kept
        draft = self._path.with_name(f".{FILE}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(self._points, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            draft.replace(self._path)
        except OSError as error:
            _log.warning("operating points cannot be kept", extra={"reason": str(error)})

    def _key(self, spec: ModelSpec) -> str:
        return f"{spec.key} p{spec.sla.percentile:g} {spec.sla.seconds:g}s {self._machine}"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        points = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("kept operating points cannot be read", extra={"path": str(path), "reason": str(error)})
        return {}
    if not isinstance(points, dict) or not all(isinstance(point, dict) for point in points.values()):
        _log.warning(
            "kept operating points cannot be read", extra={"path": str(path), "reason": "not a map of maps"}
        )
        return {}
    return points
