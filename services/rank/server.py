"""The Rank server's life, top to bottom: listen, load, serve, drain, stop."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from deeprecsys.errors import InvalidSettingError, RepositoryError
from deeprecsys.v1 import rank_pb2, rank_pb2_grpc
from scheduler.batching import POLICIES, Batcher, OperatingPoint, Plan
from scheduler.first_plan import first_plan
from services.cores import usable_cores
from services.rank.catalogue import Catalogue, ServedModel
from services.rank.cpu import CpuEngine
from services.rank.dispatcher import Dispatcher, RanBatch
from services.rank.repository import build_spec, model_directories, read_listing
from services.rank.servicer import RankServicer
from services.rank.settings import ServeSettings
from services.rank.warmup import warm_up

_log = logging.getLogger(__name__)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def serve(
    settings: ServeSettings,
    on_listening: Callable[[str], None],
    stop: asyncio.Event,
    on_batch: Callable[[RanBatch], None] | None = None,
) -> None:
    """Serve until ``stop`` is set, then drain and return.

    ``on_listening`` gets host:port once every model is ready, ``on_batch`` every batch that has run. Raises
    InvalidSettingError for an address that cannot be had, RepositoryError when no model can be served.
    """
    directories = model_directories(settings.repository)
    workers = settings.workers or usable_cores()
    batcher = Batcher(workers, POLICIES[settings.policy], settings.max_waiting)
    dispatcher = Dispatcher(batcher, workers, on_batch)
    async with AsyncExitStack() as opened:
        opened.push_async_callback(dispatcher.close)
        catalogue = Catalogue(_limits(settings))
        servicer = RankServicer(catalogue, dispatcher, settings.max_candidates)
        healths = health.aio.HealthServicer()
        server, address = _listen(settings, servicer, healths)
        await server.start()
        opened.push_async_callback(server.stop, 0)
        await _load_all(directories, catalogue, batcher, healths, settings)
        await healths.set("", SERVING)
        _log.info("serving", extra={"address": address, "workers": workers, "policy": settings.policy})
        on_listening(address)
        await stop.wait()
        await _drain(server, servicer, dispatcher, healths, settings.drain_s)


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
    # Answers that are ready are still being written: the server's own grace lets them go.
    await server.stop(min(1.0, drain_s))
    _log.info("stopped")


def _limits(settings: ServeSettings) -> rank_pb2.Model:
    return rank_pb2.Model(
        max_candidates=settings.max_candidates,
        max_request_bytes=settings.max_message_bytes,
        max_response_bytes=settings.max_message_bytes,
    )


def _listen(
    settings: ServeSettings, servicer: RankServicer, healths: health.aio.HealthServicer
) -> tuple[grpc.aio.Server, str]:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.so_reuseport", 0),  # a busy port is an error, not a silent share of somebody else's queries
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=settings.max_queries)
    rank_pb2_grpc.add_RankServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    names = [
        s.full_name for s in (rank_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR) for s in s.services_by_name.values()
    ]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    try:
        port = server.add_insecure_port(f"{settings.host}:{settings.port}")
    except RuntimeError as error:
        raise InvalidSettingError(
            f"cannot listen on {settings.host}:{settings.port}: the port is in use or the address is not this "
            f"machine's; choose another with --port (0 takes a free one) or --host"
        ) from error
    return server, f"{settings.host}:{port}"


async def _load_all(
    directories: list[Path],
    catalogue: Catalogue,
    batcher: Batcher,
    healths: health.aio.HealthServicer,
    settings: ServeSettings,
) -> None:
    """Load and warm up every model, one after the other; a broken one is reported and does not stop the others."""
    for directory in directories:
        catalogue.expect(directory.name)
        await healths.set(directory.name, NOT_SERVING)
    for directory in directories:
        await _load_directory(directory, catalogue, batcher, settings)
        if catalogue.is_ready(directory.name):
            await healths.set(directory.name, SERVING)
    if not any(catalogue.is_ready(d.name) for d in directories):
        raise RepositoryError(
            f"no model of {settings.repository} can be served; run `deeprecsys export`, or mend what is named above"
        )


async def _load_directory(
    directory: Path, catalogue: Catalogue, batcher: Batcher, settings: ServeSettings
) -> None:
    try:
        listing = read_listing(directory)
    except RepositoryError as error:
        _broken(catalogue, directory.name, str(error))
        return
    for version in listing.versions:
        try:
            model, plan = await asyncio.to_thread(_load, listing, version, settings)
        except RepositoryError as error:
            _broken(catalogue, directory.name, f"version {version}: {error}")
            continue
        batcher.set_plan(model.spec.key, plan)
        catalogue.ready(model)
        _log.info("model ready", extra={"model": model.spec.key, "batch_size": plan.point.batch_size})


def _broken(catalogue: Catalogue, name: str, fault: str) -> None:
    catalogue.broken(name, f"cannot be served: {fault}")
    _log.error("model cannot be served", extra={"model": name, "reason": fault})


def _load(listing: Any, version: str, settings: ServeSettings) -> tuple[ServedModel, Plan]:
    """Open one version and time its first batches. Runs on a thread of its own."""
    engine = CpuEngine(listing.model_file(version))
    spec = build_spec(listing, version, engine.ports())
    timing = warm_up(engine, spec, settings.warmup_s)
    plan = first_plan(
        timing.sizes,
        timing.seconds,
        sla_s=spec.sla.seconds,
        largest_batch=spec.largest_batch,
        whole=spec.whole,
    )
    if settings.batch_size:
        plan = dataclasses.replace(plan, point=OperatingPoint(settings.batch_size))
    return ServedModel(spec, engine), plan


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set ``stop`` on SIGTERM and SIGINT; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def note(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, note, number)
