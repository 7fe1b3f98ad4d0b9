"""Static against paper against adaptive, at each target."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import FigureBase

from services.report.content import Absent, Card, Panel, Plot, Section, Table
from services.report.palette import BLUE, INK, MUTED, RUST, STONE, Mark
from services.report.results import Live, LiveRow, Origin, Policies
from services.report.sources import Sources

MARKS = (
    Mark("static", STONE, bar=True),
    Mark("paper", RUST, hatch="////", bar=True),
    Mark("adaptive", BLUE, bar=True),
)
NAMES = tuple(mark.label for mark in MARKS)
TARGETS = {
    "low": "low: half of the paper's target",
    "medium": "medium: the paper's target",
    "high": "high: 1.5 times the paper's target",
    "scaled": "scaled: four times a lone query",
}
_EXPLAINED = (
    "Queries per second within the tail-latency target: the number at each bar, whose length is the share of the best "
    "of the three for that model. static: batches of 1000 over the cores. paper: the batch size tuned offline, in "
    "order of arrival. adaptive: tuned, coalesced, cut, and ordered by due time and remaining work."
)


@dataclass(frozen=True)
class Rates:
    """What the policies bear for one model; ``qps`` is empty where no policy can meet the target."""

    model: str
    target_ms: float | None
    lone_ms: float
    qps: Mapping[str, float]


def section(sources: Sources) -> Section:
    """Return the section: one plot of the simulated policies, one of the live ones."""
    parts: list[Plot | Table | Absent] = []
    for simulated in sources.of(Policies):
        groups = simulated_groups(simulated)
        parts.append(_plot("policies_simulated", "What the policies bear", Origin.SIMULATED, groups))
        parts.append(_means("Geometric means", Origin.SIMULATED, groups))
    for live in sources.of(Live):
        groups = live_groups(live)
        if groups:
            parts.append(_plot("policies_live", "What the policies bear, live", Origin.MEASURED, groups))
            parts.append(_means("Geometric means, live", Origin.MEASURED, groups))
    if not sources.of(Policies):
        parts.append(Absent("the simulated policies", "python -m benchmarks.policies"))
    if not sources.of(Live):
        parts.append(Absent("the policies on a live server", "python -m benchmarks.live"))
    return Section("policies", "Static, paper, adaptive", _EXPLAINED, parts)


def cards(sources: Sources) -> Iterable[Card]:
    """Yield the headline: how much more than static, at the paper's own target."""
    for shapes, origin in (
        ([live_groups(r) for r in sources.of(Live)], Origin.MEASURED),
        ([simulated_groups(r) for r in sources.of(Policies)], Origin.SIMULATED),
    ):
        for groups in shapes:
            for title, rates in groups.items():
                mean, models = geometric_mean(rates, "adaptive", "static")
                if title.startswith(("medium", "scaled")) and "released" not in title and models:
                    text = f"adaptive over static, {title}; geometric mean of {len(models)} models"
                    yield Card(f"{mean:.2f}x", text, origin)


def simulated_groups(result: Policies) -> dict[str, list[Rates]]:
    """Return the rates by target, in the order of TARGETS; other size laws last."""
    groups: dict[str, list[Rates]] = {}
    for sizes in dict.fromkeys(row.sizes for row in result.rows):
        for target, title in TARGETS.items():
            rows = [row for row in result.rows if (row.target, row.sizes) == (target, sizes)]
            name = title if sizes == "production" else f"{target}, {sizes} sizes"
            found = [
                Rates(
                    row.model,
                    row.sla_ms,
                    row.lone_ms,
                    {p: q for p in NAMES if (q := getattr(row, f"{p}_qps")) is not None},
                )
                for row in rows
            ]
            groups |= {name: found} if found else {}
    return groups


def live_groups(result: Live) -> dict[str, list[Rates]]:
    """Return the rates by target that were measured."""
    found = {title: _live(getattr(result, target)) for target, title in TARGETS.items()}
    return {title: rates for title, rates in found.items() if rates}


def _live(rows: Sequence[LiveRow]) -> list[Rates]:
    return [
        Rates(
            row.model,
            row.target_ms,
            row.lone_ms,
            {p: borne.qps for p in NAMES if (borne := getattr(row, p)) is not None},
        )
        for row in rows
    ]


def geometric_mean(rates: Iterable[Rates], over: str, under: str) -> tuple[float, list[str]]:
    """Return the geometric mean of a ratio and the models that it covers: those where both meet some rate."""
    ratios = {r.model: r.qps[over] / r.qps[under] for r in rates if r.qps.get(over) and r.qps.get(under)}
    if not ratios:
        return math.nan, []
    return math.exp(sum(map(math.log, ratios.values())) / len(ratios)), list(ratios)


def _plot(name: str, title: str, origin: Origin, groups: Mapping[str, list[Rates]]) -> Plot:
    panels = [
        Panel(group, _in_words(rates), lambda figure, rates=rates: _bars(figure, rates))  # type: ignore[misc]
        for group, rates in groups.items()
    ]
    return Plot(name, title, origin, panels, MARKS, height=1.15)


def _bars(figure: FigureBase, rates: Sequence[Rates]) -> None:
    axes = figure.subplots()
    for row, each in enumerate(rates):
        best = max(each.qps.values(), default=0.0)
        if best <= 0:
            text = f"none: a lone query takes {each.lone_ms:.3g} ms"
            axes.text(0.02, row, text, va="center", fontsize=7, color=MUTED.light)
            continue
        for place, mark in enumerate(MARKS):
            qps, y = each.qps.get(mark.label, 0.0), row + 0.27 * (place - 1)
            axes.barh(y, qps / best, height=0.24, **mark.bar_style())
            text = f"{qps:,.0f}" if qps else "none"
            axes.text(qps / best + 0.015, y, text, va="center", fontsize=6.5, color=INK.light)
    ticks = [f"{r.model}\n{r.target_ms:.3g} ms" if r.target_ms else r.model for r in rates]
    axes.set_yticks(range(len(rates)), ticks, fontsize=7.5)
    axes.set_ylim(len(rates) - 0.45, -0.55)
    axes.set_xlim(0, 1.16)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "best"])
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _in_words(rates: Sequence[Rates]) -> str:
    said = []
    for each in rates:
        bears = ", ".join(f"{p} {q:,.0f}" for p, q in each.qps.items() if q) or "no policy meets the target"
        said.append(f"{each.model}: {bears}")
    return "Queries per second within the target. " + "; ".join(said)


def _means(title: str, origin: Origin, groups: Mapping[str, list[Rates]]) -> Table:
    rows = []
    for group, rates in groups.items():
        cells = []
        for over, under in (("paper", "static"), ("adaptive", "static"), ("adaptive", "paper")):
            mean, models = geometric_mean(rates, over, under)
            cells.append(f"{mean:.2f} ({len(models)})" if models else "-")
        rows.append([group, *cells])
    columns = ("target", "paper / static", "adaptive / static", "adaptive / paper")
    return Table(title, origin, columns, rows, "In brackets the models where both meet some rate.")
