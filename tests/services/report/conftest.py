"""Small results of every shape, as the programs write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results"
PROFILES = ROOT / "benchmarks" / "data" / "profiles"

MACHINE = {
    "cpu": "Test CPU",
    "cores": 2,
    "memory_bytes": 8 << 30,
    "system": "Linux 6",
    "python": "3.11.7",
    "versions": {"numpy": "2.1"},
}
SETTINGS = {"sizes": "production", "arrivals": "poisson", "seed": 7}
SLA = {"percentile": 95.0, "seconds": 0.025}


def measurement(qps: float, p95_s: float | None) -> dict[str, Any]:
    scaled = (None, None, None) if p95_s is None else (p95_s / 3, p95_s, 2 * p95_s)
    tails = dict(zip(("p50_s", "p95_s", "p99_s"), scaled, strict=True))
    return {"offered_qps": qps, **tails, "tail_s": p95_s, "invalid": None}


def loaded(qps: float, p95_s: float | None, model: str = "wnd") -> dict[str, Any]:
    late = p95_s is None or p95_s > SLA["seconds"]
    return {
        "model": model,
        "sla": SLA,
        "qps": qps,
        "measurement": measurement(qps, p95_s),
        "shortfall": "p95 over the target" if late else None,
        "codes": {"OK": 100},
    }


def load_run(qps: float = 50.0) -> dict[str, Any]:
    return {
        "kind": "run",
        "settings": SETTINGS,
        "qps": qps,
        "machine": MACHINE,
        "models": [loaded(qps, 0.02)],
        "driver": {},
        "cut_short": None,
    }


def sweep() -> dict[str, Any]:
    rates = ((200.0, 0.09), (50.0, 0.01), (100.0, 0.02), (400.0, None))
    points = [{"qps": qps, "models": [loaded(qps, p95_s)], "driver": {}} for qps, p95_s in rates]
    return {"kind": "sweep", "settings": SETTINGS, "machine": MACHINE, "points": points, "cut_short": None}


def search() -> dict[str, Any]:
    probes = [
        {"qps": qps, "measurement": measurement(qps, p95_s), "shortfall": why}
        for qps, p95_s, why in ((50.0, 0.01, None), (100.0, 0.06, "p95 over the target"), (75.0, 0.02, None))
    ]
    capacity = {"qps": 75.0, "probes": probes, "why": "p95"}
    return {
        "settings": SETTINGS,
        "machine": MACHINE,
        "model": "rmc1",
        "sla": SLA,
        "capacity": capacity,
        "best": None,
    }


def judged() -> dict[str, Any]:
    return {
        "kind": "mlperf",
        "settings": SETTINGS,
        "machine": MACHINE,
        "model": "wnd",
        "sla": SLA,
        "verdict": "VALID",
        "loadgen_version": "6.0",
        "loadgen": {},
        "codes": {"OK": 5000},
        "p50_s": 0.004,
        "p95_s": 0.02,
        "p99_s": None,
    }


def characterised(model: str = "rmc1", kind: str = "embedding") -> dict[str, Any]:
    gather = [
        {"row_bytes": n, "bytes_per_s": n * 2e7, "small_pages_bytes_per_s": n * 1e7} for n in (64, 128, 256)
    ]
    return {
        "schema": 1,
        "machine": MACHINE,
        "model": model,
        "version": "1",
        "ceilings": [
            {
                "cores": cores,
                "read_bytes_per_s": cores * 8e9,
                "copy_bytes_per_s": cores * 1e10,
                "gather": gather,
                "flops_per_s": cores * 6e10,
            }
            for cores in (1, 2)
        ],
        "work": {"macs": 1e6, "gathered_bytes": 8e4, "gathered_rows": 640, "streamed_bytes": 3e3},
        "rates": [
            {
                "batch_size": n,
                "cores": cores,
                "bytes_per_s": cores * 1e9 * n**0.1,
                "flops_per_s": cores * 2e10 * n**0.1,
                "flops_per_byte": 5.0 * n**0.2,
            }
            for cores in (1, 2)
            for n in (1, 64, 1024)
        ],
        "operators": [
            {
                "breakdown": {"batch_size": n},
                "parts": [{"part": "embedding", "share": 0.7}, {"part": "mlp", "share": 0.3}],
                "bottleneck": {},
            }
            for n in (1, 64)
        ],
        "bottleneck": {"classes": [kind], "shares": {}, "limit": "memory", "of_roof": 0.5},
    }


def write_latencies(path: Path, runs: dict[float, list[float | None]]) -> Path:
    """Latencies of one model by rate, the first of each run being warm-up, as `deeprecsys load` writes them."""
    columns: dict[str, list[Any]] = {name: [] for name in ("run", "qps", "model", "latency_s", "measured")}
    facts = {}
    for number, (qps, latency_s) in enumerate(runs.items()):
        count = len(latency_s)
        facts[f"deeprecsys.run.{number}"] = json.dumps(load_run(qps))
        columns["run"] += [number] * count
        columns["qps"] += [qps] * count
        columns["model"] += ["wnd"] * count
        columns["latency_s"] += latency_s
        columns["measured"] += [False] + [True] * (count - 1)
    parquet.write_table(pa.table(columns).replace_schema_metadata(facts), path)
    return path


SHAPES: dict[str, Callable[[], dict[str, Any]]] = {
    "load.json": load_run,
    "sweep.json": sweep,
    "search.json": search,
    "mlperf.json": judged,
    "rmc1.characterisation.json": characterised,
    "wnd.characterisation.json": lambda: characterised("wnd", "mlp"),
}


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A result of every shape: those of the repository, and small ones of what it does not hold."""
    folder = tmp_path_factory.mktemp("results")
    for name, made in SHAPES.items():
        (folder / name).write_text(json.dumps(made()))
    drawn = np.random.default_rng(0).lognormal(-5, 0.6, (3, 500))
    write_latencies(
        folder / "latencies.parquet",
        {50.0 * (k + 1): (row * (k + 1)).tolist() for k, row in enumerate(drawn)},
    )
    return [RESULTS, PROFILES, folder]
