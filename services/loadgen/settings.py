"""What a load run is asked to do, checked before anything is sent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from deeprecsys.errors import InvalidSettingError
from scheduler.arrivals import MAX_QUERIES, ArrivalLaw, parse_arrivals
from scheduler.ids import IdLaw
from scheduler.sizes import SizeLaw
from services.loadgen.law_files import id_law, size_law
from services.loadgen.trace_file import TraceFile

Users = Literal["per_candidate", "shared"]
"""Whether user-side inputs come with one row per candidate or with one row that holds for all."""

MIB = 1 << 20


@dataclass(frozen=True)
class ModelShare:
    """One model of a run and its share of the rate: ``weight`` over the sum of all weights.

    ``version`` is empty for the one that the server serves by default.
    """

    name: str
    weight: float = 1.0
    version: str = ""


@dataclass(frozen=True)
class Laws:
    """What a run's queries are drawn by."""

    arrivals: ArrivalLaw
    sizes: SizeLaw
    ids: IdLaw


@dataclass(frozen=True)
class LoadSettings:
    """The settings of one run. Raises InvalidSettingError for those that cannot work.

    target: host:port of a RankService.
    qps: arrivals per second over all models; the start of a search for the highest rate.
    duration_s, warmup_s: the measured window, and the seconds before it that are driven but not measured.
    sizes, arrivals, ids: laws as ``law_files`` and ``scheduler.arrivals`` read them.
    trace: recorded queries to replay at ``qps``, again from the start when they end: their times, sizes and models
        replace the laws and weights. None for drawn ones.
    deadline_s: each query's deadline, from its scheduled time; None for none.
    sla_s: replaces the seconds of every model's own target (its percentile stays); None keeps them.
    concurrency: None for open loop; else closed loop, with so many queries in flight over ``count`` queries.
    pool_bytes: the most memory for pre-built requests, over all models.
    channels: connections that the queries take in turn.
    min_queries: fewer measured queries of a model make its run invalid; None for what its target's percentile needs.
    unavailable_limit: so many UNAVAILABLE answers in a row end the run; None for never.
    drivers: processes that share the schedule; 1 drives in this one.
    """

    target: str
    models: tuple[ModelShare, ...]
    qps: float = 50.0
    duration_s: float = 10.0
    warmup_s: float = 2.0
    sizes: str = "production"
    arrivals: str = "poisson"
    ids: str = "uniform"
    users: Users = "per_candidate"
    seed: int = 0
    deadline_s: float | None = None
    sla_s: float | None = None
    concurrency: int | None = None
    count: int | None = None
    pool_bytes: int = 256 * MIB
    channels: int = 1
    min_queries: int | None = None
    unavailable_limit: int | None = 500
    drivers: int = 1
    trace: TraceFile | None = None

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_models(self.models)
        expected = self.read_laws().arrivals.mean_count(self.qps, self.duration_s + self.warmup_s)
        if max(expected, self.count or 0) > MAX_QUERIES:
            raise InvalidSettingError(
                f"a run has at most {MAX_QUERIES} queries: lower the rate or the duration"
            )
        if self.trace is not None:
            _check_trace(self, self.trace)
        if self.users not in get_args(Users):
            raise InvalidSettingError(
                f"users must be one of {', '.join(get_args(Users))}, not {self.users!r}"
            )
        if (self.concurrency is None) != (self.count is None):
            raise InvalidSettingError("closed loop needs both a concurrency and a number of queries")
        if not self.target:
            raise InvalidSettingError("target must be host:port")

    def read_laws(self) -> Laws:
        """Return the laws, read from their files where they have some."""
        return Laws(_arrivals(self.arrivals), size_law(self.sizes), id_law(self.ids))

    def part(self, index: int) -> float:
        """Return the share of the rate that one of the models has."""
        share = self.models[index]
        if self.trace is not None:
            return self.trace.queries.share(share.name)
        return share.weight / sum(m.weight for m in self.models)


def _check_numbers(s: LoadSettings) -> None:
    above_zero: tuple[tuple[str, float | None], ...] = (
        ("qps", s.qps),
        ("duration", s.duration_s),
        ("deadline", s.deadline_s),
        ("SLA", s.sla_s),
        ("concurrency", s.concurrency),
        ("number of queries", s.count),
        ("pool size", s.pool_bytes),
        ("number of channels", s.channels),
        ("unavailable limit", s.unavailable_limit),
        ("number of drivers", s.drivers),
    )
    for name, value in above_zero:
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InvalidSettingError(f"{name} must be above 0, not {value}")
    if not (math.isfinite(s.warmup_s) and s.warmup_s >= 0):
        raise InvalidSettingError(f"warm-up must be at least 0 s, not {s.warmup_s}")
    for name, whole in (("seed", s.seed), ("fewest queries", s.min_queries)):
        if whole is not None and whole < 0:
            raise InvalidSettingError(f"{name} must be at least 0, not {whole}")


def _check_models(models: tuple[ModelShare, ...]) -> None:
    if not models:
        raise InvalidSettingError("name at least one model")
    names = [(m.name, m.version) for m in models]
    if not all(m.name for m in models):
        raise InvalidSettingError("a model needs a name: write NAME or NAME=WEIGHT")
    if len(set(names)) != len(names):
        raise InvalidSettingError("name each model once")
    for m in models:
        if not (math.isfinite(m.weight) and m.weight > 0):
            raise InvalidSettingError(f"the weight of {m.name} must be above 0, not {m.weight}")


def _check_trace(s: LoadSettings, trace: TraceFile) -> None:
    if s.concurrency is not None:
        raise InvalidSettingError("a trace is replayed in open loop, not with a number of queries in flight")
    if sorted(m.name for m in s.models) != sorted(trace.queries.models):
        raise InvalidSettingError(f"the models of {trace.path} are {', '.join(trace.queries.models)}")
    for m in s.models:
        if m.weight != 1.0:
            raise InvalidSettingError(
                f"the shares of the models are those of {trace.path}: leave out the weight of {m.name}"
            )


def _arrivals(spec: str) -> ArrivalLaw:
    try:
        return parse_arrivals(spec)
    except ValueError as error:
        raise InvalidSettingError(str(error)) from error


def parse_model_share(text: str) -> ModelShare:
    """Read ``NAME`` or ``NAME=WEIGHT``; raises InvalidSettingError for a weight that is no number."""
    name, equals, weight = text.partition("=")
    try:
        return ModelShare(name, float(weight) if equals else 1.0)
    except ValueError as error:
        raise InvalidSettingError(f"model {text!r} must be written NAME or NAME=WEIGHT") from error
