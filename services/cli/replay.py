"""What a replay drives: what the options ask for, and else what the trace itself has."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import typer

from deeprecsys.errors import InvalidSettingError
from services.loadgen.settings import ModelShare
from services.loadgen.trace_file import TraceFile, read_trace


class Replay(NamedTuple):
    """The trace (None for drawn queries), the models, the rate over all of them and the measured seconds."""

    trace: TraceFile | None
    models: tuple[ModelShare, ...]
    qps: float
    duration_s: float


def replayed(
    context: typer.Context,
    path: Path | None,
    models: tuple[ModelShare, ...],
    qps: float,
    speedup: float,
    duration_s: float,
    warmup_s: float,
) -> Replay:
    """Read the trace and fill in what was left at its default: its models, the recorded rate, the whole length.

    Raises InvalidSettingError for a trace that cannot be replayed and for options that it leaves no room for.
    """
    if path is None:
        if _given(context, "speedup"):
            raise InvalidSettingError("--speedup is that of a trace: name one with --trace")
        return Replay(None, models, qps, duration_s)
    trace = read_trace(path, [share.name for share in models])
    for option in ("sizes", "arrivals"):
        if _given(context, option):
            raise InvalidSettingError(f"--{option} names a law, but {path} has its own {option}")
    if not _given(context, "qps"):
        if not (math.isfinite(speedup) and speedup > 0):
            raise InvalidSettingError(f"speedup must be above 0, not {speedup}")
        qps = trace.queries.qps * speedup
    elif _given(context, "speedup"):
        raise InvalidSettingError("give a trace --qps or --speedup, not both")
    if not _given(context, "duration"):
        duration_s = _rest(trace, qps, warmup_s)
    return Replay(trace, models or tuple(map(ModelShare, trace.queries.models)), qps, duration_s)


def _rest(trace: TraceFile, qps: float, warmup_s: float) -> float:
    """Return the seconds of the whole trace after the warm-up."""
    whole_s = len(trace.queries) / qps if qps > 0 else math.inf
    if not whole_s > warmup_s:
        raise InvalidSettingError(
            f"{trace.path} lasts {whole_s:.3g} s at {qps:.3g} queries/s, the warm-up alone {warmup_s:g} s: "
            "give a shorter --warmup, or a --duration over which the trace repeats"
        )
    return whole_s - warmup_s


def _given(context: typer.Context, option: str) -> bool:
    """Return whether the option was given, rather than left at its default."""
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"
