"""The models of this server: which are ready, which are loading, which are broken and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from deeprecsys.errors import ModelNotFoundError, UnavailableError
from deeprecsys.v1 import rank_pb2
from services.rank.engine import Engine
from services.rank.model import ModelSpec, describe


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version of one model, ready to score."""

    spec: ModelSpec
    engine: Engine


LOADING = "is loading"


@dataclass(slots=True)
class Entry:
    """One model directory. ``versions``: the ready ones, the default first. ``fault``: why one, or all, are missing."""

    versions: dict[str, ServedModel] = field(default_factory=dict)
    fault: str = LOADING


class Catalogue:
    """All model directories by name. ``limits`` are put into every description."""

    def __init__(self, limits: rank_pb2.Model) -> None:
        self._limits = limits
        self._entries: dict[str, Entry] = {}

    def expect(self, name: str) -> None:
        """Note a model that is being loaded."""
        self._entries[name] = Entry()

    def ready(self, model: ServedModel) -> None:
        """Serve a version from now on; versions become ready in the order of preference."""
        entry = self._entries[model.spec.name]
        entry.versions[model.spec.version] = model
        if entry.fault == LOADING:
            entry.fault = ""

    def broken(self, name: str, fault: str) -> None:
        """Note why a model (or one of its versions) cannot be served."""
        self._entries[name].fault = f"cannot be served: {fault}"

    def names(self) -> list[str]:
        """Return the names of all model directories."""
        return list(self._entries)

    def is_ready(self, name: str) -> bool:
        """Return whether any version of the model answers."""
        return bool(self._entries[name].versions)

    def find(self, name: str, version: str) -> ServedModel:
        """Return a version, the default one for ""; ModelNotFoundError or UnavailableError where there is none."""
        entry = self._entries.get(name)
        if entry is None:
            known = ", ".join(self._entries) or "none"
            raise ModelNotFoundError(f'model "{name[:100]}" is not served here; known models: {known}')
        if not entry.versions:
            raise UnavailableError(f"model {name} {entry.fault}")
        model = entry.versions.get(version or next(iter(entry.versions)))
        if model is None:
            known = ", ".join(entry.versions)
            raise ModelNotFoundError(
                f'model {name} has no version "{version[:100]}"; known versions: {known}'
            )
        return model

    def describe(self, name: str, version: str = "") -> rank_pb2.Model:
        """Return the description of a model, ready or not; ModelNotFoundError for an unknown name or version."""
        entry = self._entries.get(name)
        if entry is not None and not entry.versions:
            unready = rank_pb2.Model(name=name, ready=False, unready_reason=entry.fault)
            unready.MergeFrom(self._limits)
            return unready
        spec = self.find(name, version).spec
        assert entry is not None
        message = describe(spec)
        message.MergeFrom(self._limits)
        message.max_candidates = spec.largest_query(message.max_candidates)
        message.versions.extend([spec.version, *(v for v in entry.versions if v != spec.version)])
        message.ready = True
        message.unready_reason = entry.fault
        return message
