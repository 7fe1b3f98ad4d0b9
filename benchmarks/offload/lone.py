"""Lone queries: what the hop to Triton adds to one, and from which size on an accelerator pays for one.

A lone query has the machine to itself: no queue, no other query's batch. So what is seen is the path, not the load.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import psutil

from benchmarks.live.findings import Findings
from benchmarks.live.served import Served, served
from benchmarks.offload.accelerators import Accelerator, accelerator, modelled_gpu
from benchmarks.serving_cost import child, drive
from benchmarks.simulated_case import DATA, load_profile
from services.loadgen.settings import MIB

TRANSPORTS: Mapping[str, Sequence[str]] = {
    "grpc": (),
    "shared memory": ("--triton-shared-memory", str(64 * MIB)),
}
"""Flags of `deeprecsys serve` by the way in which tensors go to Triton."""

HOP_SIZES = (10, 100, 300, 1000)
LADDER = (1, 4, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1000)
QUERIES, WARM_UP_QUERIES = 40, 5
BATCH_SIZE = 1024
"""The batch size of the CPU path: a lone query is cut evenly over the workers, never finer than pays."""

PATIENT_MS = 10_000.0
"""A target so far off that no attempt is given up for want of time."""


def study_hop(findings: Findings, repository: Path, model: str) -> None:
    """Measure a model's lone queries bare, on the CPU, and through Triton by each transport."""
    findings.once(f"bare/{model}", lambda: bare(repository, model))
    for transport, flags in TRANSPORTS.items():
        findings.once(
            f"hop/{model}/{transport}",
            lambda flags=flags: on_both(repository, model, "real", HOP_SIZES, flags),  # type: ignore[misc]
        )


def study_crossover(findings: Findings, repository: Path, model: str) -> None:
    """Measure a model's lone queries on the CPU and through the PACED accelerator, over a ladder of sizes."""
    findings.once(f"crossover/{model}/paced", lambda: on_both(repository, model, "paced", LADDER))


def bare(repository: Path, model: str) -> dict[str, float]:
    """Return by size the seconds that ONNX Runtime alone takes for a batch, on one thread."""
    with child("bare_replay") as replay:

        def batch_s(size: int) -> float:
            order = {"directory": str(repository / model), "batches": [size] * QUERIES, "threads": 1}
            return float(replay.ask(json.dumps(order))["wall_s"]) / QUERIES

        return {str(size): median(batch_s(size) for _ in range(3)) for size in HOP_SIZES}


def on_both(
    repository: Path, model: str, kind: str, sizes: Sequence[int], flags: Sequence[str] = ()
) -> dict[str, Any]:
    """Return by size what lone queries take on the CPU and offloaded, on one server that is pinned to either."""
    rows: dict[str, Any] = {}
    with (
        accelerator(kind, repository, [model]) as device,
        served(repository, {model: PATIENT_MS}, "adaptive", device.flags(*flags)) as server,
    ):
        server.await_accelerators(model)
        for size in sizes:
            server.pin(model, BATCH_SIZE)
            cpu = lone(server, device, model, size)
            server.pin(model, BATCH_SIZE, offload_from=1)
            offloaded = lone(server, device, model, size)
            if cpu["requests"] or offloaded["requests"] < QUERIES:
                raise RuntimeError(
                    f"{model}: Triton saw {cpu['requests']} and {offloaded['requests']} queries"
                )
            rows[str(size)] = {"cpu": cpu, "offloaded": offloaded}
    return rows


def lone(server: Served, device: Accelerator, model: str, size: int) -> dict[str, float]:
    """Return what each of QUERIES queries, sent one after the other, took: seconds, CPU seconds, and Triton's part."""
    drive(server.address, model, 1, WARM_UP_QUERIES, f"fixed:{size}")
    server_process = psutil.Process(server.pid)

    def cpu_s() -> float:
        times = server_process.cpu_times()
        return float(times.user + times.system)

    before, before_cpu_s, before_device_s = device.spent(model), cpu_s(), device.cpu_s()
    result = drive(server.address, model, 1, QUERIES, f"fixed:{size}")
    spent = device.spent(model).since(before)
    requests, sent = (
        max(spent.requests, 1),
        QUERIES + 1,
    )  # the driver asks once before, to see that there is an answer
    return {
        "p50_s": result.measurement.p50_s,
        "mean_s": float(result.samples.latency_s.mean()),
        "rank_cpu_s": (cpu_s() - before_cpu_s) / sent,
        "triton_cpu_s": (device.cpu_s() - before_device_s) / sent,
        "requests": spent.requests,
        "triton_s": spent.inside_s / requests,
        "compute_s": spent.compute_s / max(spent.executions, 1),
    }


def hop_rows(findings: Findings, model: str) -> list[dict[str, Any]]:
    """Return one row for each transport and size, in milliseconds; those measured so far."""
    rows = []
    alone = findings.found.get(f"bare/{model}")
    for transport in TRANSPORTS:
        found = findings.found.get(f"hop/{model}/{transport}")
        if alone is None or found is None:
            continue
        for size, measured in found.items():
            cpu, offloaded = measured["cpu"], measured["offloaded"]
            rows.append(
                {
                    "model": model,
                    "transport": transport,
                    "size": int(size),
                    "bare_ms": alone[size] * 1e3,
                    "cpu_ms": cpu["p50_s"] * 1e3,
                    "offloaded_ms": offloaded["p50_s"] * 1e3,
                    "overhead_ms": (offloaded["p50_s"] - alone[size]) * 1e3,
                    "compute_ms": offloaded["compute_s"] * 1e3,
                    "rest_of_triton_ms": (offloaded["triton_s"] - offloaded["compute_s"]) * 1e3,
                    "outside_ms": (offloaded["mean_s"] - offloaded["triton_s"]) * 1e3,
                    "cpu_cpu_ms": cpu["rank_cpu_s"] * 1e3,
                    "rank_cpu_ms": offloaded["rank_cpu_s"] * 1e3,
                    "triton_cpu_ms": offloaded["triton_cpu_s"] * 1e3,
                }
            )
    return rows


def crossover_row(findings: Findings, model: str) -> dict[str, Any] | None:
    """Return where offloading to the PACED accelerator pays, as measured and as the profile has it; None when unknown.

    ``late_ms``: by how much the waits were longer than the table, the mean over sizes.
    """
    found = findings.found.get(f"crossover/{model}/paced")
    if found is None:
        return None
    sizes = [int(size) for size in found]
    profile, device = load_profile(DATA / "profiles", model), modelled_gpu(model).alone
    busy = profile.backend("cpu").busy
    cpu_s, device_s = ([found[str(n)][path]["p50_s"] for n in sizes] for path in ("cpu", "offloaded"))
    late_s = [found[str(n)]["offloaded"]["compute_s"] - device.mean_s(n) for n in sizes]
    return {
        "model": model,
        "accelerator": "PACED",
        "measured_from": pays_from(sizes, cpu_s, device_s),
        "predicted_from": pays_from(
            sizes, [busy.mean_s(-(-n // profile.cores)) for n in sizes], [device.mean_s(n) for n in sizes]
        ),
        "largest": sizes[-1],
        "largest_cpu_ms": cpu_s[-1] * 1e3,
        "largest_offloaded_ms": device_s[-1] * 1e3,
        "late_ms": fmean(late_s) * 1e3,
    }


def pays_from(sizes: Sequence[int], cpu_s: Sequence[float], device_s: Sequence[float]) -> int | None:
    """Return the size from which on the device is the faster one at every size of the ladder; None when at none."""
    found = None
    for size, cpu, device in reversed(list(zip(sizes, cpu_s, device_s, strict=True))):
        if device >= cpu:
            break
        found = size
    return found
