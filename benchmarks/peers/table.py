"""The one table: queries/s within the target, models by peers, ratios, geometric means, and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rich.table import Table

from benchmarks.peers.contestants import OURS
from benchmarks.peers.peer import Peer
from benchmarks.peers.study import best_peer


def geometric_mean(ratios: Sequence[float]) -> float:
    """Return the geometric mean, NaN of none."""
    return math.exp(fmean(map(math.log, ratios))) if ratios else math.nan


def ratios(rows: Sequence[dict[str, Any]], peer: Peer) -> list[float]:
    """Return this service's throughput over a peer's, for the models where both meet the target."""
    pairs = [(row[OURS.name]["qps"], row.get(peer.name, {}).get("qps")) for row in rows]
    return [ours / theirs for ours, theirs in pairs if ours and theirs]


def over_best(rows: Sequence[dict[str, Any]], peers: list[Peer]) -> list[float]:
    """Return this service's throughput over that of each model's best peer, where both meet the target."""
    pairs = [(row, best_peer(row, peers)) for row in rows]
    return [
        row[OURS.name]["qps"] / row[peer.name]["qps"] for row, peer in pairs if peer and row[OURS.name]["qps"]
    ]


def table(rows: Sequence[dict[str, Any]], peers: list[Peer]) -> Table:
    """Return the table: one line a contestant, and for each model its queries/s and the MiB of all its processes."""
    shown = Table(title="queries/s within the target (MiB resident, shared pages once), by model")
    shown.add_column("")
    for row in rows:
        shown.add_column(f"{row['model']}, {row['target_ms']:.1f} ms", justify="right")
    shown.add_column("this service / it, geometric mean", justify="right")
    shown.add_row(OURS.title, *(_cell(row[OURS.name]) for row in rows), "")
    for peer in peers:
        cells = [_cell(row.get(peer.name)) for row in rows]
        mean = _mean(ratios(rows, peer)) if peer.compared else "outside every mean"
        shown.add_row(peer.title, *cells, mean)
    each = [_against_best(row, peers) for row in rows]
    shown.add_section()
    shown.add_row("this service / the best peer", *each, _mean(over_best(rows, peers)))
    return shown


def _against_best(row: dict[str, Any], peers: list[Peer]) -> str:
    if not any(peer.compared and peer.name in row for peer in peers):
        return "not measured"
    peer = best_peer(row, peers)
    if peer is None:
        return "no peer meets it"
    return f"{row[OURS.name]['qps'] / row[peer.name]['qps']:.2f} ({peer.name})"


def _mean(of: Sequence[float]) -> str:
    return f"{geometric_mean(of):.2f} over {len(of)}" if of else "-"


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not measured"
    if "failed" in found:
        return "does not serve"
    rate = f"{found['qps']:.1f}" if found["qps"] else "none"
    return f"{rate} ({found['pss_mib']:.0f})"
