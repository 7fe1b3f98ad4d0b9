"""How the controller follows change on a live server, beside the best point pinned on the same schedule.

Every run has a server of its own, so that a controller knows nothing of what it has not met.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.live.findings import Findings
from benchmarks.live.search import POOL_BYTES
from benchmarks.live.served import served
from benchmarks.live.throughput import SIZES
from benchmarks.live.windows import settled_after, share_inside, tails
from services.loadgen.loop import precise_loop
from services.loadgen.recording import Progress
from services.loadgen.result import LoadResult, Samples
from services.loadgen.run import run_load
from services.loadgen.session import open_session
from services.loadgen.settings import LoadSettings, ModelShare

DURATION_S = 60
EVENT_S = 15
PERCENT = 95.0
RUNGS = (32, 64, 128, 256, 512)
RUNG_LOAD, RUNG_S = 0.85, 12.0
SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"


@dataclass(frozen=True)
class Scenario:
    """What happens: the load as a share of the best point's throughput, and what changes at EVENT_S.

    ``start``: the batch size that the controller begins at, None for the best. ``event_s``: from when on the time to
    settle counts.
    """

    name: str
    load: float
    start: int | None = None
    arrivals: str = "poisson"
    later_sizes: str = SIZES
    core_taken: bool = False
    event_s: int = EVENT_S


SCENARIOS = (
    Scenario("cold start at 1", 0.7, start=1, event_s=0),
    Scenario("cold start at 1024", 0.7, start=1024, event_s=0),
    Scenario("load steps from 40 to 90 %", 0.4, arrivals=f"step:{EVENT_S},2.25"),
    Scenario("sizes double", 0.4, later_sizes=f"{SIZES}:2"),
    Scenario("a core is taken", 0.45, core_taken=True),
)


def study(findings: Findings, repository: Path, model: str) -> None:
    """Measure every scenario for a model whose throughput at the scaled target is known."""
    known = findings.found.get(f"throughput/{model}/scaled/adaptive/0")
    if known is None or not known["qps"]:
        return
    sla_ms, qps = known["target_ms"], known["qps"]
    best = findings.once(f"best/{model}", lambda: best_batch_size(repository, model, sla_ms, qps))
    for scenario in SCENARIOS:
        findings.once(
            f"change/{model}/{scenario.name}",
            lambda scenario=scenario: _measured(repository, model, scenario, best, sla_ms, qps),  # type: ignore[misc]
        )


def best_batch_size(repository: Path, model: str, sla_ms: float, qps: float) -> int:
    """Return the batch size with the least p95 when it is pinned, near the throughput that the controller reached."""
    p95_s: dict[int, float] = {}
    with served(repository, {model: sla_ms}, "adaptive") as server:
        for rung in RUNGS:
            server.pin(model, rung)
            settings = _settings(server.address, model, RUNG_LOAD * qps, RUNG_S)
            p95_s[rung] = _whole(run_load(settings)).models[0].measurement.p95_s
    return min(p95_s, key=lambda rung: p95_s[rung])


def _measured(
    repository: Path, model: str, scenario: Scenario, best: int, sla_ms: float, qps: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"target_ms": sla_ms, "qps": scenario.load * qps, "pinned_batch_size": best}
    samples: dict[str, Samples] = {}
    for name, start in (("pinned", best), ("steered", scenario.start or best)):
        with served(repository, {model: sla_ms}, "adaptive", ["--batch-size", str(start)]) as server:
            release = (lambda s=server: s.unpin(model)) if name == "steered" else lambda: None
            phases = _phases(server.address, model, scenario, row["qps"])
            with asyncio.Runner(loop_factory=precise_loop) as runner:
                samples[name] = runner.run(_driven(phases, scenario, release))
            row[f"{name}_last_batch_size"] = server.point(model).batch_size
        windows = tails(samples[name].scheduled_s, samples[name].latency_s, PERCENT, DURATION_S)
        row[f"{name}_inside"] = share_inside(windows, sla_ms / 1e3)
    row["settled_s"] = settled_after(
        samples["steered"], samples["pinned"], PERCENT, scenario.event_s, DURATION_S
    )
    return row


def _settings(
    address: str, model: str, qps: float, duration_s: float, sizes: str = SIZES, arrivals: str = "poisson"
) -> LoadSettings:
    return LoadSettings(
        target=address,
        models=(ModelShare(model),),
        qps=qps,
        duration_s=duration_s,
        warmup_s=0.0,
        sizes=sizes,
        arrivals=arrivals,
        pool_bytes=POOL_BYTES,
        min_queries=1,
    )


def _phases(address: str, model: str, scenario: Scenario, qps: float) -> list[LoadSettings]:
    """Return the runs that follow each other without a pause: two where the sizes change."""
    if scenario.later_sizes == SIZES:
        return [_settings(address, model, qps, DURATION_S, arrivals=scenario.arrivals)]
    return [
        _settings(address, model, qps, EVENT_S),
        _settings(address, model, qps, DURATION_S - EVENT_S, scenario.later_sizes),
    ]


async def _driven(phases: list[LoadSettings], scenario: Scenario, release: Callable[[], None]) -> Samples:
    """Drive one schedule; ``release`` is called when all requests are built, just before the first is sent."""
    parts: list[tuple[float, Samples]] = []
    begin_s = 0.0
    async with AsyncExitStack() as opened:
        sessions = [await opened.enter_async_context(open_session(settings)) for settings in phases]
        release()
        with _spinner() as spin:

            def at_event(progress: Progress) -> None:
                if scenario.core_taken and progress.elapsed_s >= EVENT_S:
                    spin()

            for session in sessions:
                result = _whole(await session.run(on_progress=at_event))
                parts.append((begin_s, result.models[0].samples))
                begin_s += session.settings.duration_s
    return Samples(
        np.concatenate([begin + each.scheduled_s for begin, each in parts]),
        np.concatenate([each.latency_s for _, each in parts]),
        np.concatenate([each.size for _, each in parts]),
        np.concatenate([each.code for _, each in parts]),
    )


@contextmanager
def _spinner() -> Iterator[Callable[[], None]]:
    """Yield what starts, once, another process that computes until the block ends."""
    started: list[subprocess.Popen[bytes]] = []

    def spin() -> None:
        if not started:
            started.append(subprocess.Popen([sys.executable, "-c", SPIN]))

    try:
        yield spin
    finally:
        for process in started:
            process.kill()
            process.wait()


def _whole(result: LoadResult) -> LoadResult:
    """Return the result of a run that went to its end; KeyboardInterrupt for one that did not."""
    if result.cut_short is not None:
        raise KeyboardInterrupt
    return result
