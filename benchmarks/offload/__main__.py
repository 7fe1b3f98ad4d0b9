"""What offloading costs and brings, measured on this machine.

    python -m benchmarks.offload [--repository model_repository] [--minutes 40] [PART ...]

Parts: `hop` (what the way through a real Triton server adds to a lone query), `crossover` (from which size a PACED
accelerator is faster for one), `threshold` (the tuner's and the controller's choice against a sweep, with a real Triton
server on the same cores and with a PACED one, at a target of four times what a lone p95-size query takes), `targets`
(CPU against CPU + PACED accelerator at the paper's targets, and at half and one and a half times them).

PACED: a Triton server whose models wait as long as this machine's seconds over a GTX 1080 Ti's speed-up, and score
nothing; no GPU is measured. Client, Rank server and Triton server share the machine's cores.
Findings are kept in benchmarks/results/offload.jsonl and never measured twice: an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path

from rich.console import Console

from benchmarks.live.findings import Findings, OutOfTimeError
from benchmarks.offload import lone, tables, targets, threshold
from benchmarks.offload.accelerators import KINDS
from services.machine import describe_machine
from services.models.spec import SLUGS
from services.triton_server.install import PLACE, is_installed

RESULTS = Path(__file__).parent.parent / "results"
CLOSELY = ("wnd", "rmc1", "ncf", "dien")
FIRST = CLOSELY[:2]
MODELS = (*CLOSELY, *(model for model in SLUGS if model not in CLOSELY))
PARTS = ("hop", "crossover", "threshold", "targets")


def measure(findings: Findings, repository: Path, parts: list[str]) -> None:
    """Measure what is missing, the most telling first; OutOfTimeError when time is up."""
    for models in (CLOSELY, MODELS):
        for model in models:
            if "crossover" in parts:
                lone.study_crossover(findings, repository, model)
            if "hop" in parts:
                lone.study_hop(findings, repository, model)
        if "threshold" in parts:
            for kind, model in itertools.product(KINDS, FIRST if models is CLOSELY else CLOSELY):
                threshold.study(findings, repository, model, kind)
        if "targets" in parts:
            for target, model in itertools.product(("medium", "low", "high"), models):
                targets.study(findings, repository, model, target)


def show(console: Console, findings: Findings) -> dict[str, object]:
    """Print the tables of what has been measured, and return their rows."""
    hops = [row for model in MODELS for row in lone.hop_rows(findings, model)]
    crossovers = [row for model in MODELS if (row := lone.crossover_row(findings, model))]
    thresholds = [
        row for kind in KINDS for model in CLOSELY if (row := threshold.summary(findings, model, kind))
    ]
    reached = [
        row
        for target, model in itertools.product(targets.PAPER, MODELS)
        if (row := targets.summary(findings, model, target))
    ]
    console.print(tables.hop_table(hops), tables.crossover_table(crossovers))
    for kind in KINDS:
        console.print(tables.threshold_table(thresholds, kind))
    console.print(tables.targets_table(reached), *tables.means_lines(reached), sep="\n")
    return {"hop": hops, "crossover": crossovers, "threshold": thresholds, "targets": reached}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--minutes", type=float, default=40.0, help="begin nothing more after so long")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    if not is_installed(PLACE):
        parser.error(f"there is no Triton server in {PLACE}: `make triton` installs it")
    console = Console(width=190)
    findings = Findings(RESULTS / "offload.jsonl", time.monotonic() + 60 * arguments.minutes)
    try:
        measure(findings, arguments.repository, arguments.parts or list(PARTS))
    except OutOfTimeError:
        console.print("out of time: run it again to go on")
    result = {
        "machine": dataclasses.asdict(describe_machine()),
        "accelerators": KINDS,
        **show(console, findings),
    }
    (RESULTS / "offload.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
