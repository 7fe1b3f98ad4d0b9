"""Two models on one live server, one of them flooded by another client: what the other gets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.live.findings import Findings
from benchmarks.live.search import POOL_BYTES
from benchmarks.live.served import served
from scheduler.measure import Measurement
from services.loadgen.run import run_load
from services.loadgen.settings import LoadSettings, ModelShare

QUIET, FLOODED = "wnd", "rmc1"
QUIET_LOAD, FLOOD = 0.25, 2.0
WARMUP_S, DURATION_S = 8.0, 20.0


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
        row["alone"] = _tail(server.address, quiet_qps)
        with _flood(server.address, flood_qps):
            row["beside_flood"] = _tail(server.address, quiet_qps)
    return {**row, "target_ms": quiet["target_ms"]}


@contextmanager
def _flood(address: str, qps: float) -> Iterator[None]:
    """Flood from a process, and so a connection, of its own, for as long as the block lasts."""
    until_s = 2 * (WARMUP_S + DURATION_S)
    command = [sys.executable, "-m", "services.cli.app", "load", "--target", address, "--model", FLOODED]
    arguments = ["--qps", f"{qps}", "--duration", f"{until_s}", "--warmup", "0"]
    with subprocess.Popen(
        [*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as flood:
        try:
            yield
            if flood.poll() is not None:
                raise RuntimeError(f"the flood ended early, with exit code {flood.returncode}")
        finally:
            flood.kill()


def _tail(address: str, qps: float) -> dict[str, Any]:
    settings = LoadSettings(
        target=address,
        models=(ModelShare(QUIET),),
        qps=qps,
        duration_s=DURATION_S,
        warmup_s=WARMUP_S,
        pool_bytes=POOL_BYTES,
        min_queries=1,
    )
    result = run_load(settings)
    if result.cut_short is not None:
        raise KeyboardInterrupt
    found: Measurement = result.models[0].measurement
    return {
        "p95_ms": found.p95_s * 1e3,
        "p99_ms": found.p99_s * 1e3,
        "failed": found.failed,
        "invalid": found.invalid,
    }
