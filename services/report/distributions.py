"""How latencies are distributed: the share of queries answered within a time, far into the tail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import FigureBase
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from services.report.content import Absent, Panel, Plot, Section
from services.report.latencies import LatencyRun
from services.report.palette import BLUE, GREEN, PLUM, RUST, STONE, Colour, Mark
from services.report.results import Origin, SlaOf
from services.report.sources import Sources

_LOOKS: Sequence[tuple[Colour, str]] = ((GREEN, ":"), (BLUE, "-"), (PLUM, "-."), (STONE, "-"))
"""Of the curves, the slowest rate first."""

TARGET = Mark("target", RUST, line="--")
LATEST = 3.3
"""Of the tail, as a power of ten of the late share: up to p99.95."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """One model: its target, and by rate float64 [Q], ascending latencies, infinite without an answer."""

    model: str
    sla: SlaOf
    latency_s: Mapping[float, NDArray[np.float64]]


def section(sources: Sources) -> Section:
    """Return the section: a plot for each file of latencies."""
    text = (
        "The share of queries answered within a time. The vertical axis stretches the tail: every step up is ten times "
        "fewer late queries. A query without an answer counts as late for ever."
    )
    files = sources.latencies
    if not files:
        command = (
            "deeprecsys load --model wnd --qps 50 --latencies wnd.parquet; deeprecsys report wnd.parquet"
        )
        return Section("distributions", "Latency distributions", text, [Absent("latencies", command)])
    plots = []
    for number, runs in enumerate(files.values(), 1):
        shown = chosen(runs)
        marks = [
            Mark(f"{run.load.qps:,.4g} queries/s", colour, line=line)
            for run, (colour, line) in zip(shown, _LOOKS, strict=False)
        ]
        panels = [
            Panel(
                f"{each.model}: p{each.sla.percentile:g} within {each.sla.seconds * 1e3:.3g} ms",
                _in_words(each),
                lambda figure, each=each, marks=marks: _draw(figure, each, marks),  # type: ignore[misc]
            )
            for each in distributions(shown)
        ]
        name = "distributions" if number == 1 else f"distributions_{number}"
        plots.append(Plot(name, "Latency distributions", Origin.MEASURED, panels, (*marks, TARGET)))
    return Section("distributions", "Latency distributions", text, plots)


def chosen(runs: Sequence[LatencyRun]) -> list[LatencyRun]:
    """Return as many runs as can be told apart, ascending in rate: the first, the last, and evenly between."""
    ordered = sorted(runs, key=lambda run: run.load.qps)
    places = np.linspace(0, len(ordered) - 1, min(len(ordered), len(_LOOKS)))
    return [ordered[round(float(place))] for place in places]


def distributions(runs: Sequence[LatencyRun]) -> list[Distribution]:
    """Return one distribution for each model of the runs."""
    models = {each.model: each.sla for run in runs for each in run.load.models}
    return [
        Distribution(
            model, sla, {run.load.qps: run.latency_s[model] for run in runs if model in run.latency_s}
        )
        for model, sla in models.items()
    ]


def _draw(figure: FigureBase, each: Distribution, marks: Sequence[Mark]) -> None:
    axes = figure.subplots()
    for (_, latency_s), mark in zip(each.latency_s.items(), marks, strict=True):
        late, ms = late_shares(latency_s)
        axes.plot(ms, late, **mark.line_style())
    axes.axvline(each.sla.seconds * 1e3, color=RUST.light, linestyle="--", linewidth=1.4)
    axes.axhline(-np.log10(1 - each.sla.percentile / 100), color=RUST.light, linestyle="--", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
    shown = (0, 50, 90, 95, 99, 99.9)
    axes.yaxis.set_major_locator(FixedLocator([-np.log10(1 - p / 100) for p in shown]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 - 100 * 10**-y:.4g} %"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, LATEST)
    axes.set_xlabel("ms")
    axes.set_ylabel("answered within")


def late_shares(latency_s: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return minus the power of ten of the share that is later, and the milliseconds: float64 [P] each.

    latency_s: float64 [Q], ascending. P is a few hundred at most, evenly spaced along the axis; queries without an
    answer end the curve.
    """
    count = len(latency_s)
    late = np.linspace(0.0, min(LATEST, np.log10(max(count, 1))), 240)
    index = np.minimum(np.ceil((1 - 10.0**-late) * (count - 1)).astype(int), count - 1)
    ms = latency_s[index] * 1e3 if count else np.array([])
    answered = np.isfinite(ms)
    return late[: len(ms)][answered], ms[answered]


def _in_words(each: Distribution) -> str:
    said = []
    for qps, latency_s in each.latency_s.items():
        inside = float(np.mean(latency_s <= each.sla.seconds)) if len(latency_s) else 0.0
        said.append(f"at {qps:.4g} queries/s {inside:.1%} of {len(latency_s):,} queries")
    return f"Answered within {each.sla.seconds * 1e3:.3g} ms: {'; '.join(said)}."
