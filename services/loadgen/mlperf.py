"""MLPerf LoadGen drives the service in its Server scenario, and its own verdict is the result.

LoadGen draws the arrivals (a Poisson process of its own seed) and picks the queries; their sizes, ids and messages are
those of any other run. It is another judge on the same load, not a submission: the rules of the benchmark, its models,
data sets and durations are not kept.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.errors import InternalError, InvalidSettingError
from scheduler.measure import Sla
from services.loadgen.child import Child, child_process, in_memory
from services.loadgen.driver import OnProgress, Plan
from services.loadgen.interrupt import set_on_interrupt
from services.loadgen.loop import precise_loop
from services.loadgen.outcome import pool_report
from services.loadgen.recording import Progress
from services.loadgen.result import MlperfResult
from services.loadgen.service import Service, rank_service
from services.loadgen.session import open_session
from services.loadgen.settings import LoadSettings
from services.loadgen.traffic import Lane, draw_traffic
from services.loadgen.transport import Transport
from services.machine import describe_machine

PROCESS = "services.loadgen.mlperf_process"
SAMPLES = 4096
"""LoadGen picks queries from so many, drawn from the law of sizes."""

DETAIL_LOG = "mlperf_log_detail.txt"


@dataclass(frozen=True, eq=False)
class MlperfSetup:
    """What the process that runs LoadGen is told.

    connect, offset: as in ``messages.Setup``. request: int64 [S], the request of each of LoadGen's samples.
    warm_up_s: float64 [W], when the queries of the warm-up leave, and warm_up_request: int64 [W], their requests.
    timeout_s: what a query may take before it counts as DEADLINE_EXCEEDED.
    """

    connect: Callable[[], AbstractAsyncContextManager[Transport]]
    offset: NDArray[np.int64]
    request: NDArray[np.int64]
    warm_up_s: NDArray[np.float64]
    warm_up_request: NDArray[np.int64]
    qps: float
    sla: Sla
    duration_s: float
    min_queries: int
    seed: int
    timeout_s: float
    unavailable_limit: int | None
    folder: Path

    def warm_up(self, payloads: tuple[bytes, ...]) -> Plan:
        """Return what to drive before the test."""
        return Plan(self.warm_up_s, self.warm_up_request, payloads)


@dataclass(frozen=True, eq=False)
class Judged:
    """The end of a test: what its queries came to, and why it ended early, None if it did not."""

    look: Progress
    wall_s: float
    cpu_s: float
    before_others: bool
    cut_short: str | None


def run_mlperf(
    settings: LoadSettings,
    folder: Path,
    on_progress: OnProgress | None = None,
    *,
    service: Service | None = None,
) -> MlperfResult:
    """Let LoadGen drive the one model at ``settings.qps`` for ``settings.duration_s``, its logs in ``folder``.

    The target is the model's, or that of the settings. The warm-up is driven before, and is no part of the test. Ctrl-C
    ends the test without a verdict and keeps the counts. Raises InvalidSettingError for settings that LoadGen has no
    place for, where it is not installed, and for a folder that cannot be used, and what ``run_load`` raises.
    """
    _check(settings, folder)
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        return runner.run(_run(settings, folder, on_progress, service))


def _check(settings: LoadSettings, folder: Path) -> None:
    if find_spec("mlperf_loadgen") is None:
        raise InvalidSettingError("LoadGen is not installed: pip install 'deeprecsys[mlperf]'")
    if len(settings.models) != 1 or settings.concurrency is not None or settings.drivers != 1:
        raise InvalidSettingError("LoadGen takes one model, in open loop, and drives it alone")
    if settings.trace is not None:
        raise InvalidSettingError(f"LoadGen has arrivals of its own: it cannot replay {settings.trace.path}")
    if settings.arrivals != "poisson":
        raise InvalidSettingError(f"LoadGen's arrivals are poisson, not {settings.arrivals}")
    if not round(settings.duration_s * 1e3):
        raise InvalidSettingError(f"LoadGen's duration is at least 1 ms, not {settings.duration_s} s")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DETAIL_LOG).unlink(missing_ok=True)
    except OSError as error:
        raise InvalidSettingError(f"cannot use {folder}: {error.strerror}") from error


async def _run(
    settings: LoadSettings, folder: Path, on_progress: OnProgress | None, service: Service | None
) -> MlperfResult:
    service = service or rank_service(settings.target, settings.channels)
    async with open_session(settings, pool_queries=SAMPLES, service=service) as session:
        (lane,) = session.lanes
        with in_memory(session.payloads) as memory:
            async with child_process(PROCESS, memory) as child:
                child.pipe.send(_setup(settings, lane, session.payloads, service, memory.offset, folder))
                judged = await _judged(child, on_progress)
    return _result(settings, lane, judged, folder)


def _setup(
    settings: LoadSettings,
    lane: Lane,
    payloads: tuple[bytes, ...],
    service: Service,
    offset: NDArray[np.int64],
    folder: Path,
) -> MlperfSetup:
    # The same queries as those that the requests were drawn for: sizes as the law has them.
    traffic = draw_traffic(settings, [lane], payloads, settings.qps, count=SAMPLES)
    warm_up = traffic.plan.arrival_s < settings.warmup_s
    return MlperfSetup(
        connect=service.connect,
        offset=offset,
        request=traffic.plan.payload,
        warm_up_s=traffic.plan.arrival_s[warm_up],
        warm_up_request=traffic.plan.payload[warm_up],
        qps=settings.qps,
        sla=lane.sla,
        duration_s=settings.duration_s,
        min_queries=lane.sla.min_count if settings.min_queries is None else max(1, settings.min_queries),
        seed=settings.seed,
        timeout_s=settings.deadline_s or max(2.0, 10 * lane.sla.seconds),
        unavailable_limit=settings.unavailable_limit,
        folder=folder,
    )


async def _judged(child: Child, on_progress: OnProgress | None) -> Judged:
    stop = asyncio.Event()
    with set_on_interrupt(stop):
        stopping = asyncio.create_task(_stop_on(stop, child))
        try:
            return await child.expect(Judged, on_progress)
        finally:
            stopping.cancel()


async def _stop_on(stop: asyncio.Event, child: Child) -> None:
    await stop.wait()
    child.stop()


# --- what LoadGen found ---


def _result(settings: LoadSettings, lane: Lane, judged: Judged, folder: Path) -> MlperfResult:
    log = {} if judged.cut_short is not None else read_detail_log(folder / DETAIL_LOG)
    look, machine = judged.look, describe_machine()
    return MlperfResult(
        settings=settings,
        machine=machine,
        model=lane.share.name,
        version=lane.share.version or next(iter(lane.model.versions), ""),
        sla=lane.sla,
        verdict=log.get("result_validity"),
        loadgen_version=str(log.get("loadgen_version", "")),
        loadgen={key: value for key, value in log.items() if key.startswith(("result_", "early_stopping"))},
        codes=look.codes,
        p50_s=look.p50_s,
        p95_s=look.p95_s,
        p99_s=look.p99_s,
        pool=pool_report(lane),
        cpu_s=judged.cpu_s,
        wall_s=judged.wall_s,
        cpu_share=judged.cpu_s / (judged.wall_s * machine.cores) if judged.wall_s else 0.0,
        before_others=judged.before_others,
        logs=str(folder),
        cut_short=judged.cut_short,
    )


def read_detail_log(path: Path) -> dict[str, Any]:
    """Return what LoadGen has logged, by key, the last value of each; InternalError without a verdict."""
    mark = ":::MLLOG "
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    entries = [json.loads(line.removeprefix(mark)) for line in lines if line.startswith(mark)]
    found = {entry["key"]: entry["value"] for entry in entries}
    if "result_validity" not in found:
        raise InternalError(f"LoadGen has left no verdict in {path}")
    return found
