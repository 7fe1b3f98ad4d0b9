"""Seconds by batch size, one core alone and all cores busy."""

from __future__ import annotations

from matplotlib.figure import FigureBase

from services.report.axes import by_batch_size, logarithmic
from services.report.content import Absent, Panel, Plot, Section
from services.report.palette import BLUE, RUST, Mark
from services.report.results import BackendOf, CurveOf, Origin, Profile
from services.report.sources import Sources

ALONE = Mark("one core", BLUE, marker="o")
BUSY = Mark("all cores busy", RUST, line="--", marker="s")


def section(sources: Sources) -> Section:
    """Return the section: one panel a model."""
    text = (
        "Microseconds that a candidate costs, by the size of its batch: what an inference costs whatever its size is "
        "spread over more candidates, until caches and memory set an end to it. The ring marks the cheapest."
    )
    profiles = sources.of(Profile)
    if not profiles:
        return Section("batch-sizes", "Batch sizes", text, [Absent("profiles", "deeprecsys profile")])
    panels = [
        Panel(
            profile.model if len(profile.backends) == 1 else f"{profile.model}, {backend.name}",
            _in_words(backend),
            lambda figure, backend=backend: _draw(figure, backend),  # type: ignore[misc]
        )
        for profile in profiles
        for backend in profile.backends
        if not backend.modelled
    ]
    plot = Plot(
        "batch_sizes",
        "What a candidate costs by batch size",
        Origin.MEASURED,
        panels,
        (ALONE, BUSY),
        "Means of each batch size, both axes logarithmic; the band reaches from the median to p95 of one core.",
    )
    return Section("batch-sizes", "Batch sizes", text, [plot])


def _each_us(curve: CurveOf) -> tuple[list[int], list[float]]:
    return [p.batch_size for p in curve.points], [p.mean_s / p.batch_size * 1e6 for p in curve.points]


def _draw(figure: FigureBase, backend: BackendOf) -> None:
    axes = figure.subplots()
    points = backend.alone.points
    axes.fill_between(
        [p.batch_size for p in points],
        [p.p50_s / p.batch_size * 1e6 for p in points],
        [p.p95_s / p.batch_size * 1e6 for p in points],
        color=BLUE.light,
        alpha=0.16,
        linewidth=0,
    )
    for mark, curve in ((ALONE, backend.alone), (BUSY, backend.busy)):
        sizes, each_us = _each_us(curve)
        axes.plot(sizes, each_us, **mark.line_style())
        least = min(range(len(sizes)), key=lambda k: each_us[k])
        axes.plot(sizes[least], each_us[least], "o", color=mark.colour.light, markersize=9, fillstyle="none")
    by_batch_size(axes, [p.batch_size for p in points])
    logarithmic(axes)
    axes.set_ylabel("us / candidate")


def _in_words(backend: BackendOf) -> str:
    sizes, each_us = _each_us(backend.alone)
    _, busy_us = _each_us(backend.busy)
    least = min(range(len(sizes)), key=lambda k: each_us[k])
    return (
        f"One core: {each_us[0]:.3g} microseconds a candidate at batch size {sizes[0]}, "
        f"{each_us[-1]:.3g} at {sizes[-1]}, the least {each_us[least]:.3g} at {sizes[least]}. "
        f"All cores busy: {busy_us[0]:.3g} at {sizes[0]}, the least {min(busy_us):.3g}."
    )
