"""This machine's operator shares beside the paper's, and the bottleneck of each model.

Reads results/characterisation, which `deeprecsys profile --output benchmarks/results/characterisation` wrote, and the
shares that the authors released (benchmarks/data). Prints the tables and writes results/operator_shares.json.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from services.characterise.characterisation import Characterisation, read_characterisation
from services.characterise.operators import PAPER_GROUPS

HERE = Path(__file__).parent
PAPER = HERE / "data" / "paper_operator_shares_pct.csv"
MEASURED = HERE / "results" / "characterisation"
RESULTS = HERE / "results" / "operator_shares.json"
MODELS = ("ncf", "wnd", "mt_wnd", "rmc1", "rmc2", "rmc3", "din", "dien")

Shares = dict[str, float]
"""Per cent by the paper's operator names."""


def paper_shares(path: Path = PAPER) -> dict[tuple[str, int], Shares]:
    """Return the released shares on the CPU by model and batch size."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["hardware"] == "cpu"]
    return {
        (row["model"].lower().replace("-", "_"), int(row["batch"])): {
            group: float(row.get(group) or 0.0) for group in PAPER_GROUPS
        }
        for row in rows
    }


def compared(
    found: Sequence[Characterisation], paper: Mapping[tuple[str, int], Shares]
) -> list[dict[str, object]]:
    """Return one entry for each model and batch size: both shares, and how much of the time has another name.

    ``moved`` is half the sum of the differences: the share of the time that would have to change its operator.
    """
    entries: list[dict[str, object]] = []
    for model in found:
        for at in model.operators:
            here = {group: 100 * share for group, share in at.breakdown.paper_share.items()}
            there = paper[model.model, at.breakdown.batch_size]
            entries.append(
                {
                    "model": model.model,
                    "batch_size": at.breakdown.batch_size,
                    "here_pct": {group: round(here[group], 1) for group in PAPER_GROUPS},
                    "paper_pct": there,
                    "moved_pct": round(sum(abs(here[g] - there[g]) for g in PAPER_GROUPS) / 2, 1),
                    "bottleneck": list(at.bottleneck.classes),
                    "limit": at.bottleneck.limit,
                    "of_roof": round(at.bottleneck.of_roof, 2),
                }
            )
    return entries


def work_table(found: Sequence[Characterisation]) -> Table:
    table = Table(
        *("model", "kMAC", "gathered KB", "in, out KB", "weights KB", "FLOP a byte at 64", "GFLOP/s", "GB/s"),
        *("class at 64", "limit", "of its roof"),
        title="a candidate's work, what batches of 64 achieve on one core, and the class",
    )
    for model in found:
        work, rate = model.work, next(r for r in model.rates if r.batch_size == 64)
        table.add_row(
            model.model,
            f"{work.macs / 1e3:,.0f}",
            f"{work.gathered_bytes / 1e3:.1f}",
            f"{work.streamed_bytes / 1e3:.1f}",
            f"{work.weight_bytes / 1e3:,.0f}",
            f"{rate.flops_per_byte:.1f}",
            f"{rate.flops_per_s / 1e9:.1f}",
            f"{rate.bytes_per_s / 1e9:.2f}",
            " + ".join(model.bottleneck.classes),
            model.bottleneck.limit,
            f"{100 * model.bottleneck.of_roof:.0f} %",
        )
    return table


def shares_table(entries: Sequence[Mapping[str, object]]) -> Table:
    table = Table(
        "model", "batch", *PAPER_GROUPS, "moved", title="% of the time on one core: here / the paper's"
    )
    for entry in entries:
        here, there = entry["here_pct"], entry["paper_pct"]
        assert isinstance(here, dict)
        assert isinstance(there, dict)
        cells = (f"{here[group]:.0f} / {there[group]:.0f}" for group in PAPER_GROUPS)
        table.add_row(str(entry["model"]), str(entry["batch_size"]), *cells, f"{entry['moved_pct']}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measured", type=Path, default=MEASURED, help="what `deeprecsys profile` wrote")
    measured = parser.parse_args().measured
    found = [read_characterisation(measured / f"{model}.characterisation.json") for model in MODELS]
    entries = compared(found, paper_shares())
    console = Console()
    console.print(work_table(found))
    console.print(shares_table(entries))
    RESULTS.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
