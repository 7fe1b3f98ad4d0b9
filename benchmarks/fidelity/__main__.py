"""The simulated node against the live server, on this machine.

    python -m benchmarks.fidelity [--repository model_repository] [--minutes 60] [MODEL ...]

For each model and policy: the node's profile (what batches took, hand-over included) and its front end are taken from a
live run under the size law lognormal:4.6,0.7; then, under `production`, latency-bounded throughput and the tails at 30,
50, 70 and 90 % of it, live (median of three runs) and simulated by the same Batcher and Controller. Client and server
share the machine's cores. Findings are kept in benchmarks/results/fidelity.jsonl: an interrupted run goes on where it
was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.fidelity.study import LOADS, compared, study
from benchmarks.live.findings import Findings, OutOfTimeError
from services.machine import describe_machine
from services.models.spec import SLUGS

RESULTS = Path(__file__).parent.parent / "results"
CLOSELY = ("wnd", "rmc1")


def cases(models: list[str]) -> list[tuple[str, str]]:
    """Return the models and policies to compare, `adaptive` first, the other policies for CLOSELY."""
    others = [(m, policy) for m in CLOSELY for policy in ("static", "paper") if m in models]
    return [(m, "adaptive") for m in models] + others


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the comparison: simulated over live, as a deviation in percent."""
    shown = Table(title="simulated against live: deviation in %, * beyond the bounds of the live runs")
    for heading in ("model", "policy", "queries/s live", "simulated", "off"):
        shown.add_column(heading, justify="left" if heading in ("model", "policy") else "right")
    for load in LOADS:
        shown.add_column(f"p50, p95, p99 at {load:.0%}", justify="right")
    shown.add_column("holds")
    for row in rows:
        cells = [
            ", ".join(
                f"{each[p]['off']:+.0%}{'' if each[p]['inside'] else '*'}" for p in ("p50", "p95", "p99")
            )
            for each in row["loads"]
        ]
        rates = f"{row['live_qps']:.1f}", f"{row['simulated_qps']:.1f}", f"{row['throughput_off']:+.0%}"
        shown.add_row(row["model"], row["policy"], *rates, *cells, "yes" if row["holds"] else "no")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--minutes", type=float, default=60.0, help="begin nothing more after so long")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(SLUGS))
    arguments = parser.parse_args()
    if unknown := set(arguments.models) - set(SLUGS):
        parser.error(f"there is no model {', '.join(sorted(unknown))}; known: {', '.join(SLUGS)}")
    console = Console(width=170)
    findings = Findings(RESULTS / "fidelity.jsonl", time.monotonic() + 60 * arguments.minutes)
    todo = cases(arguments.models or list(SLUGS))
    try:
        for model, policy in todo:
            study(findings, arguments.repository, model, policy)
    except OutOfTimeError:
        console.print("out of time: run it again to go on")
    rows = [row for case in cases(list(SLUGS)) if (row := compared(findings, *case)) is not None]
    console.print(table(rows))
    result = {"machine": dataclasses.asdict(describe_machine()), "rows": rows}
    (RESULTS / "fidelity.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
