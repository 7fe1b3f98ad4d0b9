"""How the controller follows change on a live server, beside the best point pinned on the same schedule."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.live.findings import Findings
from benchmarks.live.served import Served, served
from benchmarks.live.throughput import POOL_BYTES, SIZES
from benchmarks.live.windows import settled_after, share_inside, tails
from services.loadgen.result import Samples
from services.loadgen.run import run_load
from services.loadgen.settings import LoadSettings, ModelShare

DURATION_S = 75
EVENT_S = 15
PERCENT = 95.0


@dataclass(frozen=True)
class Scenario:
    """What happens: the load as a share of the best point's throughput, and what changes at EVENT_S.

    ``start``: the batch size that a cold controller begins at, None for wherever it has settled. ``event_s``: from
    when on time to settle counts.
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
    best = findings.found.get(f"throughput/{model}/scaled/adaptive/0")
    if best is None or not best["qps"]:
        return
    for scenario in SCENARIOS:
        findings.once(
            f"change/{model}/{scenario.name}",
            lambda scenario=scenario: _measured(repository, model, scenario, best),  # type: ignore[misc]
        )


def _measured(repository: Path, model: str, scenario: Scenario, best: dict[str, Any]) -> dict[str, Any]:
    sla_ms = best["target_ms"]
    qps = scenario.load * best["qps"]
    with served(repository, {model: sla_ms}, "adaptive") as server:
        server.pin(model, best["batch_size"])
        pinned = _run(server, model, scenario, qps)
        server.pin(model, scenario.start or best["batch_size"])
        server.unpin(model)
        steered = _run(server, model, scenario, qps)
        point = server.point(model)
    inside = {
        name: share_inside(tails(each.scheduled_s, each.latency_s, PERCENT, DURATION_S), sla_ms / 1e3)
        for name, each in (("pinned", pinned), ("steered", steered))
    }
    return {
        "target_ms": sla_ms,
        "qps": qps,
        "pinned_batch_size": best["batch_size"],
        "last_batch_size": point.batch_size,
        "pinned_inside": inside["pinned"],
        "steered_inside": inside["steered"],
        "settled_s": settled_after(steered, pinned, PERCENT, scenario.event_s, DURATION_S),
    }


def _run(server: Served, model: str, scenario: Scenario, qps: float) -> Samples:
    """Drive one schedule; sizes change between two runs that follow each other."""
    phases = [(0, DURATION_S, SIZES)]
    if scenario.later_sizes != SIZES:
        phases = [(0, EVENT_S, SIZES), (EVENT_S, DURATION_S, scenario.later_sizes)]
    parts = []
    for begin_s, end_s, sizes in phases:
        settings = LoadSettings(
            target=server.address,
            models=(ModelShare(model),),
            qps=qps,
            duration_s=float(end_s - begin_s),
            warmup_s=0.0,
            sizes=sizes,
            arrivals=scenario.arrivals,
            pool_bytes=POOL_BYTES,
            min_queries=1,
            seed=begin_s,
        )
        with _core_taken(EVENT_S if scenario.core_taken else None):
            samples = run_load(settings).models[0].samples
        parts.append((begin_s, samples))
    return Samples(
        np.concatenate([begin_s + each.scheduled_s for begin_s, each in parts]),
        np.concatenate([each.latency_s for _, each in parts]),
        np.concatenate([each.size for _, each in parts]),
        np.concatenate([each.code for _, each in parts]),
    )


@contextmanager
def _core_taken(after_s: float | None) -> Iterator[None]:
    """Let another process compute without end from so many seconds on."""
    started: list[subprocess.Popen[bytes]] = []
    if after_s is None:
        yield
        return
    timer = threading.Timer(
        after_s, lambda: started.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
    )
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        for process in started:
            process.kill()
            process.wait()
