"""What a query costs, and what each part of the scheduler brings."""

from __future__ import annotations

import math

from matplotlib.figure import FigureBase

from services.report.content import Absent, Panel, Plot, Section, Table
from services.report.palette import BLUE, GREEN, RUST, Mark
from services.report.results import Ablation, Bound, Climb, Costs, Origin, SchedulerCost
from services.report.sources import Sources

BARE = Mark("ONNX Runtime alone", BLUE, bar=True)
TRANSPORT = Mark("receiving and parsing", GREEN, hatch="....", bar=True)
REST = Mark("the rest of the server", RUST, hatch="////", bar=True)

ONLINE, PINNED = "+ online", "pinned"
"""The step of the ablation that is compared not with the one before, and what it is compared with."""


def section(sources: Sources) -> Section:
    """Return the section."""
    text = "Where a query's CPU time goes; then the scheduler's parts one after the other, and how near the best it is."
    parts: list[Plot | Table | Absent] = [_cost_plot(costs) for costs in sources.of(Costs)]
    parts += [_scheduler(cost) for cost in sources.of(SchedulerCost)]
    parts += [_ablation(ablation) for ablation in sources.of(Ablation)]
    parts += [_bound(bound) for bound in sources.of(Bound)]
    parts += [_climb(climb) for climb in sources.of(Climb)]
    for shape, command in (
        (Costs, "python -m benchmarks.serving_cost"),
        (SchedulerCost, "python -m benchmarks.scheduler_cost"),
        (Ablation, "python -m benchmarks.ablation"),
        (Bound, "python -m benchmarks.throughput_bound"),
        (Climb, "python -m benchmarks.tuner_quality"),
    ):
        if not sources.of(shape):
            parts.append(Absent(shape.what, command))
    return Section("costs", "What it costs, what it brings", text, parts)


def _cost_plot(costs: Costs) -> Plot:
    said = [
        f"{r.model}: {r.server_ms:.2f} ms, of it ONNX Runtime {r.bare_ms:.2f}, transport {r.transport_ms:.2f}"
        for r in costs.rows
    ]
    panel = Panel(
        "milliseconds of CPU a query, eight in flight",
        f"{'; '.join(said)}.",
        lambda figure: _draw(figure, costs),
    )
    return Plot(
        "costs",
        "Where a query's CPU time goes",
        Origin.MEASURED,
        [panel],
        (BARE, TRANSPORT, REST),
        height=0.8,
    )


def _draw(figure: FigureBase, costs: Costs) -> None:
    axes = figure.subplots()
    for row, each in enumerate(costs.rows):
        left = 0.0
        for mark, ms in (
            (BARE, each.bare_ms),
            (TRANSPORT, each.transport_ms),
            (REST, each.beyond_transport_ms),
        ):
            axes.barh(row, max(0.0, ms), left=left, height=0.62, **mark.bar_style())
            left += max(0.0, ms)
        axes.text(left, row, f" {each.server_ms:.1f}", va="center", fontsize=7)
    axes.set_yticks(range(len(costs.rows)), [r.model for r in costs.rows])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("ms")


def _scheduler(cost: SchedulerCost) -> Table:
    rows = [
        [
            "batching and learning, us a query at batch size 32",
            f"{cost.batcher_and_observe_us_per_query_at_32:.1f}",
        ],
        [
            "batching and learning, us a query at batch size 256",
            f"{cost.batcher_and_observe_us_per_query_at_256:.1f}",
        ],
        ["one decision, ms, mean", f"{cost.decide_mean_ms_cpu:.2f}"],
        ["one decision, ms, worst", f"{cost.decide_max_ms_cpu:.2f}"],
        ["one decision beside an accelerator, ms, mean", f"{cost.decide_mean_ms_accelerator:.2f}"],
    ]
    return Table("What the scheduler itself costs", Origin.MEASURED, ("what", "takes"), rows)


def _ablation(ablation: Ablation) -> Table:
    steps = list(ablation.rows[0].qps) if ablation.rows else []
    rows = [
        [r.model, f"{r.sla_ms:.1f}", *(f"{r.qps[s]:,.0f}" if r.qps.get(s) else "-" for s in steps)]
        for r in ablation.rows
    ]
    before = dict(zip(steps[1:], steps, strict=False)) | {ONLINE: PINNED, PINNED: ""}
    if steps:
        means = [_mean_gain(ablation, step, before.get(step, "")) for step in steps]
        rows.append(["geometric mean over the step before", "", *means])
    caption = (
        "Queries/s within the target after each step. Online is the controller from a cold start, compared with "
        "pinned: the tuned batch size on the same longer schedule."
    )
    return Table(Ablation.what.capitalize(), Origin.SIMULATED, ("model", "target ms", *steps), rows, caption)


def _mean_gain(ablation: Ablation, step: str, before: str) -> str:
    gains = [r.qps[step] / r.qps[before] for r in ablation.rows if r.qps.get(step) and r.qps.get(before)]
    return f"x{math.exp(sum(map(math.log, gains)) / len(gains)):.2f}" if gains else ""


def _bound(bound: Bound) -> Table:
    rows = [
        [
            r.model,
            r.target,
            f"{r.sla_ms:.1f}",
            f"{r.adaptive:.2f}",
            f"{r.bound:.2f}",
            f"{r.adaptive / r.bound:.3f}",
        ]
        for r in bound.rows
        if r.bound > 0
    ]
    columns = ("model", "target", "ms", "adaptive / peak", "best order / peak", "adaptive / best order")
    caption = (
        "Peak: a closed loop without a target. Best order: the best of six orders at its best batch size."
    )
    return Table(Bound.what.capitalize(), Origin.SIMULATED, columns, rows, caption)


def _climb(climb: Climb) -> Table:
    rows = [
        [
            *(r.model, f"{r.climb_batch_size}, {r.climb_offload_from or 'none'}"),
            *(f"{r.climb_qps:,.0f}", f"{r.grid_qps:,.0f}", f"{r.quality:.3f}", f"{r.cost:.0%}"),
        ]
        for r in climb.rows
    ]
    columns = (
        "model",
        "found: batch size, threshold",
        "queries/s",
        "best of the grid",
        "climb / grid",
        "share of runs",
    )
    return Table(Climb.what.capitalize(), Origin.SIMULATED, columns, rows, "Beside a modelled accelerator.")
