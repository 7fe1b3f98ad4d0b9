"""The tables of `deeprecsys profile`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from scheduler.latency import LatencyProfile
from services.characterise.ceilings import Ceilings
from services.characterise.characterisation import Characterisation
from services.characterise.operators import PAPER_GROUPS
from services.characterise.roofline import Bottleneck


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    return table


def ceilings_table(ceilings: Sequence[Ceilings]) -> Table:
    """Show what the machine can do, in GB/s and GFLOP/s."""
    rates = [rate.row_bytes for rate in ceilings[0].gather]
    table = _table(
        "this machine at best",
        "cores",
        "read GB/s",
        "copy GB/s",
        *(f"rows of {row_bytes} B" for row_bytes in rates),
        "GFLOP/s",
    )
    for found in ceilings:
        rows = (f"{g.bytes_per_s / 1e9:.1f} ({g.small_pages_bytes_per_s / 1e9:.1f})" for g in found.gather)
        table.add_row(
            str(found.cores),
            f"{found.read_bytes_per_s / 1e9:.1f}",
            f"{found.copy_bytes_per_s / 1e9:.1f}",
            *rows,
            f"{found.flops_per_s / 1e9:.0f}",
        )
    table.caption = "random rows: a table in huge pages (in pages of 4 KiB, as ONNX Runtime maps tables)"
    return table


def latency_table(profile: LatencyProfile, found: Characterisation | None = None) -> Table:
    """Seconds by batch size on one core and on all, and what they achieve where the work is known."""
    cpu = profile.backend("cpu")
    achieved = ("GB/s", "GFLOP/s") if found else ()
    table = _table(
        f"{profile.model}: milliseconds a batch, microseconds a candidate; 1 core, then {profile.cores} busy",
        "batch",
        *("p50", "p95", "p99", "us/candidate", "candidates/s", *achieved),
        *("p50", "us/candidate", "candidates/s", *achieved),
    )
    for alone, busy in zip(cpu.alone.points, cpu.busy.points, strict=True):
        cells = [str(alone.batch_size)]
        for which, (point, cores, seconds) in enumerate(
            ((alone, 1, (alone.p50_s, alone.p95_s, alone.p99_s)), (busy, profile.cores, (busy.p50_s,)))
        ):
            cells += [f"{s * 1e3:.3f}" for s in seconds]
            each_s = point.mean_s / point.batch_size
            cells += [f"{each_s * 1e6:.1f}", f"{cores / each_s:,.0f}"]
            cells += _achieved(found, point.batch_size, which)
        table.add_row(*cells)
    return table


def _achieved(found: Characterisation | None, batch_size: int, which: int) -> list[str]:
    if found is None:
        return []
    rate = [rate for rate in found.rates if rate.batch_size == batch_size][which]
    return [f"{rate.bytes_per_s / 1e9:.2f}", f"{rate.flops_per_s / 1e9:.1f}"]


def operator_table(found: Characterisation) -> Table:
    """Shares by the paper's operator names and batch size, and the bottleneck of each batch size."""
    sizes = [str(shares.breakdown.batch_size) for shares in found.operators]
    table = _table(f"{found.model}: % of the seconds on one core, by batch size", "operator", *sizes)
    for group in PAPER_GROUPS:
        shares = [100 * shares.breakdown.paper_share[group] for shares in found.operators]
        if any(share >= 0.05 for share in shares):
            table.add_row(group, *(f"{share:.1f}" for share in shares))
    table.add_section()
    table.add_row("bottleneck", *(" + ".join(shares.bottleneck.classes) for shares in found.operators))
    table.add_row("limit", *(_limit(shares.bottleneck) for shares in found.operators))
    return table


def _limit(bottleneck: Bottleneck) -> str:
    return f"{bottleneck.limit} ({100 * bottleneck.of_roof:.0f} % of its roof)"


def summary_table(all_found: Sequence[Characterisation]) -> Table:
    """One line a model: the work of a candidate, and the class."""
    table = _table(
        "a candidate's work, and the bottleneck at batch 64",
        "model",
        "kMAC",
        "gathered KB",
        "in and out KB",
        "weights KB",
        "bottleneck",
        "limit",
    )
    for found in all_found:
        work = found.work
        table.add_row(
            found.model,
            f"{work.macs / 1e3:,.0f}",
            f"{work.gathered_bytes / 1e3:.1f}",
            f"{work.streamed_bytes / 1e3:.1f}",
            f"{work.weight_bytes / 1e3:,.0f}",
            " + ".join(found.bottleneck.classes),
            _limit(found.bottleneck),
        )
        if found.not_counted:
            table.add_row("", f"without {', '.join(found.not_counted)}")
    table.caption = "weights are read once a batch, the rest for each candidate"
    return table
