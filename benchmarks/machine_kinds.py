"""Derive the kinds of machines and accelerators of simulated fleets from what is measured and published.

    python -m benchmarks.machine_kinds        # writes services/fleet/kinds/<kind>.json

Only `this-machine` is measured. Every other kind rests on the figures in benchmarks/data and on the assumptions below,
which are written into each kind's `derivation`. A kind whose name ends in `-caffe2` has the large fixed cost of an
inference that Ribbon published for Caffe2; the others have that of ONNX Runtime as measured here.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.simulated_case import DATA, gpu_speedup
from scheduler.latency import BackendProfile, LatencyCurve, LatencyPoint, accelerated
from services.models.spec import SLUGS
from services.profiles import read_profile

KINDS = Path(__file__).parents[1] / "services" / "fleet" / "kinds"
SIZES = tuple(2**k for k in range(11))

SIMD = (2.0 * 64) / (2.4 * 32)
"""How much slower a Broadwell core multiplies: 2.0 GHz with AVX-512 against 2.4 GHz with AVX-2 (flops a cycle)."""
MISSES = {1: 0.55, 16: 0.55, 1024: 0.40}
"""L2 misses of Broadwell at full load by batch size, as reported by the paper (not re-checked)."""
SKYLAKE_MISSES = 0.25
"""Assumed: an exclusive cache suffers less, whatever the batch."""
COMPUTE_FELT = 0.25
"""Assumed: the part of the contention that time outside the look-ups feels."""
EMERALD_CORES = 128
"""Of a two-socket Emerald Rapids (64 each, not re-checked)."""
H200_FIXED_S = 5e-4
"""Assumed: copying a query over and starting its kernels."""
ANCHORS = {"mt_wnd": "mtwnd", "dien": "dien"}
"""The models that Ribbon measured; its "dien" is the DIN network at DIEN's sizes, its MT-WnD has one task."""

Curves = dict[str, tuple[LatencyCurve, LatencyCurve]]
"""By model: alone and busy."""


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def curve(seconds: Callable[[int], float], sigma: float) -> LatencyCurve:
    """Return a curve through means, log-normal about them."""
    points = []
    for n in SIZES:
        p50_s = seconds(n) * math.exp(-sigma * sigma / 2)
        points.append(
            LatencyPoint(
                n, seconds(n), p50_s, p50_s * math.exp(1.645 * sigma), p50_s * math.exp(2.326 * sigma)
            )
        )
    return LatencyCurve(tuple(points))


def ribbon(instance: str, model: str) -> tuple[float, float]:
    """Return the fixed and per-candidate seconds of the line through Ribbon's means."""
    found = [
        (int(row["batch_items"]), float(row["mean_ms"]) / 1e3)
        for row in rows("ribbon_latency_ms_by_batch.csv")
        if row["instance"] == instance and row["model"] == ANCHORS[model]
    ]
    n, s = np.array(found).T
    per, fixed = np.polyfit(n, s, 1)
    return float(fixed), float(per)


def lookups(model: str, batch: int) -> float:
    """Return the share of a CPU's time that gathering embeddings takes."""
    known = {
        int(row["batch"]): float(row["SparseLengthsSum"]) / 100
        for row in rows("paper_operator_shares_pct.csv")
        if row["hardware"] == "cpu" and row["model"].lower().replace("-", "_") == model
    }
    return float(np.interp(math.log(batch), np.log(sorted(known)), [known[b] for b in sorted(known)]))


def matrices(model: str, batch: int) -> float:
    """Return the share of a CPU's time that multiplying matrices takes."""
    known = {
        int(row["batch"]): (float(row["FC"]) + float(row["RecurrentNetwork"])) / 100
        for row in rows("paper_operator_shares_pct.csv")
        if row["hardware"] == "cpu" and row["model"].lower().replace("-", "_") == model
    }
    return float(np.interp(math.log(batch), np.log(sorted(known)), [known[b] for b in sorted(known)]))


def rising(seconds: Callable[[int], float]) -> Callable[[int], float]:
    """Return the seconds with no batch faster than a smaller one."""
    most = dict(zip(SIZES, np.maximum.accumulate([seconds(n) for n in SIZES]).tolist(), strict=True))
    return most.__getitem__


def contended(model: str, broadwell: bool) -> Callable[[int], float]:
    """Return by how much all cores at work slow each other, by batch size."""

    def factor(n: int) -> float:
        misses = SKYLAKE_MISSES
        if broadwell:
            misses = float(np.interp(math.log(n), np.log(list(MISSES)), list(MISSES.values())))
        return 1 + misses * (COMPUTE_FELT + (1 - COMPUTE_FELT) * lookups(model, n))

    return factor


def cpu_kind(
    alone: Mapping[str, Callable[[int], float]], sigma: Mapping[str, float], broadwell: bool
) -> Curves:
    made: Curves = {}
    for model, seconds in alone.items():
        slower = contended(model, broadwell)
        busy = rising(lambda n, s=seconds, f=slower: s(n) * f(n))  # type: ignore[misc]
        made[model] = curve(rising(seconds), sigma[model]), curve(busy, sigma[model])
    return made


def main() -> None:
    here = {model: read_profile(DATA / "profiles" / f"{model}.json").backend("cpu") for model in SLUGS}
    sigma = {model: min(profile.busy.sigma, 0.2) for model, profile in here.items()}
    # How fast a Skylake core is beside one of this machine, where the fixed cost no longer counts.
    ratio = math.exp(
        np.mean(
            [
                math.log((fixed + per * n) / here[model].alone.mean_s(n))
                for model in ANCHORS
                for fixed, per in [ribbon("m5.xlarge", model)]
                for n in (300, 400, 500)
            ]
        )
    )
    skylake = {m: (lambda n, p=p: ratio * p.alone.mean_s(n)) for m, p in here.items()}
    broadwell = {m: (lambda n, m=m: skylake[m](n) * (1 + (SIMD - 1) * matrices(m, n))) for m in here}
    fixed_s = math.exp(np.mean([math.log(ribbon("m5.xlarge", m)[0]) for m in ANCHORS]))
    published = {m: ribbon("m5.xlarge", m) for m in ANCHORS}
    caffe2 = {
        m: (
            (lambda n, f=published[m]: f[0] + f[1] * n)
            if m in published
            else (lambda n, m=m: fixed_s + skylake[m](n))
        )
        for m in here
    }
    broadwell_caffe2 = {m: (lambda n, m=m: caffe2[m](n) * (1 + (SIMD - 1) * matrices(m, n))) for m in here}
    base = f"this machine's ONNX Runtime x {ratio:.2f} (Ribbon's m5 core beside it at 300 to 500 candidates)"
    busy = (
        f"all cores busy: x 1 + misses ({COMPUTE_FELT:g} + {1 - COMPUTE_FELT:g} x share of look-ups), misses "
        f"{SKYLAKE_MISSES:g} (assumed) on Skylake, 0.55 at batch 16 to 0.40 at 1024 on Broadwell (by the paper)"
    )
    avx = f"x 1 + {SIMD - 1:.2f} x share of matrix products (2.0 GHz AVX-512 against 2.4 GHz AVX-2)"
    costly = (
        "Ribbon's lines for MT-WnD and DIEN on an m5 core (published); the other models: skylake-like + "
        f"{1e3 * fixed_s:.1f} ms, the geometric mean of those lines' fixed parts"
    )
    power = "TDP by the paper (not re-checked), idle 40 % of it (assumed); price 0.096 a core-hour (assumed)"
    this = {m: (p.alone, p.busy) for m, p in here.items()}
    write(
        "this-machine",
        "measured",
        "`deeprecsys profile` on two cores of an AMD EPYC; 7 W and 0.096 an hour a core, idle 40 % (assumed)",
        this,
        cores=2,
        watts=14.0,
    )
    for name, alone, cores, watts, what in (
        ("skylake-like", skylake, 40, 125.0, base),
        ("broadwell-like", broadwell, 28, 120.0, f"skylake-like {avx}"),
        ("skylake-caffe2", caffe2, 40, 125.0, costly),
        ("broadwell-caffe2", broadwell_caffe2, 28, 120.0, f"skylake-caffe2 {avx}"),
    ):
        wide = name.startswith("broadwell")
        write(
            name,
            "modelled",
            f"{what}; {busy}; {power}",
            cpu_kind(alone, sigma, wide),
            cores=cores,
            watts=watts,
        )
    accelerators(skylake, caffe2, sigma)


def accelerators(
    skylake: Mapping[str, Callable[[int], float]],
    caffe2: Mapping[str, Callable[[int], float]],
    sigma: Mapping[str, float],
) -> None:
    """Write the accelerators' kinds."""

    def over(table: Mapping[str, Callable[[int], float]]) -> Curves:
        made: Curves = {}
        for model, seconds in table.items():
            flat = curve(rising(seconds), min(sigma[model], 0.05))
            profile = accelerated(BackendProfile("cpu", flat, flat), gpu_speedup(model))
            made[model] = profile.alone, profile.busy
        return made

    gtx, gtx_caffe2 = over(skylake), over(caffe2)
    released = "the GTX 1080 Ti's released speed-up over a Skylake core, data loading included"
    for name, made, base in (
        ("gtx1080ti-like", gtx, "skylake-like"),
        ("gtx1080ti-caffe2", gtx_caffe2, "skylake-caffe2"),
    ):
        write(
            name,
            "modelled",
            f"{base} alone over {released}; 250 W as reported by the paper, idle 10 % and price 0.35 an "
            "hour (assumed)",
            made,
            slots=1,
            watts=250.0,
            price=0.35,
        )
    t4 = {m: ribbon("g4dn.xlarge", m) for m in ANCHORS}
    faster = math.exp(
        np.mean(
            [
                math.log((f + per * n) / gtx_caffe2[m][0].mean_s(n))
                for m, (f, per) in t4.items()
                for n in (64, 256, 512)
            ]
        )
    )
    made = {}
    for model in skylake:
        line = t4.get(model)
        seconds = (
            (lambda n, line=line: line[0] + line[1] * n)
            if line
            else (lambda n, m=model: faster * gtx_caffe2[m][0].mean_s(n))
        )
        made[model] = (curve(rising(seconds), 0.02),) * 2
    write(
        "t4-caffe2",
        "modelled",
        f"Ribbon's T4 lines for MT-WnD and DIEN (published); the others: gtx1080ti-caffe2 x "
        f"{faster:.2f}, the T4 beside it on those two; 70 W, idle 10 %, price 0.33 an hour (assumed)",
        made,
        slots=1,
        watts=70.0,
        price=0.33,
    )
    result = {
        row["system"]: float(row["samples_per_s"])
        for row in rows("mlperf_dlrm_v2_server.csv")
        if row["accuracy_class"] == "99.9%"
    }
    cores = result["8x NVIDIA H200 SXM 141GB (TensorRT)"] / 8
    cores /= result["2-socket Intel Emerald Rapids (PyTorch)"] / EMERALD_CORES
    h200 = {
        m: (curve(rising(lambda n, s=s: H200_FIXED_S + max(s(1024) - s(1), 0.0) / 1023 * n / cores), 0.02),)
        * 2  # type: ignore[misc]
        for m, s in skylake.items()
    }
    write(
        "h200-like",
        "modelled",
        f"{1e3 * H200_FIXED_S:g} ms (assumed) + skylake-like's seconds per candidate / {cores:.0f}, "
        f"MLPerf DLRM-DCNv2 at 99.9 %: one of 8 H200 beside one of {EMERALD_CORES} Emerald Rapids cores; "
        "700 W, idle 10 %, price 4 an hour (assumed)",
        h200,
        slots=1,
        watts=700.0,
        price=4.0,
    )


def write(
    name: str,
    origin: str,
    derivation: str,
    curves: Curves,
    *,
    watts: float,
    cores: int | None = None,
    slots: int | None = None,
    price: float | None = None,
) -> None:
    """Write one kind, a line for each curve, numbers to four digits."""
    head: dict[str, Any] = {"name": name, "origin": origin, "derivation": derivation}
    head |= {"cores": cores} if cores else {"slots": slots}
    head |= {"watts": watts, "idle_watts": watts * (0.4 if cores else 0.1)}
    head["price"] = round(0.096 * cores, 3) if cores else price
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    models = []
    for model, (alone, busy) in sorted(curves.items()):
        alone_text, busy_text = (
            json.dumps(
                [
                    [p.batch_size, *(float(f"{s:.4g}") for s in (p.mean_s, p.p50_s, p.p95_s, p.p99_s))]
                    for p in c.points
                ]
            )
            for c in (alone, busy)
        )
        models.append(f'    "{model}": {{\n      "alone": {alone_text},\n      "busy": {busy_text}\n    }}')
    KINDS.mkdir(exist_ok=True)
    text = "\n".join(["{", *lines, '  "models": {', ",\n".join(models), "  }", "}", ""])
    (KINDS / f"{name}.json").write_text(text, encoding="utf-8")
    fit = {m: c[1].fit() for m, c in sorted(curves.items())}
    print(
        name,
        origin,
        {m: f"{1e3 * f.fixed_s:.2f} ms + {1e6 * f.per_candidate_s:.1f} us" for m, f in fit.items()},
    )


if __name__ == "__main__":
    main()
