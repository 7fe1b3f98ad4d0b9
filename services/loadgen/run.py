"""One load run from its settings to its result, and the search for the highest rate within a target."""

from __future__ import annotations

import asyncio
import selectors
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray

from deeprecsys.client import AsyncRankClient
from deeprecsys.errors import InternalError, InvalidSettingError, UnavailableError
from deeprecsys.status import to_error
from deeprecsys.v1 import rank_pb2
from scheduler.measure import Measurement, Probe, Sla, max_qps, percentiles, shortfall, summarise
from scheduler.workload import I32Array, Schedule, draw_schedule, parse_arrivals, parse_ids, parse_sizes
from services.loadgen.driver import Limits, Plan, Progress, Trace, code_name, drive_closed, drive_open
from services.loadgen.precedence import before_others
from services.loadgen.request_pool import RequestPool, build_pool, largest_size
from services.loadgen.result import DriverReport, LoadResult, MaxResult, ModelResult, PoolReport, Samples
from services.loadgen.settings import LoadSettings, ModelShare
from services.loadgen.transport import GrpcTransport, SendFailedError
from services.machine import describe_machine

OnProgress = Callable[[Progress], None]

CONNECT_TIMEOUT_S = 10.0
FIRST_ANSWER_TIMEOUT_S = 60.0
SEARCH_POOL_QUERIES = 4096
"""A search's pool is drawn once for all rates, from so many sizes."""

LAG_SHARE = 0.1
LAG_FLOOR_S = 0.002
"""A run is invalid when the p99 of the send lag exceeds this share of the target, but never below the floor, which
an operating system with other work does not always keep. The lag is part of every latency, so what stays below
the limit makes the result worse, not better."""


def run_load(settings: LoadSettings, on_progress: OnProgress | None = None) -> LoadResult:
    """Drive one run and return its result; on the main thread Ctrl-C ends it early and keeps what was measured.

    Raises InvalidSettingError for settings that do not fit the models, and the RankError of the first call when the
    server or a model does not answer.
    """

    async def once() -> LoadResult:
        async with open_session(settings) as session:
            return await session.run(on_progress=on_progress)

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        return runner.run(once())


def find_max(
    settings: LoadSettings,
    *,
    tolerance: float = 0.02,
    max_probes: int = 24,
    stride: float = 2.0,
    floor_qps: float | None = None,
    on_probe: Callable[[Probe], None] | None = None,
    on_progress: OnProgress | None = None,
) -> MaxResult:
    """Search the highest rate at which the one model meets its target, from ``settings.qps``, as ``max_qps`` does.

    Raises what ``run_load`` raises, InvalidSettingError for several models or a closed loop, and KeyboardInterrupt
    when a run was ended with Ctrl-C.
    """
    if len(settings.models) != 1 or settings.concurrency is not None:
        raise InvalidSettingError("the search for the highest rate takes one model, in open loop")
    runs: dict[float, LoadResult] = {}
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        opened = open_session(settings, pool_queries=SEARCH_POOL_QUERIES)
        session = runner.run(opened.__aenter__())
        sla = session.lanes[0].sla

        def measure(qps: float) -> Measurement:
            result = runs[qps] = runner.run(session.run(qps, on_progress=on_progress))
            if result.cut_short is not None and session.stopped:
                raise KeyboardInterrupt
            measurement = result.models[0].measurement
            if on_probe is not None:
                on_probe(Probe(qps, measurement, shortfall(measurement, sla)))
            return measurement

        try:
            capacity = max_qps(
                measure,
                sla,
                settings.qps,
                tolerance=tolerance,
                max_probes=max_probes,
                stride=stride,
                floor_qps=floor_qps,
                confirm_miss=True,
            )
        finally:
            runner.run(opened.__aexit__(None, None, None))
    name = settings.models[0].name
    return MaxResult(settings, describe_machine(), name, sla, capacity, runs.get(capacity.qps))


def precise_loop() -> asyncio.AbstractEventLoop:
    """Return a loop whose timers keep microseconds."""
    # epoll and poll wait in whole milliseconds, rounded up, which would send nearly every query late; select waits
    # in microseconds, and a driver has few enough files open for it.
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


@dataclass(frozen=True, eq=False)
class Lane:
    """One model of a run: what the server says of it, its target, its part of the rate and its requests."""

    index: int
    share: ModelShare
    model: rank_pb2.Model
    sla: Sla
    part: float
    max_size: int
    pool: RequestPool


@asynccontextmanager
async def open_session(
    settings: LoadSettings, *, pool_queries: int | None = None
) -> AsyncIterator[LoadSession]:
    """Connect, ask for the models, build their requests and check that each model answers one.

    pool_queries: how many sizes to draw the requests for; None for just the queries of a run at ``settings.qps``.
    """
    async with AsyncRankClient(settings.target, timeout_s=CONNECT_TIMEOUT_S) as client:
        models = [await client.model(share.name, version=share.version) for share in settings.models]
    lanes = [_lane(settings, k, model, pool_queries) for k, model in enumerate(models)]
    transport = GrpcTransport(settings.target, settings.channels)
    try:
        for lane in lanes:
            await _check_answer(transport, lane)
        yield LoadSession(settings, lanes, transport)
    finally:
        await transport.close()


def _lane(settings: LoadSettings, index: int, model: rank_pb2.Model, pool_queries: int | None) -> Lane:
    share = settings.models[index]
    if not model.ready:
        raise UnavailableError(
            f"{share.name} is not ready: {model.unready_reason or 'the server gives no reason'}"
        )
    part = share.weight / sum(m.weight for m in settings.models)
    max_size = largest_size(model, settings.users)
    sizes = _schedule(settings, index, settings.qps * part, max_size, count=pool_queries).size
    pool = build_pool(
        model,
        sizes,
        seed=[settings.seed, index, 1],
        ids=parse_ids(settings.ids),
        users=settings.users,
        budget_bytes=settings.pool_bytes // len(settings.models),
        version=share.version,
    )
    return Lane(index, share, model, _sla(settings, model), part, max_size, pool)


def _sla(settings: LoadSettings, model: rank_pb2.Model) -> Sla:
    percentile = model.sla.percentile or 95.0
    seconds = settings.sla_s or model.sla.seconds
    if not seconds > 0:
        raise InvalidSettingError(f"the server gives no target for {model.name}: set one")
    return Sla(percentile, seconds)


def _schedule(
    settings: LoadSettings, index: int, qps: float, max_size: int, *, count: int | None = None
) -> Schedule:
    """Draw a model's queries: ``count`` of them, or those of warm-up and measured window."""
    duration_s = None if count is not None else settings.warmup_s + settings.duration_s
    return draw_schedule(
        [settings.seed, index],
        parse_arrivals(settings.arrivals),
        parse_sizes(settings.sizes),
        qps,
        duration_s=duration_s,
        count=count,
        max_size=max_size,
    )


async def _check_answer(transport: GrpcTransport, lane: Lane) -> None:
    """Send the smallest request once, so that a run never measures a server that answers something else."""
    try:
        answer = await transport.send(lane.pool.payloads[0], FIRST_ANSWER_TIMEOUT_S)
    except SendFailedError as failure:
        if isinstance(failure.__cause__, grpc.RpcError):
            raise to_error(failure.__cause__) from failure
        raise
    shape = list(rank_pb2.RankResponse.FromString(answer).scores.shape)
    size = int(lane.pool.size[0])
    if not shape or shape[0] != size:
        raise InternalError(f"{lane.share.name} answered {size} candidates with scores of shape {shape}")


@dataclass(frozen=True, eq=False)
class Traffic:
    """The merged queries of all models: ``plan`` [Q] by arrival, and for each query its lane and size."""

    plan: Plan
    lane: NDArray[np.int64]
    size: I32Array


@dataclass(frozen=True, eq=False)
class _Driven:
    """A run that is over: its rate, what was sent, what came back, the measured window and the p99 of the send lag."""

    qps: float
    traffic: Traffic
    trace: Trace
    window: tuple[float, float]
    lag_p99_s: float


class LoadSession:
    """Connections, models and requests, kept over runs at one or several rates. Made by ``open_session``."""

    def __init__(self, settings: LoadSettings, lanes: list[Lane], transport: GrpcTransport) -> None:
        self.settings = settings
        self.lanes = lanes
        self.stopped = False
        self._transport = transport

    async def run(self, qps: float | None = None, *, on_progress: OnProgress | None = None) -> LoadResult:
        """Drive one run at ``qps`` (the settings' when None) and return its result."""
        qps = self.settings.qps if qps is None else qps
        traffic = self._traffic(qps)
        stop = asyncio.Event()
        with _set_on_interrupt(stop), before_others():
            trace = await self._drive(traffic.plan, stop, on_progress)
        self.stopped = stop.is_set()
        return self._result(qps, traffic, trace)

    async def _drive(self, plan: Plan, stop: asyncio.Event, on_progress: OnProgress | None) -> Trace:
        s = self.settings
        drain_s = max(2.0, 10 * max(lane.sla.seconds for lane in self.lanes))
        limits = Limits(deadline_s=s.deadline_s, drain_s=drain_s, unavailable_limit=s.unavailable_limit)
        if s.concurrency is None:
            return await drive_open(plan, self._transport, limits, stop=stop, on_progress=on_progress)
        return await drive_closed(
            plan, self._transport, s.concurrency, limits, stop=stop, on_progress=on_progress
        )

    def _traffic(self, qps: float) -> Traffic:
        """Draw every model's schedule, give each query a request of its size, and merge them by arrival."""
        arrival_s, request, lanes, size = [], [], [], []
        offset = 0
        for lane in self.lanes:
            closed = self.settings.count
            count = None if closed is None else max(1, round(closed * lane.part))
            schedule = _schedule(self.settings, lane.index, qps * lane.part, lane.max_size, count=count)
            chosen = lane.pool.assign(schedule.size)
            arrival_s.append(schedule.arrival_s)
            request.append(chosen + offset)
            lanes.append(np.full(len(schedule), lane.index))
            size.append(lane.pool.size[chosen])
            offset += len(lane.pool.payloads)
        payloads = tuple(p for lane in self.lanes for p in lane.pool.payloads)
        merged_s = np.concatenate(arrival_s)
        order = np.argsort(merged_s, kind="stable")
        plan = Plan(merged_s[order], np.concatenate(request)[order], payloads)
        return Traffic(plan, np.concatenate(lanes)[order], np.concatenate(size)[order])

    # --- from the trace to the result ---

    def _result(self, qps: float, traffic: Traffic, trace: Trace) -> LoadResult:
        window = self._window(trace)
        inside = (trace.scheduled_s >= window[0]) & (trace.scheduled_s < window[1]) & ~np.isnan(trace.lag_s)
        p50_s, p99_s, max_s = percentiles(trace.lag_s[inside], 50, 99, 100) if inside.any() else (0.0,) * 3
        machine = describe_machine()
        cpu_share = trace.cpu_s / (trace.wall_s * machine.cores) if trace.wall_s else 0.0
        driver = DriverReport(p50_s, p99_s, max_s, trace.cpu_s, trace.wall_s, cpu_share)
        driven = _Driven(qps, traffic, trace, window, p99_s)
        models = tuple(self._model(lane, driven) for lane in self.lanes)
        return LoadResult(self.settings, qps, machine, models, driver, trace.cut_short)

    def _window(self, trace: Trace) -> tuple[float, float]:
        """Return the measured window; of a closed loop and of a run cut short it ends with the last answer."""
        start_s = self.settings.warmup_s
        end_s = start_s + self.settings.duration_s
        done_s = trace.scheduled_s + trace.latency_s
        last_s = float(np.max(done_s, initial=0.0, where=np.isfinite(done_s)))
        if self.settings.concurrency is not None:
            return start_s, max(start_s, last_s)
        return (
            (start_s, end_s) if trace.cut_short is None else (start_s, max(start_s, min(end_s, trace.wall_s)))
        )

    def _model(self, lane: Lane, run: _Driven) -> ModelResult:
        mine = run.traffic.lane[run.trace.query] == lane.index
        trace, size = run.trace, run.traffic.size[run.trace.query][mine]
        samples = Samples(trace.scheduled_s[mine], trace.latency_s[mine], size, trace.code[mine])
        inside = (samples.scheduled_s >= run.window[0]) & (samples.scheduled_s < run.window[1])
        measurement = summarise(
            lane.sla,
            samples.scheduled_s,
            samples.latency_s,
            size,
            window=run.window,
            min_count=self.settings.min_queries,
            invalid=_cut(trace) or _fell_behind(lane.sla, run.lag_p99_s),
        )
        return ModelResult(
            model=lane.share.name,
            version=lane.share.version or (lane.model.versions[0] if lane.model.versions else ""),
            sla=lane.sla,
            qps=run.qps * lane.part,
            measurement=measurement,
            shortfall=shortfall(measurement, lane.sla),
            codes={code_name(c): n for c, n in sorted(Counter(samples.code[inside].tolist()).items())},
            pool=_pool_report(lane),
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


def _pool_report(lane: Lane) -> PoolReport:
    pool = lane.pool
    return PoolReport(
        len(pool.payloads), pool.payload_bytes, pool.distinct_candidates, pool.id_references, lane.max_size
    )


@contextmanager
def _set_on_interrupt(stop: asyncio.Event) -> Iterator[None]:
    """Let Ctrl-C set the event instead of raising; only the main thread can receive it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
