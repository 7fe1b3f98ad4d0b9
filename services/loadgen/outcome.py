"""From what a run recorded to its result: the measured window, the figures of each model, and whether they count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.measure import Sla, percentiles, shortfall, summarise
from services.loadgen.drivers import Driven
from services.loadgen.recording import Trace, code_name
from services.loadgen.result import DriverReport, LoadResult, ModelResult, PoolReport, Samples
from services.loadgen.settings import LoadSettings
from services.loadgen.traffic import Lane, Traffic
from services.machine import describe_machine

LAG_SHARE = 0.1
LAG_FLOOR_S = 0.002
"""A run is invalid when the p99 of the send lag exceeds this share of the target, but never below the floor, which
an operating system with other work does not always keep. The lag is part of every latency, so what stays below
the limit makes the result worse, not better."""


@dataclass(frozen=True, eq=False)
class Finished:
    """A run that is over: its rate, its models, what was sent, and what came back."""

    settings: LoadSettings
    qps: float
    lanes: Sequence[Lane]
    traffic: Traffic
    driven: Driven


def result_of(run: Finished) -> LoadResult:
    """Return what a run found."""
    trace = run.driven.trace
    window = _window(run.settings, trace)
    inside = (trace.scheduled_s >= window[0]) & (trace.scheduled_s < window[1]) & ~np.isnan(trace.lag_s)
    p50_s, p99_s, max_s = percentiles(trace.lag_s[inside], 50, 99, 100) if inside.any() else (0.0,) * 3
    machine = describe_machine()
    driver = DriverReport(
        processes=run.driven.processes,
        before_others=run.driven.before_others,
        lag_p50_s=p50_s,
        lag_p99_s=p99_s,
        lag_max_s=max_s,
        cpu_s=trace.cpu_s,
        wall_s=trace.wall_s,
        cpu_share=trace.cpu_s / (trace.wall_s * machine.cores) if trace.wall_s else 0.0,
    )
    models = tuple(_model(run, lane, window, p99_s) for lane in run.lanes)
    return LoadResult(run.settings, run.qps, machine, models, driver, trace.cut_short)


def _window(settings: LoadSettings, trace: Trace) -> tuple[float, float]:
    """Return the measured window; of a closed loop and of a run cut short it ends with the last answer."""
    start_s = settings.warmup_s
    end_s = start_s + settings.duration_s
    done_s = trace.scheduled_s + trace.latency_s
    last_s = float(np.max(done_s, initial=0.0, where=np.isfinite(done_s)))
    if settings.concurrency is not None:
        return start_s, max(start_s, last_s)
    return (start_s, end_s) if trace.cut_short is None else (start_s, max(start_s, min(end_s, trace.wall_s)))


def _model(run: Finished, lane: Lane, window: tuple[float, float], lag_p99_s: float) -> ModelResult:
    trace = run.driven.trace
    mine = run.traffic.lane[trace.query] == lane.index
    size = run.traffic.size[trace.query][mine]
    samples = Samples(trace.scheduled_s[mine], trace.latency_s[mine], size, trace.code[mine])
    inside = (samples.scheduled_s >= window[0]) & (samples.scheduled_s < window[1])
    measurement = summarise(
        lane.sla,
        samples.scheduled_s,
        samples.latency_s,
        size,
        window=window,
        min_count=run.settings.min_queries,
        invalid=_cut(trace) or _fell_behind(lane.sla, lag_p99_s),
    )
    return ModelResult(
        model=lane.share.name,
        version=lane.share.version or (lane.model.versions[0] if lane.model.versions else ""),
        sla=lane.sla,
        qps=run.qps * lane.part,
        measurement=measurement,
        shortfall=shortfall(measurement, lane.sla),
        codes={code_name(c): n for c, n in sorted(Counter(samples.code[inside].tolist()).items())},
        pool=pool_report(lane),
        samples=samples,
    )


def _cut(trace: Trace) -> str | None:
    return None if trace.cut_short is None else f"cut short after {trace.wall_s:.1f} s: {trace.cut_short}"


def _fell_behind(sla: Sla, lag_p99_s: float) -> str | None:
    limit_s = max(LAG_SHARE * sla.seconds, LAG_FLOOR_S)
    if lag_p99_s <= limit_s:
        return None
    late, limit = f"{lag_p99_s * 1e3:.3g} ms", f"{limit_s * 1e3:.3g} ms"
    return f"the driver fell behind: 1 % of the queries left over {late} late, {limit} allowed"


def pool_report(lane: Lane) -> PoolReport:
    """Return what is to be known of a model's requests."""
    pool = lane.pool
    return PoolReport(
        len(pool.payloads),
        pool.payload_bytes,
        pool.distinct_candidates,
        pool.id_references,
        lane.max_size,
        pool.locality,
    )
