"""What a load run found, and the same as plain data for a JSON file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.locality import Locality
from scheduler.measure import Capacity, Measurement, Sla
from services.loadgen.settings import LoadSettings
from services.loadgen.trace_file import TraceFile
from services.machine import Machine


@dataclass(frozen=True)
class PoolReport:
    """The pre-built requests of one model.

    requests of payload_bytes in all; distinct_candidates over them, which look up id_references table rows; max_size is
    the most candidates that the model's limits allow, to which sizes were cut. locality: of the drawn requests'
    look-ups; None for a model without tables.
    """

    requests: int
    payload_bytes: int
    distinct_candidates: int
    id_references: int
    max_size: int
    locality: Locality | None


@dataclass(frozen=True, eq=False)
class Samples:
    """The queries of one model, warm-up included, all [Q]: latency infinite without an answer, gRPC codes."""

    scheduled_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    size: NDArray[np.int32]
    code: NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class ModelResult:
    """One model's part of a run.

    ``codes``: how many of the measured queries ended with each code. ``shortfall``: why the run does not show that
    the target is met; None when it is met. ``samples`` stay out of ``as_dict``.
    """

    model: str
    version: str
    sla: Sla
    qps: float
    measurement: Measurement
    shortfall: str | None
    codes: Mapping[str, int]
    pool: PoolReport
    samples: Samples

    @property
    def errors(self) -> dict[str, int]:
        """The codes other than OK."""
        return _errors(self.codes)


@dataclass(frozen=True)
class DriverReport:
    """How the load generator itself did.

    processes: how many drove; before_others: whether the system let them run before all ordinary processes.
    lag: how late queries were sent, in seconds, over the measured ones (part of every latency). cpu_s: CPU seconds of
    the driving processes over the run's wall_s; cpu_share: as a share of all cores that they may use.
    """

    processes: int
    before_others: bool
    lag_p50_s: float
    lag_p99_s: float
    lag_max_s: float
    cpu_s: float
    wall_s: float
    cpu_share: float


@dataclass(frozen=True, eq=False)
class LoadResult:
    """A whole run: what was asked for, on which machine, and what each model did.

    ``qps``: the rate that was driven, which in a search differs from the settings'. ``cut_short``: why the run
    ended early; None if it did not.
    """

    settings: LoadSettings
    qps: float
    machine: Machine
    models: tuple[ModelResult, ...]
    driver: DriverReport
    cut_short: str | None

    @property
    def invalid(self) -> str | None:
        """The first reason why the figures must not be used; None when they may."""
        return next((m.measurement.invalid for m in self.models if m.measurement.invalid), None)

    def as_dict(self) -> dict[str, Any]:
        """Return the run as JSON-able data; an infinite latency (no answer) is null."""
        return {"kind": "run", **_plain(self), "invalid": self.invalid}


@dataclass(frozen=True, eq=False)
class MaxResult:
    """The result of a search for the highest rate within the target.

    ``best`` is the run at ``capacity.qps``; None when no rate meets the target. ``cut_short``: why the search ended
    early; None if it did not.
    """

    settings: LoadSettings
    machine: Machine
    model: str
    sla: Sla
    capacity: Capacity
    best: LoadResult | None
    cut_short: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the search as JSON-able data; an infinite latency (no answer) is null."""
        return {"kind": "search", **_plain(self)}


@dataclass(frozen=True, eq=False)
class SweepResult:
    """Runs at several rates: the curve of latency against throughput.

    ``cut_short``: why the sweep ended before its last rate was measured; None if it did not.
    """

    settings: LoadSettings
    machine: Machine
    points: tuple[LoadResult, ...]
    cut_short: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the sweep as JSON-able data: each point as a run, without the settings and machine that all share."""
        shared = {"kind", "settings", "machine"}
        points = [{k: v for k, v in run.as_dict().items() if k not in shared} for run in self.points]
        return {"kind": "sweep", **_plain(self), "points": points}


@dataclass(frozen=True, eq=False)
class MlperfResult:
    """A test that MLPerf LoadGen ran and judged.

    verdict: LoadGen's own, VALID or INVALID; None for a test that was cut short, see ``cut_short``. loadgen: what it
    logged of its result, under its own keys (latencies in nanoseconds, from the time that it had scheduled). codes: how
    the queries ended, which LoadGen does not know. p50_s, p95_s, p99_s: of the latest 2000, from the time of their
    sending. logs: the folder of LoadGen's files. before_others, cpu_s, wall_s, cpu_share: as in DriverReport, LoadGen
    included.
    """

    settings: LoadSettings
    machine: Machine
    model: str
    version: str
    sla: Sla
    verdict: str | None
    loadgen_version: str
    loadgen: Mapping[str, Any]
    codes: Mapping[str, int]
    p50_s: float
    p95_s: float
    p99_s: float
    pool: PoolReport
    before_others: bool
    cpu_s: float
    wall_s: float
    cpu_share: float
    logs: str
    cut_short: str | None

    @property
    def errors(self) -> dict[str, int]:
        """The codes other than OK."""
        return _errors(self.codes)

    def as_dict(self) -> dict[str, Any]:
        """Return the test as JSON-able data; an infinite latency (no answer) is null."""
        return {"kind": "mlperf", **_plain(self)}


def _errors(codes: Mapping[str, int]) -> dict[str, int]:
    return {code: n for code, n in codes.items() if code != "OK"}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, TraceFile):
        return value.as_dict()
    if is_dataclass(value) and not isinstance(value, type):
        named = ((f.name, getattr(value, f.name)) for f in fields(value))
        return {name: _plain(part) for name, part in named if not isinstance(part, Samples)}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return value
