"""Kinds of machines and accelerators on disk: one JSON file each, with its origin and its derivation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deeprecsys.errors import InvalidSettingError
from scheduler.fleet_spec import MachineKind, Origin
from scheduler.latency import BackendProfile, LatencyCurve, LatencyPoint

BUILT_IN = Path(__file__).parent / "kinds"

Point = tuple[int, float, float, float, float]
"""Batch size; mean, p50, p95 and p99 seconds."""


class _Curves(BaseModel):
    model_config = ConfigDict(extra="forbid")
    alone: list[Point]
    busy: list[Point]


class Kind(BaseModel):
    """One file: a machine with ``cores`` or an accelerator with ``slots``, and seconds by model."""

    model_config = ConfigDict(extra="forbid")
    name: str
    origin: Origin
    derivation: str
    cores: Annotated[int, Field(ge=1)] | None = None
    slots: Annotated[int, Field(ge=1)] | None = None
    watts: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    idle_watts: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    price: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    models: Annotated[dict[str, _Curves], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Kind:
        if (self.cores is None) == (self.slots is None):
            raise ValueError("give either cores (a machine) or slots (an accelerator)")
        for model in self.models:
            self.profile(model)
        return self

    @property
    def what(self) -> Literal["machine", "accelerator"]:
        """Whether it is a machine or an accelerator."""
        return "machine" if self.cores is not None else "accelerator"

    def profile(self, model: str) -> BackendProfile:
        """Return what a model takes; ValueError for points that cannot be a measurement."""
        curves = self.models[model]
        made = []
        for where, points in (("alone", curves.alone), ("busy", curves.busy)):
            try:
                made.append(LatencyCurve(tuple(LatencyPoint(*point) for point in points)))
            except ValueError as error:
                raise ValueError(f"models.{model}.{where}: {error}") from error
        backend = "cpu" if self.cores is not None else "accelerator"
        return BackendProfile(backend, made[0], made[1], modelled=self.origin is not Origin.MEASURED)


def read_kinds(folders: list[Path]) -> dict[str, Kind]:
    """Return the built-in kinds and those of further folders, by name; InvalidSettingError names a wrong file."""
    found: dict[str, Kind] = {}
    for folder in (BUILT_IN, *folders):
        paths = sorted(folder.glob("*.json"))
        if not paths:
            raise InvalidSettingError(f"{folder} has no kinds: no file ends in .json")
        for path in paths:
            kind = _read(path)
            if kind.name in found:
                raise InvalidSettingError(f"{path}: name: there is already a kind {kind.name}")
            found[kind.name] = kind
    return found


def machine(kind: Kind, accelerator: Kind | None, front_end_s: float) -> MachineKind:
    """Return a machine, with an accelerator in it or without; it is as modelled as the more modelled of both."""
    assert kind.cores is not None
    origins = [kind.origin] + ([accelerator.origin] if accelerator else [])
    return MachineKind(
        name=kind.name if accelerator is None else f"{kind.name} + {accelerator.name}",
        cores=kind.cores,
        cpu={model: kind.profile(model) for model in kind.models},
        origin=max(origins, key=list(Origin).index),
        accelerator={model: accelerator.profile(model) for model in accelerator.models}
        if accelerator
        else {},
        accelerator_slots=(accelerator.slots if accelerator else None) or 1,
        front_end_s=front_end_s,
        watts=kind.watts,
        idle_watts=kind.idle_watts,
        accelerator_watts=accelerator.watts if accelerator else 0.0,
        accelerator_idle_watts=accelerator.idle_watts if accelerator else 0.0,
        price=kind.price + (accelerator.price if accelerator else 0.0),
    )


def _read(path: Path) -> Kind:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Kind.model_validate(data)
    except OSError as error:
        raise InvalidSettingError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise InvalidSettingError(f"{path}: {one_line(error)}") from error
    except ValueError as error:
        raise InvalidSettingError(f"{path} is not JSON: {error}") from error


def one_line(error: ValidationError) -> str:
    """Return what is wrong as one line: the first field and its rule, and how many more there are."""
    wrong = error.errors()
    first = wrong[0]
    where = ".".join(str(part) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return f"{where}: {what}{more}" if where else f"{what}{more}"
