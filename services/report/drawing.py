"""From panels to SVG that follows the page's colours, and to PNG files."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure, FigureBase

from deeprecsys.errors import InvalidSettingError
from services.report.content import Panel, Plot
from services.report.palette import COLOURS, GRID, INK, MUTED, PAPER, Mark

WIDTH_IN = 4.0
"""Of a panel: on a phone it then is about as wide as the page, and its letters as large as drawn."""

PNG_COLUMNS = 3
PNG_DPI = 120
TITLE_IN, LEGEND_ROW_IN = 0.5, 0.24

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "text.color": INK.light,
    "axes.labelcolor": INK.light,
    "axes.edgecolor": MUTED.light,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID.light,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED.light,
    "ytick.color": MUTED.light,
    "xtick.labelcolor": INK.light,
    "ytick.labelcolor": INK.light,
    "lines.solid_capstyle": "round",
    "hatch.linewidth": 1.4,
    "legend.frameon": False,
    "figure.constrained_layout.w_pad": 0.07,
    "svg.fonttype": "none",
}


@contextmanager
def _styled(salt: str) -> Iterator[None]:
    with mpl.rc_context({**_STYLE, "svg.hashsalt": salt}):
        yield


def panel_svg(panel: Panel, height: float, salt: str) -> str:
    """Return a panel as an ``<svg>`` element of no size of its own; ``salt`` begins its ids."""
    with _styled(salt):
        figure = Figure(figsize=(WIDTH_IN, WIDTH_IN * height), layout="constrained")
        panel.draw(figure)
        return _inline(figure, salt)


def mark_svg(mark: Mark, salt: str) -> str:
    """Return what stands for a series in the page's legend, as an ``<svg>`` element."""
    with _styled(salt):
        figure = Figure(figsize=(0.34, 0.15))
        figure.legend(handles=[mark.handle()], labels=[""], loc="center", borderpad=0, handlelength=2.6)
        return _inline(figure, salt)


def write_png(plot: Plot, path: Path) -> None:
    """Write all panels of a plot, under its title, on white. Raises InvalidSettingError where it cannot be written."""
    columns = 2 if len(plot.panels) == 4 else min(PNG_COLUMNS, len(plot.panels))
    rows = ceil(len(plot.panels) / columns)
    panels_in = rows * WIDTH_IN * (plot.height + 0.08)
    heading_in = TITLE_IN + LEGEND_ROW_IN * ceil(len(plot.marks) / (2 * columns))
    with _styled(plot.name):
        size = WIDTH_IN * columns, heading_in + panels_in
        figure = Figure(figsize=size, layout="constrained", facecolor=PAPER.light)
        top, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(heading_in, panels_in)).ravel()
        _head(top, plot, columns)
        places = below.subfigures(rows, columns, squeeze=False).ravel()
        for place, panel in zip(places, plot.panels, strict=False):
            place.suptitle(fill(panel.title, 46), fontsize=9.5)
            panel.draw(place)
        try:
            figure.savefig(path, format="png", dpi=PNG_DPI, metadata={"Software": None})
        except OSError as error:
            raise InvalidSettingError(f"cannot write {path}: {error.strerror}") from error


def _head(figure: FigureBase, plot: Plot, columns: int) -> None:
    """Write the title with where it comes from, and below it the legend."""
    title = f"{plot.title} ({plot.origin})"
    size = 12 if columns > 1 else 10
    figure.text(0.5, 0.97, fill(title, 46 * columns), ha="center", va="top", fontsize=size, fontweight="bold")
    if plot.marks:
        handles = [mark.handle() for mark in plot.marks]
        each_row = min(len(handles), 2 * columns)
        figure.legend(handles=handles, loc="lower center", ncols=each_row, borderpad=0, columnspacing=1.6)


_KEPT_ID = re.compile(r'(?:href="#|url\(#)([\w-]+)')
_COLOUR_IN_STYLE = re.compile(r": (#[0-9a-f]{6})\b")


def _inline(figure: Figure, salt: str) -> str:
    out = io.StringIO()
    bare = {"Creator": None, "Date": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", transparent=True, metadata=bare)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"| version="[\d.]+"| xmlns(?::xlink)?="[^"]*"', "", svg)
    # One page holds many drawings: an id that is used gets the drawing's name, the others go.
    kept = set(_KEPT_ID.findall(svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda m: f' id="{salt}-{m[1]}"' if m[1] in kept else "", svg)
    svg = re.sub(r'(xlink:)?href="#', f'href="#{salt}-', svg).replace("url(#", f"url(#{salt}-")
    svg = re.sub(r' (fill|stroke)="(#[0-9a-f]{6})"', r' style="\1: \2"', svg)  # the ground of hatches
    svg = _COLOUR_IN_STYLE.sub(lambda m: f": {_VARIABLE.get(m[1], m[1])}", svg)
    return re.sub(r"\n\s*", "\n", svg).strip()


_VARIABLE = {colour.light: f"var(--{colour.name})" for colour in COLOURS}
