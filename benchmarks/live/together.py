"""Two models on one live server, one of them flooded: what the other gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.live.findings import Findings
from benchmarks.live.served import Served, served
from benchmarks.live.throughput import POOL_BYTES
from services.loadgen.run import run_load
from services.loadgen.settings import LoadSettings, ModelShare

QUIET, FLOODED = "wnd", "rmc1"
QUIET_LOAD, FLOOD = 0.25, 2.0
DURATION_S = 20.0


def study(findings: Findings, repository: Path) -> None:
    """Drive QUIET at a quarter of its throughput, alone and beside twice what FLOODED can bear."""
    rates = [findings.found.get(f"throughput/{m}/scaled/adaptive/0") for m in (QUIET, FLOODED)]
    if not all(rate is not None and rate["qps"] for rate in rates):
        return
    quiet, flooded = rates
    findings.once("together", lambda: _measured(repository, quiet, flooded))


def _measured(repository: Path, quiet: Any, flooded: Any) -> dict[str, Any]:
    quiet_qps, flood_qps = QUIET_LOAD * quiet["qps"], FLOOD * flooded["qps"]
    targets_ms = {QUIET: quiet["target_ms"], FLOODED: flooded["target_ms"]}
    row: dict[str, Any] = {"quiet": QUIET, "flooded": FLOODED, "qps": quiet_qps, "flood_qps": flood_qps}
    with served(repository, targets_ms, "adaptive") as server:
        for name, rate in (("alone", 0.0), ("beside_flood", flood_qps)):
            found = _tail(server, quiet_qps, rate)
            row[name] = {
                "p95_ms": found.p95_s * 1e3,
                "p99_ms": found.p99_s * 1e3,
                "failed": found.failed,
                "invalid": found.invalid,
            }
    return {**row, "target_ms": quiet["target_ms"]}


def _tail(server: Served, quiet_qps: float, flood_qps: float) -> Any:
    shares = [ModelShare(QUIET, quiet_qps)] + ([ModelShare(FLOODED, flood_qps)] if flood_qps else [])
    settings = LoadSettings(
        target=server.address,
        models=tuple(shares),
        qps=quiet_qps + flood_qps,
        duration_s=DURATION_S,
        warmup_s=3.0,
        pool_bytes=POOL_BYTES,
        min_queries=1,
    )
    result = run_load(settings)
    if result.cut_short is not None:
        raise KeyboardInterrupt
    return result.models[0].measurement
