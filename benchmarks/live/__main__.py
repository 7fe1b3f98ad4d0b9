"""What DeepRecSched brings on a live server, measured on this machine.

    python -m benchmarks.live [--repository model_repository] [--minutes 75] [PART ...]

Parts, in this order: `scaled` and `medium` (throughput of the three policies at a target of four times what a lone
p95-size query takes, and at the paper's), `change` (the controller follows cold starts, steps, larger queries, a taken
core), `together` (one of two models flooded), `seeds` (the first two again, wnd, rmc1, ncf and dien, with two more
seeds). Client and server share the machine's cores; the driver runs before all others where the system permits it.
Findings are kept in benchmarks/results/live.jsonl and never measured twice: an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.live import change, throughput, together
from benchmarks.live.findings import Findings
from benchmarks.live.throughput import POLICIES, geometric_mean
from services.machine import describe_machine
from services.models.spec import SLUGS

RESULTS = Path(__file__).parent.parent / "results"
SIMULATED = RESULTS / "policies_simulated.json"
CLOSELY = ("wnd", "rmc1", "ncf", "dien")
PARTS = ("scaled", "medium", "change", "together", "seeds")


def tuned_batch_sizes() -> dict[tuple[str, str], int]:
    """Return what `paper` found offline, in the simulator, by model and target."""
    rows = json.loads(SIMULATED.read_text(encoding="utf-8"))["rows"]
    return {
        (row["model"], row["target"]): row["paper_batch_size"]
        for row in rows
        if row.get("sizes", "production") == "production" and "paper_batch_size" in row
    }


def steps(findings: Findings, repository: Path, parts: list[str]) -> Iterator[Callable[[], None]]:
    """Yield what there is to measure, most telling first."""
    tuned = tuned_batch_sizes()
    cases = [(target, model, 0) for target in ("scaled", "medium") if target in parts for model in ordered()]
    for target, model, seed in cases:
        yield lambda t=target, m=model, s=seed: throughput.study(  # type: ignore[misc]
            findings, repository, m, t, tuned[m, t], s
        )
    if "change" in parts:
        for model in CLOSELY[:1]:
            yield lambda m=model: change.study(findings, repository, m)  # type: ignore[misc]
    if "together" in parts:
        yield lambda: together.study(findings, repository)
    if "seeds" in parts:
        for target in ("scaled", "medium"):
            for model in CLOSELY:
                for seed in (1, 2):
                    yield lambda t=target, m=model, s=seed: throughput.study(  # type: ignore[misc]
                        findings, repository, m, t, tuned[m, t], s
                    )


def ordered() -> list[str]:
    """Return the models, those that are looked at closely first."""
    return [*CLOSELY, *(model for model in SLUGS if model not in CLOSELY)]


def show_throughput(console: Console, findings: Findings, target: str) -> list[dict[str, Any]]:
    rows = [row for m in ordered() if (row := throughput.summary(findings, m, target)) is not None]
    table = Table(title=f"{target}: queries/s within the target, live (batch size; seeds)")
    for heading in (
        "model",
        "ms",
        *POLICIES,
        "adaptive / static",
        "/ paper",
        "offline peak",
        "adaptive / peak",
    ):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        cells = [
            f"{row[p]['qps']:.1f} ({row[p]['batch_size']}; {row[p]['seeds']})" if row[p]["qps"] else "none"
            for p in POLICIES
        ]
        ratios = [
            f"{row['adaptive']['qps'] / row[p]['qps']:.2f}" if row[p]["qps"] else f"{p} meets none"
            for p in ("static", "paper")
        ]
        peak = f"{row['peak_qps']:.1f}", f"{row['adaptive']['qps'] / row['peak_qps']:.2f}"
        table.add_row(row["model"], f"{row['target_ms']:.1f}", *cells, *ratios, *peak)
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
    console, findings = Console(width=150), Findings(RESULTS / "live.jsonl")
    ends_s = time.monotonic() + 60 * arguments.minutes
    for step in steps(findings, arguments.repository, arguments.parts or list(PARTS)):
        if time.monotonic() > ends_s:
            console.print("out of time: run it again to go on")
            break
        step()
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
