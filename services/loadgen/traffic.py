"""The queries of a run: each model's schedule and requests, and all of them merged by arrival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deeprecsys.errors import InvalidSettingError, UnavailableError
from deeprecsys.v1 import rank_pb2
from scheduler.measure import Sla
from scheduler.sizes import I32Array
from scheduler.workload import Schedule, draw_schedule
from services.loadgen.driver import Plan
from services.loadgen.recorded_requests import NOTHING_RECORDED, recorded_requests
from services.loadgen.request_pool import RequestPool, build_pool, largest_size
from services.loadgen.settings import Laws, LoadSettings, ModelShare
from services.loadgen.trace_file import TraceFile


@dataclass(frozen=True, eq=False)
class Lane:
    """One model of a run: what the server says of it, its target, its part of the rate, its laws and its requests.

    ``request_of``: int32, for each file of inputs of a trace its recorded request in the pool, or -1.
    """

    index: int
    share: ModelShare
    model: rank_pb2.Model
    sla: Sla
    part: float
    max_size: int
    laws: Laws
    pool: RequestPool
    request_of: I32Array


def make_lane(settings: LoadSettings, index: int, model: rank_pb2.Model, pool_queries: int | None) -> Lane:
    """Build the requests of one model for ``pool_queries`` sizes, or for the queries of a run at ``settings.qps``.

    Raises UnavailableError for a model that is not ready, and InvalidSettingError for settings that do not fit it.
    """
    share = settings.models[index]
    if not model.ready:
        raise UnavailableError(
            f"{share.name} is not ready: {model.unready_reason or 'the server gives no reason'}"
        )
    part = settings.part(index)
    laws = settings.read_laws()
    max_size = largest_size(model, settings.users)
    budget_bytes = settings.pool_bytes // len(settings.models)
    if settings.trace is None:
        recorded = NOTHING_RECORDED
        sizes = _drawn(settings, laws, index, settings.qps * part, max_size, count=pool_queries).size
    else:
        recorded = recorded_requests(
            settings.trace, model, version=share.version, max_size=max_size, budget_bytes=budget_bytes
        )
        sizes = _sizes_to_draw(settings.trace, share.name, max_size)
    pool = build_pool(
        model,
        sizes,
        seed=[settings.seed, index, 1],
        ids=laws.ids,
        users=settings.users,
        budget_bytes=budget_bytes - sum(map(len, recorded.payloads)),
        version=share.version,
    ).with_recorded(recorded.payloads, recorded.size)
    return Lane(index, share, model, _sla(settings, model), part, max_size, laws, pool, recorded.request_of)


def _sizes_to_draw(trace: TraceFile, model: str, max_size: int) -> I32Array:
    """Return the sizes of the queries whose inputs were not recorded."""
    rows = trace.queries.rows(model)
    return np.minimum(trace.queries.size[rows[trace.inputs_of[rows] < 0]], np.int32(max_size))


def _sla(settings: LoadSettings, model: rank_pb2.Model) -> Sla:
    percentile = model.sla.percentile or 95.0
    seconds = settings.sla_s or model.sla.seconds
    if not seconds > 0:
        raise InvalidSettingError(f"the server gives no target for {model.name}: set one")
    return Sla(percentile, seconds)


def _drawn(
    settings: LoadSettings, laws: Laws, index: int, qps: float, max_size: int, *, count: int | None = None
) -> Schedule:
    """Draw a model's queries: ``count`` of them, or those of warm-up and measured window."""
    duration_s = None if count is not None else settings.warmup_s + settings.duration_s
    seed = [settings.seed, index]
    try:
        return draw_schedule(
            seed, laws.arrivals, laws.sizes, qps, duration_s=duration_s, count=count, max_size=max_size
        )
    except ValueError as error:
        raise InvalidSettingError(str(error)) from error


def _queries(
    settings: LoadSettings, lane: Lane, qps: float, count: int | None
) -> tuple[Schedule, NDArray[np.int64]]:
    """Return a model's queries when all models together have ``qps``, and the index of each one's request."""
    if settings.trace is None:
        its = None if count is None else max(1, round(count * lane.part))
        schedule = _drawn(settings, lane.laws, lane.index, qps * lane.part, lane.max_size, count=its)
        return schedule, lane.pool.assign(schedule.size)
    duration_s = settings.warmup_s + settings.duration_s
    try:
        schedule, row = settings.trace.queries.replay(lane.share.name, qps, duration_s, lane.max_size)
    except ValueError as error:
        raise InvalidSettingError(str(error)) from error
    # The entry at the end is for those at -1, whose inputs are drawn.
    recorded = np.append(lane.request_of, np.int32(-1))[settings.trace.inputs_of[row]]
    return schedule, lane.pool.assign(schedule.size, recorded)


@dataclass(frozen=True, eq=False)
class Traffic:
    """The merged queries of all models: ``plan`` [Q] by arrival, and for each query its lane and size."""

    plan: Plan
    lane: NDArray[np.int64]
    size: I32Array


def draw_traffic(
    settings: LoadSettings,
    lanes: Sequence[Lane],
    payloads: tuple[bytes, ...],
    qps: float,
    *,
    count: int | None = None,
) -> Traffic:
    """Draw or replay every model's queries, give each a request of its size or its own, and merge them by arrival.

    payloads: all requests, lane by lane. count: how many queries, those of the settings when None; a trace has its own.
    """
    count = settings.count if count is None else count
    arrival_s, request, lane_of, size = [], [], [], []
    offset = 0
    for lane in lanes:
        schedule, chosen = _queries(settings, lane, qps, count)
        arrival_s.append(schedule.arrival_s)
        request.append(chosen + offset)
        lane_of.append(np.full(len(schedule), lane.index))
        size.append(lane.pool.size[chosen])
        offset += len(lane.pool.payloads)
    merged_s = np.concatenate(arrival_s)
    order = np.argsort(merged_s, kind="stable")
    plan = Plan(merged_s[order], np.concatenate(request)[order], payloads)
    return Traffic(plan, np.concatenate(lane_of)[order], np.concatenate(size)[order])
