"""The tables of what was found. What a PACED accelerator has to do with says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from benchmarks.offload.accelerators import KINDS
from benchmarks.offload.targets import PAPER, means

Rows = Sequence[dict[str, Any]]


def hop_table(rows: Rows) -> Table:
    table = _table(
        "Lone queries through real Triton on the same cores, ms; overhead = offloaded - bare",
        *("model", "transport", "size", "bare", "Rank, CPU", "offloaded", "overhead"),
        *("Triton: compute", "rest", "outside", "CPU ms: CPU path", "Rank", "Triton"),
    )
    for row in rows:
        figures = (f"{value:.2f}" for key, value in row.items() if key.endswith("_ms"))
        table.add_row(row["model"], row["transport"], str(row["size"]), *figures)
    return table


def crossover_table(rows: Rows) -> Table:
    table = _table(
        "PACED accelerator: size from which a lone query is faster there",
        *("model", "measured", "by the profile", "size", "CPU ms", "PACED ms", "waits late by ms"),
    )
    for row in rows:
        pays = (str(row[key] or "none") for key in ("measured_from", "predicted_from"))
        figures = (f"{row[key]:.2f}" for key in ("largest_cpu_ms", "largest_offloaded_ms", "late_ms"))
        table.add_row(row["model"], *pays, str(row["largest"]), *figures)
    return table


def threshold_table(rows: Rows, kind: str) -> Table:
    mine = [row for row in rows if row["accelerator"] == kind]
    thresholds = list(mine[0]["sweep"]) if mine else []
    table = _table(
        f"{KINDS[kind]}: queries/s within the scaled target by threshold; wanted: ratios of 0.95 or more",
        *("model", *thresholds, "best, fresh", "tuner", "ratio", "adaptive", "ratio"),
    )
    for row in mine:
        sweep = (
            f"{each['qps']:.1f}" if each["qps"] else f"<= {each.get('no_more_than', 0.0):.1f}"
            for each in row["sweep"].values()
        )
        table.add_row(
            row["model"],
            *sweep,
            f"{row['best_qps']:.1f} ({row['best']})",
            f"{row['tuner_qps']:.1f} ({row['tuner']})",
            _ratio(row["tuner_over_best"]),
            f"{row['adaptive_qps']:.1f} ({row['adaptive_offload_from']})",
            _ratio(row["adaptive_over_best"]),
        )
    return table


def targets_table(rows: Rows) -> Table:
    table = _table(
        "CPU against CPU + PACED accelerator: queries/s within the target",
        *("model", "target", "ms", "static CPU", "adaptive CPU", "adaptive, CPU + PACED", "from"),
        *("PACED / static", "PACED / adaptive CPU"),
    )
    for row in rows:
        rates = (f"{row[key]:.1f}" if row[key] else "none" for key in ("static", "adaptive", "paced"))
        ratios = (_ratio(row["paced"] / row[key] if row[key] else None) for key in ("static", "adaptive"))
        table.add_row(
            *(row["model"], row["target"], f"{row['target_ms']:.1f}"),
            *rates,
            str(row["offload_from"] or "none"),
            *ratios,
        )
    return table


def means_lines(rows: Rows) -> list[str]:
    """Return for each target one line: the geometric means, the models they cover, and the paper's figure."""
    lines = []
    for target, paper in PAPER.items():
        mine = [row for row in rows if row["target"] == target]
        parts = []
        for under in ("static", "adaptive"):
            mean, met, left_out = means(mine, "paced", under)
            without = f", without {' '.join(left_out)} (no rate meets the target)" if left_out else ""
            parts.append(f"/ {under} CPU {mean:.2f} over {len(met)} models{without}")
        if mine:
            lines.append(
                f"{target}: CPU + PACED {'; '.join(parts)}; the paper's GPU over its static CPU: {paper}"
            )
    return lines


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("model", "transport", "target") else "right")
    return table
