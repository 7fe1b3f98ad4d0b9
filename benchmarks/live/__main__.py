"""What DeepRecSched brings on a live server, measured on this machine.

    python -m benchmarks.live [--repository model_repository] [--minutes 75] [PART ...]

Parts: `scaled` (throughput of the three policies at a target of four times what a lone p95-size query takes), `change`
(the controller follows cold starts, steps, larger queries, a taken core), `together` (one of two models flooded),
`medium` (throughput at the paper's targets), `seeds` (wnd, rmc1, ncf and dien with two more seeds). Client and server
share the machine's cores; the driver runs before all others where the system permits it.
Findings are kept in benchmarks/results/live.jsonl and never measured twice: an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.live import change, throughput, together
from benchmarks.live.findings import Findings, OutOfTimeError
from benchmarks.live.throughput import COMPARED, geometric_mean
from services.machine import describe_machine
from services.models.spec import SLUGS

RESULTS = Path(__file__).parent.parent / "results"
CLOSELY = ("wnd", "rmc1", "ncf", "dien")
PARTS = ("scaled", "change", "together", "medium", "seeds")


def measure(findings: Findings, repository: Path, parts: list[str]) -> None:
    """Measure what is missing, the most telling first; OutOfTimeError when time is up."""
    for models in (CLOSELY, [model for model in SLUGS if model not in CLOSELY]):
        if "scaled" in parts:
            for model in models:
                throughput.study(findings, repository, model, "scaled", 0)
        if "change" in parts:
            change.study(findings, repository, CLOSELY[0])
        if "together" in parts:
            together.study(findings, repository)
    if "medium" in parts:
        for model in ordered():
            throughput.study(findings, repository, model, "medium", 0)
    if "seeds" in parts:
        for target, model, seed in itertools.product(("scaled", "medium"), CLOSELY, (1, 2)):
            throughput.study(findings, repository, model, target, seed)


def ordered() -> list[str]:
    """Return the models, those that are looked at closely first."""
    return [*CLOSELY, *(model for model in SLUGS if model not in CLOSELY)]


def show_throughput(console: Console, findings: Findings, target: str) -> list[dict[str, Any]]:
    rows = [row for m in ordered() if (row := throughput.summary(findings, m, target)) is not None]
    if not rows:
        console.print(f"{target}: nothing measured yet")
        return rows
    table = Table(title=f"{target}: queries/s within the target, live (batch size; seeds)")
    columns = ("adaptive / static", "/ paper", "p99, slowest ms", "offline peak", "adaptive / peak")
    for heading in ("model", "ms", *COMPARED, *columns):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        if "adaptive" not in row:
            table.add_row(row["model"], f"infeasible: a lone query takes {row['lone_ms']:.1f}")
            continue
        cells = [
            f"{row[p]['qps']:.1f} ({row[p]['batch_size']}; {row[p]['seeds']})" if row[p]["qps"] else "none"
            for p in COMPARED
        ]
        ratios = [
            f"{row['adaptive']['qps'] / row[p]['qps']:.2f}" if row[p]["qps"] else f"{p} meets none"
            for p in ("static", "paper")
        ]
        late = (
            f"{row['adaptive']['p99_ms']:.0f}, {row['adaptive']['slowest_ms']:.0f}"
            if row["adaptive"]["qps"]
            else ""
        )
        peak = f"{row['peak_qps']:.1f}", f"{row['adaptive']['qps'] / row['peak_qps']:.2f}"
        table.add_row(row["model"], f"{row['target_ms']:.1f}", *cells, *ratios, late, *peak)
    console.print(table)
    for over, under in (("paper", "static"), ("adaptive", "static"), ("adaptive", "paper")):
        mean, models = geometric_mean(rows, over, under)
        console.print(f"{target}: {over} / {under}, geometric mean {mean:.2f} over {models} models")
    return rows


def show_change(console: Console, findings: Findings) -> list[dict[str, Any]]:
    rows = [
        {"model": key.split("/")[1], "scenario": key.split("/")[2], **value}
        for key, value in findings.found.items()
        if key.startswith("change/")
    ]
    table = Table(title="one-second windows inside the target, live; seconds until settled")
    for heading in ("model", "scenario", "queries/s", "steered", "pinned best", "ratio", "settled after s"):
        table.add_column(heading, justify="left" if heading in ("model", "scenario") else "right")
    for row in rows:
        ratio = f"{row['steered_inside'] / row['pinned_inside']:.2f}" if row["pinned_inside"] else "-"
        settled = "not" if row["settled_s"] is None else str(row["settled_s"])
        table.add_row(
            row["model"],
            row["scenario"],
            f"{row['qps']:.1f}",
            f"{row['steered_inside']:.2f}",
            f"{row['pinned_inside']:.2f}",
            ratio,
            settled,
        )
    console.print(table)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--minutes", type=float, default=75.0, help="begin nothing more after so long")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    console = Console(width=170)
    findings = Findings(RESULTS / "live.jsonl", time.monotonic() + 60 * arguments.minutes)
    try:
        measure(findings, arguments.repository, arguments.parts or list(PARTS))
    except OutOfTimeError:
        console.print("out of time: run it again to go on")
    result = {
        "machine": dataclasses.asdict(describe_machine()),
        **{target: show_throughput(console, findings, target) for target in ("scaled", "medium")},
        "change": show_change(console, findings),
        "together": findings.found.get("together"),
    }
    console.print(f"together: {result['together']}")
    (RESULTS / "live.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
