"""Load from its settings to its result: one run, several rates, and the search for the highest rate in a target."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from deeprecsys.errors import InvalidSettingError
from scheduler.measure import Capacity, Measurement, Probe, max_qps, shortfall
from services.loadgen.driver import OnProgress
from services.loadgen.loop import precise_loop
from services.loadgen.result import LoadResult, MaxResult, SweepResult
from services.loadgen.service import Service
from services.loadgen.session import LoadSession, open_session
from services.loadgen.settings import LoadSettings
from services.machine import describe_machine

MANY_RATES_POOL_QUERIES = 4096
"""The requests of runs at several rates are drawn once for all of them, from so many sizes."""

STOPPED = "stopped by the user"


def run_load(
    settings: LoadSettings, on_progress: OnProgress | None = None, *, service: Service | None = None
) -> LoadResult:
    """Drive one run and return its result; on the main thread Ctrl-C ends it early and keeps what was measured.

    service: what is driven; None for the RankService at ``settings.target``. Raises InvalidSettingError for settings
    that do not fit the models, and the RankError of the first call when the server or a model does not answer.
    """

    async def once() -> LoadResult:
        async with open_session(settings, service=service) as session:
            return await session.run(on_progress=on_progress)

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        return runner.run(once())


def sweep(
    settings: LoadSettings,
    rates: Sequence[float],
    *,
    on_point: Callable[[LoadResult], None] | None = None,
    on_progress: OnProgress | None = None,
    service: Service | None = None,
) -> SweepResult:
    """Drive a run at each of the rates (queries/s, over all models), with the same requests.

    Ctrl-C ends the sweep with the run that it cuts short. Raises what ``run_load`` raises, and InvalidSettingError for
    rates that are none or a closed loop.
    """
    if not rates or settings.concurrency is not None:
        raise InvalidSettingError("a sweep takes at least one rate, in open loop")
    points: list[LoadResult] = []
    with _session(settings, service) as (runner, session):
        for qps in rates:
            points.append(runner.run(session.run(qps, on_progress=on_progress)))
            if on_point is not None:
                on_point(points[-1])
            if session.stopped:
                break
    return SweepResult(settings, describe_machine(), tuple(points), STOPPED if session.stopped else None)


class _StoppedError(Exception):
    """The run that a search was at has been ended with Ctrl-C."""


def find_max(
    settings: LoadSettings,
    *,
    tolerance: float = 0.02,
    max_probes: int = 24,
    stride: float = 2.0,
    floor_qps: float | None = None,
    on_probe: Callable[[Probe], None] | None = None,
    on_progress: OnProgress | None = None,
    service: Service | None = None,
) -> MaxResult:
    """Search the highest rate at which the one model meets its target, from ``settings.qps``, as ``max_qps`` does.

    Ctrl-C ends the search and keeps the probes that were finished. Raises what ``run_load`` raises, and
    InvalidSettingError for several models or a closed loop.
    """
    if len(settings.models) != 1 or settings.concurrency is not None:
        raise InvalidSettingError("the search for the highest rate takes one model, in open loop")
    runs: dict[float, LoadResult] = {}
    probes: list[Probe] = []
    cut_short: str | None = None
    with _session(settings, service) as (runner, session):
        sla = session.lanes[0].sla

        def measure(qps: float) -> Measurement:
            result = runner.run(session.run(qps, on_progress=on_progress))
            if session.stopped:
                raise _StoppedError
            runs[qps] = result
            measurement = result.models[0].measurement
            probes.append(Probe(qps, measurement, shortfall(measurement, sla)))
            if on_probe is not None:
                on_probe(probes[-1])
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
        except _StoppedError:
            cut_short = STOPPED
            capacity = _so_far(probes)
    name = settings.models[0].name
    return MaxResult(settings, describe_machine(), name, sla, capacity, runs.get(capacity.qps), cut_short)


def _so_far(probes: Sequence[Probe]) -> Capacity:
    """Return what a search knows that was stopped: the highest rate that met the target, if any did."""
    why = f"the search was {STOPPED} after {len(probes)} probes"
    met = max((probe for probe in probes if probe.shortfall is None), key=lambda p: p.qps, default=None)
    if met is None:
        return Capacity(0.0, None, tuple(probes), why)
    return Capacity(met.qps, met.measurement, tuple(probes), why)


@contextmanager
def _session(settings: LoadSettings, service: Service | None) -> Iterator[tuple[asyncio.Runner, LoadSession]]:
    """Yield a session for runs at several rates, and what runs them."""
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        opened = open_session(settings, pool_queries=MANY_RATES_POOL_QUERIES, service=service)
        session = runner.run(opened.__aenter__())
        try:
            yield runner, session
        finally:
            runner.run(opened.__aexit__(None, None, None))
