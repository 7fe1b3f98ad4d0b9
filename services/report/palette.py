"""The colours of the report, each in a light and a dark form; and marks, so that nothing is told by colour alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch


@dataclass(frozen=True)
class Colour:
    """A colour by its name in the page's style sheet: what it is on white, and what it is on a dark page."""

    name: str
    light: str
    dark: str


INK = Colour("ink", "#1b2026", "#e6e9ed")
MUTED = Colour("muted", "#5a6572", "#a3adb8")
GRID = Colour("grid", "#d5dbe1", "#3a424b")
PAPER = Colour("paper", "#fefefe", "#15181c")
BLUE = Colour("blue", "#0072b2", "#5cb6ec")
RUST = Colour("rust", "#c85000", "#ff9a52")
GREEN = Colour("green", "#00806a", "#3fd0ac")
PLUM = Colour("plum", "#9c4a8c", "#e39ad2")
STONE = Colour("stone", "#98a2ad", "#717c88")
COLOURS = (INK, MUTED, GRID, PAPER, BLUE, RUST, GREEN, PLUM, STONE)
"""After Okabe and Ito, darkened on white and lightened on dark until each stands out 3 to 1 (grid and stone apart)."""


@dataclass(frozen=True)
class Mark:
    """How one series is drawn: its colour, and what tells it apart without colour. ``bar``: drawn as a bar."""

    label: str
    colour: Colour
    line: str = "-"
    marker: str = ""
    hatch: str = ""
    bar: bool = False

    def handle(self) -> Artist:
        """Return what stands for the series in a legend."""
        if self.bar:
            return Patch(label=self.label, **self.bar_style())
        return Line2D([], [], label=self.label, **self.line_style())

    def line_style(self) -> dict[str, Any]:
        """Return the arguments of a line of matplotlib."""
        return {
            "color": self.colour.light,
            "linestyle": self.line,
            "marker": self.marker or None,
            "markersize": 4.0,
            "linewidth": 1.6,
        }

    def bar_style(self) -> dict[str, Any]:
        """Return the arguments of a bar of matplotlib; its hatch is drawn in the colour of the page."""
        return {
            "facecolor": self.colour.light,
            "edgecolor": PAPER.light,
            "hatch": self.hatch or None,
            "linewidth": 0.0,
        }
