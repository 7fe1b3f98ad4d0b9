"""The search for what a live server bears within its target: probes of some seconds each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.live.served import Served, served
from services.loadgen.run import find_max, run_load
from services.loadgen.service import Service
from services.loadgen.settings import MIB, LoadSettings, ModelShare

POOL_BYTES = 512 * MIB
PROBE_QUERIES, LEAST_S, MOST_S = 1000, 8.0, 20.0
"""A probe has this many queries at the rate that a search begins with, and so many seconds at least and at most."""

WARMUP_S = 1.5
TOLERANCE, STRIDE = 0.04, 1.25
MAX_PROBES = 14
SETTLE_SHARE = 0.7
FURTHER_DOWN = 0.25
"""Where a search ends at rates too low for its probes, another begins at this share, with longer ones."""


def capacity(
    repository: Path,
    model: str,
    target_ms: float,
    policy: str,
    flags: Sequence[str],
    start_qps: float,
    seed: int,
    *,
    settle_s: float = 0.0,
) -> dict[str, Any]:
    """Search the highest rate within the target of a server that is started with these flags.

    ``settle_s``: seconds at SETTLE_SHARE of the first rate, not measured, in which a server may learn to steer itself.
    """
    with served(repository, {model: target_ms}, policy, flags) as server:
        server.await_accelerators(model)
        if settle_s:
            run_load(probe(server.address, model, SETTLE_SHARE * start_qps, seed, duration_s=settle_s))
        found = highest_rate(server, model, start_qps, seed)
        if not found["qps"] and "invalid" in found["why"]:
            found = highest_rate(server, model, FURTHER_DOWN * start_qps, seed)
    return found


def held(batch_size: int | None, offload_from: int | None = None) -> list[str]:
    """Return the flags that hold a server's models at a point; none leaves the point to the server."""
    flags = [] if batch_size is None else ["--batch-size", str(batch_size)]
    return flags + ([] if offload_from is None else ["--offload-from", str(offload_from)])


def probe(
    address: str, model: str, qps: float, seed: int = 0, *, duration_s: float | None = None
) -> LoadSettings:
    """Return the settings of the probes of a search that begins at this rate."""
    return LoadSettings(
        target=address,
        models=(ModelShare(model),),
        qps=qps,
        duration_s=duration_s or float(np.clip(PROBE_QUERIES / qps, LEAST_S, MOST_S)),
        warmup_s=WARMUP_S,
        pool_bytes=POOL_BYTES,
        seed=seed,
    )


def highest_rate(
    server: Served, model: str, start_qps: float, seed: int, floor_qps: float | None = None
) -> dict[str, Any]:
    """Search the highest rate within the target, and return it with where the server stands at the end."""
    row = searched(probe(server.address, model, start_qps, seed), floor_qps)
    point = server.point(model)
    return row | {"batch_size": point.batch_size, "offload_from": point.offload_from}


def searched(
    settings: LoadSettings, floor_qps: float | None = None, service: Service | None = None
) -> dict[str, Any]:
    """Search the highest rate within the target, from the settings' rate; KeyboardInterrupt when it was stopped.

    service: what is driven; None for the RankService at ``settings.target``.
    """
    found = find_max(
        settings,
        tolerance=TOLERANCE,
        stride=STRIDE,
        max_probes=MAX_PROBES,
        floor_qps=floor_qps,
        service=service,
    )
    if found.cut_short is not None:
        raise KeyboardInterrupt
    best = found.capacity.measurement
    row = {
        "qps": found.capacity.qps,
        "probes": len(found.capacity.probes),
        "probe_s": settings.duration_s,
        "why": found.capacity.why,
    }
    if best is None or found.best is None:
        return row
    driver = found.best.driver
    return row | {
        "p95_ms": best.p95_s * 1e3,
        "p99_ms": best.p99_s * 1e3,
        "slowest_ms": best.max_s * 1e3,
        "queries": best.count,
        "driver_lag_p99_ms": driver.lag_p99_s * 1e3,
        "driver_cpu_share": driver.cpu_share,
    }
