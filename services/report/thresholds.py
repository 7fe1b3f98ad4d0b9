"""Throughput by threshold: from which size on queries go to an accelerator."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import FigureBase

from services.report.content import Absent, Panel, Plot, Section, Table
from services.report.palette import BLUE, GREEN, MUTED, RUST, Mark
from services.report.results import LiveSweep, Offload, Origin, SimulatedSweep, Swept, SweptAt, Thresholds
from services.report.sources import Sources

BEARS = Mark("within the target", BLUE, marker="o")
NONE = Mark("CPU alone", MUTED, line="--")
CHOSEN = Mark("chosen by the hill climb", GREEN, line="", marker="D")
AT_MOST = Mark("search ended: no more than", RUST, line="", marker="v")


def section(sources: Sources) -> Section:
    """Return the section: simulated beside a modelled accelerator, live beside a PACED one."""
    text = (
        "Queries of at least the threshold go whole to the accelerator, the others stay on the cores. Too low a "
        "threshold floods the one, too high a one leaves it idle. No GPU was at hand: the accelerator is modelled, or "
        "paced after a model, and says so."
    )
    parts: list[Plot | Table | Absent] = []
    parts += [_simulated(simulated) for simulated in sources.of(Thresholds)]
    for offload in sources.of(Offload):
        parts += _live(offload)
    if not sources.of(Thresholds):
        parts.append(Absent("the simulated sweep", "python -m benchmarks.threshold_sweep"))
    if not any(offload.threshold for offload in sources.of(Offload)):
        parts.append(Absent("the live sweep", "python -m benchmarks.offload threshold"))
    return Section("thresholds", "Thresholds of offloading", text, parts)


def _simulated(result: Thresholds) -> Plot:
    panels = [
        Panel(
            f"{row.model}, target {row.sla_ms:.3g} ms, batch size {row.batch_size}",
            _in_words(row),
            lambda figure, row=row: _draw(figure, row),  # type: ignore[misc]
        )
        for row in result.rows
    ]
    return Plot(
        "thresholds",
        "Throughput by threshold, modelled accelerator",
        Origin.SIMULATED,
        panels,
        (BEARS, CHOSEN, NONE),
        "The accelerator runs this machine's batches as much faster as a GTX 1080 Ti was than a Skylake core.",
    )


def _draw(figure: FigureBase, row: SimulatedSweep) -> None:
    axes = figure.subplots()
    swept = _by_threshold(row)
    axes.plot(range(len(swept)), [each.qps for each in swept], **BEARS.line_style())
    for place, each in enumerate(swept):
        if each.offload_from is None:
            axes.axhline(each.qps, color=MUTED.light, linestyle="--", linewidth=1)
        if each.offload_from == row.tuned_offload_from:
            axes.plot(place, each.qps, **(CHOSEN.line_style() | {"markersize": 9, "fillstyle": "none"}))
    axes.set_xticks(range(len(swept)), [_name(each) for each in swept], fontsize=7, rotation=45)
    axes.margins(y=0.08)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("offloaded from size")
    axes.set_ylabel("queries/s")


def _by_threshold(row: SimulatedSweep) -> Sequence[SweptAt]:
    return sorted(row.sweep, key=lambda each: (each.offload_from is None, each.offload_from or 0))


def _name(each: SweptAt) -> str:
    return "none" if each.offload_from is None else str(each.offload_from)


def _in_words(row: SimulatedSweep) -> str:
    rates = ", ".join(f"{_name(each)}: {each.qps:,.0f}" for each in _by_threshold(row))
    return f"Queries per second within the target by threshold. {rates}. Chosen: {row.tuned_offload_from or 'none'}."


def _live(offload: Offload) -> list[Plot | Table | Absent]:
    paced = [row for row in offload.threshold if row.accelerator == "paced"]
    parts: list[Plot | Table | Absent] = []
    if paced:
        panels = [
            Panel(row.model, _live_in_words(row), lambda figure, row=row: _draw_live(figure, row))  # type: ignore[misc]
            for row in paced
        ]
        parts.append(
            Plot(
                "thresholds_paced",
                "Throughput by threshold, live",
                Origin.PACED,
                panels,
                (BEARS, AT_MOST, NONE),
                "A triangle is a bound: the search ended as soon as the threshold was no better than the best before.",
            )
        )
    if offload.crossover:
        rows = [
            [
                row.model,
                str(row.measured_from or "none"),
                str(row.predicted_from or "none"),
                f"{row.largest_cpu_ms:.1f}",
                f"{row.largest_offloaded_ms:.1f}",
            ]
            for row in offload.crossover
        ]
        largest = offload.crossover[0].largest
        columns = ("model", "faster from", "by the profile", f"{largest} candidates: CPU ms", "PACED ms")
        title = "From which size a lone query is faster offloaded"
        parts.append(Table(title, Origin.PACED, columns, rows))
    return parts


def _draw_live(figure: FigureBase, row: LiveSweep) -> None:
    axes = figure.subplots()
    names = _ascending(row.sweep)
    found = [(k, row.sweep[name].qps) for k, name in enumerate(names) if row.sweep[name].qps > 0]
    axes.plot(*zip(*found, strict=True), **BEARS.line_style())
    bounds = [(k, b) for k, name in enumerate(names) if (b := _bound(row.sweep[name])) is not None]
    if bounds:
        axes.plot(*zip(*bounds, strict=True), **AT_MOST.line_style())
    if (alone := row.sweep.get("none")) is not None:
        axes.axhline(alone.qps, color=MUTED.light, linestyle="--", linewidth=1)
    axes.set_xticks(range(len(names)), names, fontsize=7)
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("offloaded from size")
    axes.set_ylabel("queries/s")


def _bound(swept: Swept) -> float | None:
    return swept.no_more_than if swept.qps <= 0 else None


def _ascending(sweep: dict[str, Swept]) -> list[str]:
    return sorted(sweep, key=lambda name: int(name) if name.isdigit() else 1 << 30)


def _live_in_words(row: LiveSweep) -> str:
    said = []
    for name in _ascending(row.sweep):
        bound = _bound(row.sweep[name])
        said.append(
            f"{name}: {row.sweep[name].qps:,.0f}" if bound is None else f"{name}: no more than {bound:,.0f}"
        )
    return f"Queries per second within the target by threshold. {', '.join(said)}. Best: {row.best}."
