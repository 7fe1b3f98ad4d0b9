"""Tails by rate, with the target drawn in: from sweeps, and from searches for the highest rate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.figure import FigureBase

from services.report.axes import logarithmic
from services.report.content import Absent, Panel, Plot, Section, Table
from services.report.palette import BLUE, GREEN, MUTED, PLUM, RUST, Mark
from services.report.results import Judged, Load, Origin, Search, SlaOf, Sweep, Tail
from services.report.sources import Sources

P50 = Mark("p50", GREEN, line=":", marker="^")
P95 = Mark("p95", BLUE, marker="o")
P99 = Mark("p99", PLUM, line="-.", marker="s")
TARGET = Mark("target", RUST, line="--")
FAILED = Mark("target not met", RUST, line="", marker="x")
HIGHEST = Mark("highest rate within it", MUTED, line="--")
COMMAND = "deeprecsys load --model wnd --sweep 20,40,80,160 --json wnd.json; deeprecsys report wnd.json"
TAILS = ((P50, "p50_s"), (P95, "p95_s"), (P99, "p99_s"))


@dataclass(frozen=True)
class Rung:
    """One rate: what it showed, and why it does not meet the target, None when it does."""

    qps: float
    tail: Tail
    shortfall: str | None


@dataclass(frozen=True)
class LoadCurve:
    """One model's rungs, ascending in rate; ``highest_qps``: what a search found, None of a sweep."""

    model: str
    sla: SlaOf
    rungs: tuple[Rung, ...]
    highest_qps: float | None


def section(sources: Sources) -> Section:
    """Return the section: one panel a model and file."""
    text = (
        "The same queries at ever higher rates, sent on time whether or not answers come. Latency is counted from the "
        "moment at which a query was due. A cross marks a rate at which the target is missed or the server does not "
        "keep up."
    )
    curves = [c for sweep in sources.of(Sweep) for c in of_sweep(sweep)]
    curves += map(of_search, sources.of(Search))
    parts: list[Plot | Table | Absent] = [_plot(curves)] if curves else [Absent("tails by rate", COMMAND)]
    runs = _runs(sources.of(Load), sources.of(Judged))
    if runs.rows:
        parts.append(runs)
    return Section("load", "Latency by load", text, parts)


def _plot(curves: Sequence[LoadCurve]) -> Plot:
    panels = [
        Panel(
            f"{curve.model}: p{curve.sla.percentile:g} within {curve.sla.seconds * 1e3:.3g} ms",
            _in_words(curve),
            lambda figure, curve=curve: _draw(figure, curve),  # type: ignore[misc]
        )
        for curve in curves
    ]
    marks = (P50, P95, P99, TARGET, FAILED, HIGHEST)
    return Plot("load", "Latency by load", Origin.MEASURED, panels, marks)


def _runs(loads: Sequence[Load], judged: Sequence[Judged]) -> Table:
    """Return the single runs, and the tests that MLPerf LoadGen judged."""
    rows = []
    for load in loads:
        for each in load.models:
            tails = [_text(getattr(each.measurement, name)) for _, name in TAILS]
            verdict = load.cut_short or each.shortfall or "target met"
            rows.append([each.model, f"{each.qps:.4g}", f"{each.sla.seconds * 1e3:.4g}", *tails, verdict])
    for test in judged:
        tails = [_text(getattr(test, name)) for _, name in TAILS]
        verdict = f"MLPerf LoadGen {test.loadgen_version}: {test.verdict or 'cut short'}"
        rows.append([test.model, "", f"{test.sla.seconds * 1e3:.4g}", *tails, verdict])
    columns = ("model", "queries/s", "target ms", "p50 ms", "p95 ms", "p99 ms", "verdict")
    return Table("Single runs", Origin.MEASURED, columns, rows)


def _text(seconds: float | None) -> str:
    return "none" if seconds is None else f"{seconds * 1e3:.3g}"


def of_sweep(sweep: Sweep) -> list[LoadCurve]:
    """Return one curve for each model of a sweep."""
    models = {each.model: each.sla for point in sweep.points for each in point.models}
    return [
        LoadCurve(
            model,
            sla,
            _ascending(
                Rung(each.qps, each.measurement, each.shortfall)
                for point in sweep.points
                for each in point.models
                if each.model == model
            ),
            None,
        )
        for model, sla in models.items()
    ]


def of_search(search: Search) -> LoadCurve:
    """Return the curve of the rates that a search tried."""
    rungs = _ascending(Rung(p.qps, p.measurement, p.shortfall) for p in search.capacity.probes)
    return LoadCurve(search.model, search.sla, rungs, search.capacity.qps)


def _ascending(rungs: Iterable[Rung]) -> tuple[Rung, ...]:
    return tuple(sorted(rungs, key=lambda rung: rung.qps))


def _draw(figure: FigureBase, curve: LoadCurve) -> None:
    axes = figure.subplots()
    for mark, name in TAILS:
        axes.plot([r.qps for r in curve.rungs], _ms(curve.rungs, name), **mark.line_style())
    missed = [r for r in curve.rungs if r.shortfall is not None]
    style = FAILED.line_style() | {"markersize": 9, "markeredgewidth": 2}
    axes.plot([r.qps for r in missed], _ms(missed, "tail_s"), **style)
    axes.axhline(curve.sla.seconds * 1e3, color=RUST.light, linestyle="--", linewidth=1.4)
    if curve.highest_qps:
        axes.axvline(curve.highest_qps, color=MUTED.light, linestyle="--", linewidth=1)
    logarithmic(axes)
    axes.set_xlim(left=0)
    axes.set_xlabel("queries/s")
    axes.set_ylabel("ms")


def _ms(rungs: Sequence[Rung], name: str) -> list[float]:
    found = (getattr(r.tail, name) for r in rungs)
    return [float("nan") if s is None else s * 1e3 for s in found]


def _in_words(curve: LoadCurve) -> str:
    said = []
    for r in curve.rungs:
        p95 = "without answers" if r.tail.p95_s is None else f"p95 {r.tail.p95_s * 1e3:.3g} ms"
        said.append(f"{r.qps:.4g} queries/s: {p95}{'' if r.shortfall is None else ', target missed'}")
    return "; ".join(said) + "."
