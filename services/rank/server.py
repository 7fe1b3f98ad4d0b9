"""The Rank server's life, top to bottom: listen, load, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from deeprecsys.errors import InvalidSettingError
from deeprecsys.v1 import control_pb2, control_pb2_grpc, rank_pb2, rank_pb2_grpc
from scheduler.batching import Batcher
from scheduler.controller import Controller
from scheduler.plan import POLICIES, Plan
from services.cores import usable_cores
from services.rank.catalogue import Catalogue, ServedModel
from services.rank.control_servicer import ControlServicer
from services.rank.dispatcher import Dispatcher, Observer
from services.rank.http_pages import HttpPort, Readiness, pages
from services.rank.learnt_points import LearntPoints
from services.rank.loading import load_all
from services.rank.metrics import Metrics
from services.rank.offloading import Offloader
from services.rank.repository import model_directories
from services.rank.servicer import RankServicer
from services.rank.settings import ServeSettings
from services.rank.starting_point import starting_point
from services.rank.state_metrics import StateMetrics
from services.rank.steering import Steering
from services.rank.triton_link import Bounds

_log = logging.getLogger(__name__)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SPARE_CALLS = 256
"""Calls beside queries, such as health checks, that are answered while the server is full."""
LATE_CALLS_S = 0.1
LATE_CALLS_AT_MOST_S = 5.0


async def serve(
    settings: ServeSettings,
    on_listening: Callable[[str], None],
    stop: asyncio.Event,
    observers: Sequence[Observer] = (),
) -> None:
    """Serve until ``stop`` is set, then drain and return.

    ``on_listening`` gets host:port once every model is ready; ``observers`` are the dispatcher's. Raises
    InvalidSettingError for an address that cannot be had, RepositoryError when no model can be served.
    """
    directories = model_directories(settings.repository)
    workers = settings.workers or usable_cores()
    batcher = Batcher(workers, POLICIES[settings.policy], settings.max_waiting)
    controller = Controller(workers)
    learnt = LearntPoints(settings.state_dir)
    steering = Steering(controller, batcher, learnt)
    offloader = _offloader(settings, steering)
    metrics = None if settings.metrics_port is None else Metrics(workers)
    observers = [controller, *observers] if metrics is None else [controller, metrics, *observers]
    dispatcher = Dispatcher(batcher, workers, settings.max_queries, observers, offloader)
    readiness = Readiness("the models are loading")

    def add(model: ServedModel, timed: Plan) -> Plan:
        start = starting_point(settings, model.spec, timed, learnt, workers)
        steering.add(model.spec, start.plan, start.plan.point if start.pinned else None)
        if offloader is not None:
            offloader.add(model)
        if metrics is not None:
            metrics.add(model.spec)
        return start.plan

    async with AsyncExitStack() as opened:
        opened.push_async_callback(dispatcher.close)
        if offloader is not None:
            opened.push_async_callback(offloader.close)
        opened.push_async_callback(steering.close)
        catalogue = Catalogue(_limits(settings))
        servicer = RankServicer(catalogue, dispatcher, settings.max_candidates, metrics)
        healths = health.aio.HealthServicer()
        await healths.set("", NOT_SERVING)
        control = ControlServicer(catalogue, steering, controller, batcher, offloader)
        server, address = _listen(settings, servicer, control, healths)
        await server.start()
        opened.push_async_callback(server.stop, 0)
        if metrics is not None and settings.metrics_port is not None:
            state = StateMetrics(catalogue, steering, controller, batcher, dispatcher, offloader)
            metrics.registry.register(state)
            http = _open_pages(settings.metrics_host, settings.metrics_port, metrics, readiness)
            opened.push_async_callback(http.close)
        loading = load_all(
            directories,
            catalogue,
            settings,
            add,
            lambda name, ready: healths.set(name, SERVING if ready else NOT_SERVING),
        )
        if await _unless(stop, loading):
            await healths.set("", SERVING)
            readiness.reason = ""
            serving = {"address": address, "workers": workers, "policy": settings.policy}
            serving["accelerator"] = ", ".join(settings.triton) or "none is configured: CPU only"
            _log.info("serving", extra=serving)
            on_listening(address)
            await stop.wait()
        readiness.reason = "the server is draining"
        await _drain(server, servicer, dispatcher, healths, settings.drain_s)


def _offloader(settings: ServeSettings, steering: Steering) -> Offloader | None:
    """Return what offloads to the Triton servers of the settings; None when there are none."""
    if not settings.triton:
        return None
    bounds = Bounds(settings.triton_queries, settings.triton_bytes, settings.triton_shared_memory)
    return Offloader(settings.triton, steering.set_accelerator, bounds, tolerance=settings.triton_tolerance)


def _open_pages(host: str, port: int, metrics: Metrics, readiness: Readiness) -> HttpPort:
    served = pages(metrics.registry, readiness)
    http = HttpPort(host, port, served)
    _log.info("metrics", extra={"address": http.address, "pages": " ".join(served)})
    return http


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do the work unless ``stop`` comes first; return whether it is done."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if working.done():
        await working
        return True
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working
    return False


async def _drain(
    server: grpc.aio.Server,
    servicer: RankServicer,
    dispatcher: Dispatcher,
    healths: health.aio.HealthServicer,
    drain_s: float,
) -> None:
    """Tell the health checkers first, then take no new query and finish those in flight, within ``drain_s``."""
    _log.info("draining", extra={"in_flight": dispatcher.in_flight, "at_most_s": drain_s})
    await healths.enter_graceful_shutdown()
    servicer.draining = True
    try:
        async with asyncio.timeout(drain_s):
            await dispatcher.drained()
    except TimeoutError:
        _log.warning("drain ran out of time", extra={"given_up": dispatcher.in_flight})
    await _refuse_late_calls(servicer, min(drain_s, LATE_CALLS_AT_MOST_S))
    # Answers that are ready are still being written: the server's own grace lets them go.
    await server.stop(min(1.0, drain_s))
    _log.info("stopped")


async def _refuse_late_calls(servicer: RankServicer, at_most_s: float) -> None:
    """Wait until no new query comes: those that gRPC still holds are refused by us, not cancelled by its stop."""
    with suppress(TimeoutError):
        async with asyncio.timeout(at_most_s):
            seen = -1
            while servicer.calls != seen:
                seen = servicer.calls
                await asyncio.sleep(LATE_CALLS_S)


def _limits(settings: ServeSettings) -> rank_pb2.Model:
    return rank_pb2.Model(
        max_candidates=settings.max_candidates,
        max_request_bytes=settings.max_message_bytes,
        max_response_bytes=settings.max_message_bytes,
    )


def _listen(
    settings: ServeSettings,
    servicer: RankServicer,
    control: ControlServicer,
    healths: health.aio.HealthServicer,
) -> tuple[grpc.aio.Server, str]:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.so_reuseport", 0),  # a busy port is an error, not a silent share of somebody else's queries
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=settings.max_queries + SPARE_CALLS)
    rank_pb2_grpc.add_RankServiceServicer_to_server(servicer, server)
    control_pb2_grpc.add_ControlServiceServicer_to_server(control, server)
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    described = (rank_pb2.DESCRIPTOR, control_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
    names = [service.full_name for file in described for service in file.services_by_name.values()]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    host = (
        f"[{settings.host}]" if ":" in settings.host and not settings.host.startswith("[") else settings.host
    )
    try:
        port = server.add_insecure_port(f"{host}:{settings.port}")
    except RuntimeError as error:
        raise InvalidSettingError(
            f"cannot listen on {host}:{settings.port}: the port is in use or the address is not this machine's; "
            f"choose another with --port (0 takes a free one) or --host"
        ) from error
    return server, f"{host}:{port}"


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set ``stop`` on SIGTERM and SIGINT; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def note(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, note, number)
