"""The controller's decisions over time."""

from __future__ import annotations

from matplotlib.figure import FigureBase
from matplotlib.ticker import FuncFormatter, NullLocator

from services.report.axes import logarithmic
from services.report.content import Absent, Panel, Plot, Section, Table
from services.report.palette import BLUE, GREEN, INK, MUTED, PLUM, RUST, STONE, Mark
from services.report.results import Decisions, Live, Origin, Story
from services.report.sources import Sources

ARRIVED = Mark("arrivals", MUTED)
STEERED = Mark("p95, steered", BLUE)
PINNED = Mark("p95, best point pinned", STONE)
TARGET = Mark("target", RUST, line="--")
BATCH = Mark("batch size", PLUM)
THRESHOLD = Mark("offloaded from", GREEN, line="-.")


def section(sources: Sources) -> Section:
    """Return the section: every story as a panel of three rows, and a table of how the live controller did."""
    text = (
        "Once a second the controller may choose another operating point. Above: what arrives. In the middle: the "
        "tail of each second beside the target, and that of the best point held fixed on the same queries. Below: the "
        "point; a dot is a decision."
    )
    parts: list[Plot | Table | Absent] = []
    for result in sources.of(Decisions):
        parts += [*_plots(result), _table(result)]
    if not sources.of(Decisions):
        parts.append(Absent("the controller's decisions over time", "python -m benchmarks.decisions"))
    for live in sources.of(Live):
        if live.change:
            parts.append(_live(live))
    return Section("decisions", "Decisions over time", text, parts)


def _name(story: Story) -> str:
    return f"{story.model}{' + accelerator' if story.accelerator else ''}: {story.scenario}"


def _plots(result: Decisions) -> list[Plot]:
    """Return one plot of the cores alone and one beside the modelled accelerator."""
    plots = []
    for name, title, accelerated in (
        ("decisions", "The controller's decisions, cores alone", False),
        ("decisions_accelerator", "The controller's decisions beside a modelled accelerator", True),
    ):
        marks = (ARRIVED, STEERED, PINNED, TARGET, BATCH, *((THRESHOLD,) if accelerated else ()))
        panels = [
            Panel(_name(story), _in_words(story), lambda figure, story=story: _draw(figure, story))  # type: ignore[misc]
            for story in result.rows
            if bool(story.accelerator) is accelerated
        ]
        if panels:
            plots.append(Plot(name, title, Origin.SIMULATED, panels, marks, height=1.05))
    return plots


def _draw(figure: FigureBase, story: Story) -> None:
    load, tail, point = figure.subplots(3, 1, sharex=True, height_ratios=(2, 4, 3))
    seconds = range(len(story.arrived_qps))
    load.fill_between(seconds, story.arrived_qps, color=MUTED.light, alpha=0.25, step="post", linewidth=0)
    load.step(seconds, story.arrived_qps, where="post", color=MUTED.light, linewidth=0.9)
    load.set_ylim(bottom=0)
    load.set_ylabel("queries/s")
    for mark, run in ((PINNED, story.pinned), (STEERED, story.steered)):
        late_ms = [float("nan") if ms is None else ms for ms in run.tail_ms]
        tail.plot(
            seconds, late_ms, **(mark.line_style() | {"linewidth": 2.2 if run is story.pinned else 1.1})
        )
    tail.axhline(story.sla_ms, color=RUST.light, linestyle="--", linewidth=1.2)
    logarithmic(tail)
    tail.set_ylabel(f"p{story.percentile:g}, ms")
    end_s = len(story.arrived_qps)
    points = [(0.0, story.start), *((d.at_s, d) for d in story.decisions)]
    at_s = [at for at, _ in points] + [end_s]
    batch_sizes = [p.batch_size for _, p in points]
    point.step(at_s, [*batch_sizes, batch_sizes[-1]], where="post", color=PLUM.light, linewidth=1.6)
    point.plot(at_s[1:-1], batch_sizes[1:], "o", color=PLUM.light, markersize=3)
    if any(p.offload_from is not None for _, p in points):
        from_size = [float("nan") if p.offload_from is None else p.offload_from for _, p in points]
        style = {"color": GREEN.light, "linestyle": "-.", "linewidth": 1.6}
        point.step(at_s, [*from_size, from_size[-1]], where="post", **style)
    point.set_yscale("log", base=2)
    point.set_ylim(0.8, 1300)
    point.set_yticks([1, 8, 64, 512])
    point.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:.0f}"))
    point.yaxis.set_minor_locator(NullLocator())
    point.set_ylabel("candidates")
    point.set_xlabel("second")
    point.set_xlim(0, end_s)
    for axes in (load, tail, point):
        axes.yaxis.label.set_color(INK.light)
    figure.align_ylabels([load, tail, point])


def _in_words(story: Story) -> str:
    last = story.decisions[-1] if story.decisions else story.start
    offloading = f", offloading from {last.offload_from}" if last.offload_from else ""
    least, most = min(story.arrived_qps), max(story.arrived_qps)
    return (
        f"{len(story.decisions)} decisions from batch size {story.start.batch_size} to {last.batch_size}{offloading}. "
        f"The tail was within {story.sla_ms:.3g} ms in {story.steered.inside:.0%} of the seconds, that of the pinned "
        f"point in {story.pinned.inside:.0%}. Arrivals between {least:,.0f} and {most:,.0f} a second."
    )


def _table(result: Decisions) -> Table:
    rows = [
        [
            _name(story),
            f"{d.at_s:.0f}",
            str(d.batch_size),
            str(d.offload_from or "none"),
            d.why.replace("_", " "),
            d.reason,
        ]
        for story in result.rows
        for d in story.decisions
    ]
    columns = ("story", "second", "batch size", "offloaded from", "why", "reason")
    return Table("Every decision", Origin.SIMULATED, columns, rows, folded=True)


def _live(live: Live) -> Table:
    rows = [
        [
            f"{c.model}: {c.scenario}",
            f"{c.qps:.0f}",
            f"{c.steered_inside:.0%}",
            f"{c.pinned_inside:.0%}",
            "not within the run" if c.settled_s is None else f"{c.settled_s:.0f} s",
        ]
        for c in live.change
    ]
    columns = ("what changes", "queries/s", "steered inside", "pinned inside", "settled after")
    caption = "The share of one-second windows whose p95 was within the target."
    return Table("The live controller under change", Origin.MEASURED, columns, rows, caption)
