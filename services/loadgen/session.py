"""A service that is connected and whose requests are built, for runs at one or several rates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc

from deeprecsys.errors import InternalError
from deeprecsys.status import to_error
from services.loadgen.driver import Limits, OnProgress
from services.loadgen.drivers import Drivers, open_drivers
from services.loadgen.interrupt import raise_on_interrupt, set_on_interrupt
from services.loadgen.outcome import Finished, result_of
from services.loadgen.result import LoadResult
from services.loadgen.service import Service, rank_service
from services.loadgen.settings import LoadSettings
from services.loadgen.traffic import Lane, draw_traffic, make_lane
from services.loadgen.transport import FIRST_ANSWER_TIMEOUT_S, SendFailedError, Transport


class LoadSession:
    """Connections, models and requests, kept over runs at one or several rates. Made by ``open_session``.

    payloads: the requests as they are sent, lane by lane. ``stopped``: whether the latest run was ended with Ctrl-C.
    """

    def __init__(
        self,
        settings: LoadSettings,
        lanes: Sequence[Lane],
        payloads: tuple[bytes, ...],
        drivers: Drivers,
    ) -> None:
        self.settings = settings
        self.lanes = lanes
        self.stopped = False
        self.payloads = payloads
        self._drivers = drivers

    async def run(self, qps: float | None = None, *, on_progress: OnProgress | None = None) -> LoadResult:
        """Drive one run at ``qps`` (the settings' when None) and return its result."""
        s = self.settings
        qps = s.qps if qps is None else qps
        traffic = draw_traffic(s, self.lanes, self.payloads, qps)
        drain_s = max(2.0, 10 * max(lane.sla.seconds for lane in self.lanes))
        limits = Limits(deadline_s=s.deadline_s, drain_s=drain_s, unavailable_limit=s.unavailable_limit)
        stop = asyncio.Event()
        with set_on_interrupt(stop):
            driven = await self._drivers.drive(
                traffic.plan, limits, concurrency=s.concurrency, stop=stop, on_progress=on_progress
            )
        self.stopped = stop.is_set()
        return result_of(Finished(s, qps, self.lanes, traffic, driven))


@asynccontextmanager
async def open_session(
    settings: LoadSettings, *, pool_queries: int | None = None, service: Service | None = None
) -> AsyncIterator[LoadSession]:
    """Connect, ask for the models, build their requests and check that each model answers one.

    pool_queries: how many sizes to draw the requests for; None for just the queries of a run at ``settings.qps``.
    service: what is driven; None for the RankService at ``settings.target``.
    """
    service = service or rank_service(settings.target, settings.channels)
    models = await service.models(settings.models)
    with raise_on_interrupt():
        lanes = [make_lane(settings, k, model, pool_queries) for k, model in enumerate(models)]
        payloads = tuple(service.encode(payload) for lane in lanes for payload in lane.pool.payloads)
    async with service.connect() as transport:
        first = 0
        for lane in lanes:
            await _check_answer(service, transport, lane, payloads[first])
            first += len(lane.pool.payloads)
        async with open_drivers(settings.drivers, transport, service.connect, payloads) as drivers:
            yield LoadSession(settings, lanes, payloads, drivers)


async def _check_answer(service: Service, transport: Transport, lane: Lane, smallest: bytes) -> None:
    """Send the smallest request once, so that a run never measures a server that answers something else."""
    try:
        answer = await transport.send(smallest, FIRST_ANSWER_TIMEOUT_S)
    except SendFailedError as failure:
        if isinstance(failure.__cause__, grpc.RpcError):
            raise to_error(failure.__cause__) from failure
        raise
    scores, size = service.count_scores(answer), int(lane.pool.size[0])
    if scores != size:
        raise InternalError(f"{lane.share.name} answered {size} candidates with {scores} scores")
