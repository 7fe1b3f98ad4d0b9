"""The three targets of the paper: CPU only against CPU and PACED accelerator, live."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.live.findings import Findings
from benchmarks.live.search import capacity, held
from benchmarks.live.throughput import LIKELY_SHARE, lone
from benchmarks.offload.accelerators import accelerator
from benchmarks.offload.threshold import SETTLE_S
from benchmarks.simulated_case import TARGETS
from scheduler.sizes import PRODUCTION_MAX_SIZE
from scheduler.tune import static_point
from services.cores import usable_cores
from services.models.spec import spec_for

PAPER = {"low": 4.0, "medium": 5.1, "high": 5.8}
"""CPU + GPU over the static CPU baseline, as reported by the paper (not re-checked)."""

CONFIGURATIONS = ("paced", "adaptive", "static")
SEED = 0


def study(findings: Findings, repository: Path, model: str, target: str) -> None:
    """Measure what the paper's baseline, the CPU alone, and the CPU with a PACED accelerator bear at one target."""
    alone = findings.once(f"lone/{model}", lambda: lone(repository, model))
    target_ms = TARGETS[target] * spec_for(model).sla_ms
    start_qps = LIKELY_SHARE * alone["peak_qps"]
    for configuration in CONFIGURATIONS:  # the most first, so that the others' searches begin near above
        found = findings.once(
            f"targets/{model}/{target}/{configuration}",
            lambda configuration=configuration, start=start_qps: {  # type: ignore[misc]
                "target_ms": target_ms,
                **measured(repository, model, target_ms, configuration, start),
            },
        )
        start_qps = found["qps"] or start_qps


def measured(
    repository: Path, model: str, target_ms: float, configuration: str, start_qps: float
) -> dict[str, Any]:
    """Search the highest rate within the target of one of CONFIGURATIONS."""
    if configuration == "static":
        point = static_point(PRODUCTION_MAX_SIZE, usable_cores())
        return capacity(repository, model, target_ms, "static", held(point.batch_size), start_qps, SEED)
    if configuration == "adaptive":
        return capacity(repository, model, target_ms, "adaptive", [], start_qps, SEED)
    with accelerator("paced", repository, [model]) as device:
        flags = device.flags()
        return capacity(repository, model, target_ms, "adaptive", flags, start_qps, SEED, settle_s=SETTLE_S)


def summary(findings: Findings, model: str, target: str) -> dict[str, Any] | None:
    """Return one row, queries/s of each configuration; None while one is missing."""
    found = {c: findings.found.get(f"targets/{model}/{target}/{c}") for c in CONFIGURATIONS}
    if not all(found.values()):
        return None
    rates = {c: each["qps"] for c, each in found.items() if each is not None}
    paced = found["paced"] or {}
    return {
        "model": model,
        "target": target,
        "target_ms": paced["target_ms"],
        **rates,
        "offload_from": paced["offload_from"],
    }


def means(rows: Sequence[dict[str, Any]], over: str, under: str) -> tuple[float, list[str], list[str]]:
    """Return the geometric mean of a ratio, the models it covers, and those left out since either meets no rate."""
    met = [row for row in rows if row[over] and row[under]]
    left_out = [row["model"] for row in rows if not (row[over] and row[under])]
    mean = math.exp(fmean(math.log(row[over] / row[under]) for row in met)) if met else math.nan
    return mean, [row["model"] for row in met], left_out
