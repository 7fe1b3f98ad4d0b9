"""Whole days out of their parts: percentiles over all queries of a day, each part with the weight of its rate."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from scheduler.sketch import LatencySketch, blended
from services.fleet.sweep import Row


def whole_days(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each setting of a sweep; the parts of a day follow each other in ``rows``."""
    return [_day(list(parts)) for _, parts in groupby(rows, key=lambda row: json.dumps(row["labels"]))]


def _day(parts: list[Row]) -> Row:
    first, mean = parts[0], 1 / len(parts)
    models = sorted({model for part in parts for model in part["models"]})
    return {
        **{name: first[name] for name in ("labels", "nodes", "origins", "price")},
        "parts": len(parts),
        "known": sum(part["known"] for part in parts),
        "queries": sum(part["queries"] for part in parts),
        "qps": sum(part["qps"] for part in parts) * mean,
        "busy": sum(part["busy"] for part in parts) * mean,
        "accelerator_busy": sum(part["accelerator_busy"] for part in parts) * mean,
        "watts": sum(part["watts"] for part in parts) * mean,
        "models": {model: _model(parts, model) for model in models},
    }


def _model(parts: list[Row], model: str) -> dict[str, Any]:
    own = [(part["qps"], part["models"][model]) for part in parts if model in part["models"]]
    weighed = [(LatencySketch.from_dict(seen["sketch"]), qps) for qps, seen in own]
    total = sum(qps for qps, _ in own)
    lost = sum(qps * seen["failed"] / max(1, seen["queries"]) for qps, seen in own)
    seconds = {f"p{p}_ms": blended(weighed, p) for p in (50, 95, 99)}
    return {
        **{name: 1e3 * s if math.isfinite(s) else None for name, s in seconds.items()},
        "queries": sum(seen["queries"] for _, seen in own),
        "failed_share": lost / total if total else 0.0,
        "parts": len(own),
        "parts_met": sum(seen["met"] for _, seen in own),
        "sla_ms": own[0][1]["sla_ms"],
    }
