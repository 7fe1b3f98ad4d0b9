"""The roofline: what each model achieves beside what this machine can do, and where its seconds go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import FigureBase

from services.report.axes import logarithmic
from services.report.content import Absent, Panel, Plot, Section, Table
from services.report.palette import BLUE, GREEN, INK, MUTED, PLUM, RUST, STONE, Mark
from services.report.results import CeilingsOf, Characterised, Origin, RateOf
from services.report.sources import Sources

CLASSES = {
    "embedding": Mark("embedding", BLUE, line="", marker="o"),
    "mlp": Mark("MLP", RUST, line="", marker="s"),
    "attention": Mark("attention", PLUM, line="", marker="^"),
}
ROOF = Mark("streamed memory, multiply-accumulates", INK)
GATHER = Mark("random rows of 128 bytes", MUTED, line="--")
PARTS = {
    "embedding": Mark("embedding", BLUE, bar=True),
    "mlp": Mark("MLP", RUST, hatch="////", bar=True),
    "attention": Mark("attention", PLUM, hatch="....", bar=True),
    "recurrence": Mark("recurrence", GREEN, hatch="xxxx", bar=True),
    "other": Mark("other", STONE, bar=True),
}
GATHERED_ROW_BYTES = 128


def section(sources: Sources) -> Section:
    """Return the section: the roofline on one core and on all, the parts' shares, and a table."""
    text = (
        "Each model under the roof of this machine: left of the ridge memory limits, right of it arithmetic. A line "
        "runs from the smallest batch size to the largest, where the mark is. The mark is the class on which the model "
        "was measured to spend its time."
    )
    found = sources.of(Characterised)
    if not found:
        return Section(
            "roofline", "What limits a model", text, [Absent(Characterised.what, "deeprecsys profile")]
        )
    cores = sorted({each.cores for model in found for each in model.ceilings})
    panels = [
        Panel(
            "one core" if n == 1 else f"{n} cores at once",
            _in_words(found, n),
            lambda figure, n=n: _draw(figure, found, n),  # type: ignore[misc]
        )
        for n in cores
    ]
    marks = (*CLASSES.values(), ROOF, GATHER)
    caption = (
        "Both axes logarithmic. Bytes are those that must move: rows, inputs, outputs, weights once a batch."
    )
    roofline = Plot("roofline", "Roofline", Origin.MEASURED, panels, marks, caption, height=0.85)
    return Section("roofline", "What limits a model", text, [roofline, *_parts(found), _table(found)])


def roof(ceilings: CeilingsOf, flops_per_byte: np.ndarray, bytes_per_s: float) -> np.ndarray:
    """Return the most operations a second by intensity, for memory of this rate."""
    return np.minimum(ceilings.flops_per_s, bytes_per_s * flops_per_byte)


def _stream(ceilings: CeilingsOf) -> float:
    return max(ceilings.read_bytes_per_s, ceilings.copy_bytes_per_s)


def _gathered(ceilings: CeilingsOf) -> float:
    return min(ceilings.gather, key=lambda each: abs(each.row_bytes - GATHERED_ROW_BYTES)).bytes_per_s


def _of(model: Characterised, cores: int) -> list[RateOf]:
    return sorted((r for r in model.rates if r.cores == cores), key=lambda r: r.batch_size)


def _ceilings(found: Sequence[Characterised], cores: int) -> CeilingsOf:
    return next(each for model in found for each in model.ceilings if each.cores == cores)


def _draw(figure: FigureBase, found: Sequence[Characterised], cores: int) -> None:
    axes = figure.subplots()
    ceilings = _ceilings(found, cores)
    rates = [rate for model in found for rate in _of(model, cores)]
    ends = [r.flops_per_byte for r in rates] + [2 * ceilings.flops_per_s / _stream(ceilings)]
    intensity = np.geomspace(min(ends) / 1.6, max(ends) * 1.6, 200)
    for mark, bytes_per_s in ((ROOF, _stream(ceilings)), (GATHER, _gathered(ceilings))):
        axes.plot(intensity, roof(ceilings, intensity, bytes_per_s) / 1e9, **mark.line_style())
    for model in found:
        mine = _of(model, cores)
        if not mine:
            continue
        mark = CLASSES.get(model.bottleneck.classes[0], CLASSES["mlp"])
        x, y = [r.flops_per_byte for r in mine], [r.flops_per_s / 1e9 for r in mine]
        axes.plot(x, y, color=mark.colour.light, linewidth=0.9, alpha=0.6)
        axes.plot(x[-1], y[-1], **(mark.line_style() | {"markersize": 6}))
        axes.annotate(model.model, (x[-1], y[-1]), (4, -8), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    logarithmic(axes)
    axes.set_xlabel("floating-point operations / byte")
    axes.set_ylabel("GFLOP/s")


def _in_words(found: Sequence[Characterised], cores: int) -> str:
    ceilings = _ceilings(found, cores)
    said = [
        f"{model.model} ({' and '.join(model.bottleneck.classes)}): {best.flops_per_s / 1e9:.3g} GFLOP/s and "
        f"{best.bytes_per_s / 1e9:.3g} GB/s at {best.flops_per_byte:.3g} operations a byte"
        for model in found
        if (mine := _of(model, cores)) and (best := mine[-1])
    ]
    return (
        f"Ceilings: {ceilings.flops_per_s / 1e9:.3g} GFLOP/s, {_stream(ceilings) / 1e9:.3g} GB/s streamed, "
        f"{_gathered(ceilings) / 1e9:.3g} GB/s in random rows. {'; '.join(said)}."
    )


def _parts(found: Sequence[Characterised]) -> list[Plot]:
    sizes = sorted({each.breakdown.batch_size for model in found for each in model.operators})
    panels = [
        Panel(
            f"batch size {size}",
            "; ".join(f"{name}: {_said(shares)}" for name, shares in _shares(found, size).items()) + ".",
            lambda figure, size=size: _draw_parts(figure, _shares(found, size)),  # type: ignore[misc]
        )
        for size in sizes
    ]
    if not panels:
        return []
    title = "Where an inference's seconds go, one core"
    return [Plot("operators", title, Origin.MEASURED, panels, tuple(PARTS.values()))]


def _shares(found: Sequence[Characterised], size: int) -> dict[str, dict[str, float]]:
    """Return the parts' shares by model at one batch size."""
    return {
        model.model: {part.part: part.share for part in each.parts}
        for model in found
        for each in model.operators
        if each.breakdown.batch_size == size
    }


def _said(shares: dict[str, float]) -> str:
    return ", ".join(f"{part} {share:.0%}" for part, share in shares.items() if share >= 0.005)


def _draw_parts(figure: FigureBase, by_model: dict[str, dict[str, float]]) -> None:
    axes = figure.subplots()
    for row, shares in enumerate(by_model.values()):
        left = 0.0
        for part, mark in PARTS.items():
            axes.barh(row, shares.get(part, 0.0), left=left, height=0.66, **mark.bar_style())
            left += shares.get(part, 0.0)
    axes.set_yticks(range(len(by_model)), list(by_model))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1.0], ["0", "50 %", "100 %"])
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _table(found: Sequence[Characterised]) -> Table:
    rows = []
    for model in found:
        one = _of(model, min(r.cores for r in model.rates))
        best = max(one, key=lambda r: r.batch_size)
        work = model.work
        rows.append(
            [
                *(model.model, " and ".join(model.bottleneck.classes), model.bottleneck.limit),
                f"{model.bottleneck.of_roof:.0%}",
                *(
                    f"{work.macs / 1e6:.3g}",
                    f"{work.gathered_bytes / 1e3:.3g}",
                    f"{work.streamed_bytes / 1e3:.3g}",
                ),
                *(f"{best.bytes_per_s / 1e9:.2f}", f"{best.flops_per_s / 1e9:.1f}"),
            ]
        )
    caption = (
        "GB/s and GFLOP/s on one core at the largest batch size; of the roof: the part that gives the class."
    )
    columns = (
        *("model", "spends its time on", "limited by", "of the roof"),
        *("million MACs / candidate", "kB gathered", "kB streamed", "GB/s", "GFLOP/s"),
    )
    return Table("Work and rates", Origin.MEASURED, columns, rows, caption)
