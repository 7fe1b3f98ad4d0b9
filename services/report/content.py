"""What a report is made of: sections, and in them plots, tables, and a word where a result is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import FigureBase

from services.report.palette import Mark
from services.report.results import Origin

Draw = Callable[[FigureBase], None]
"""Draws one panel onto an empty figure."""


@dataclass(frozen=True)
class Panel:
    """One small drawing of a plot. ``alt``: what it shows, in words with numbers, for who cannot see it."""

    title: str
    alt: str
    draw: Draw


@dataclass(frozen=True)
class Plot:
    """Panels that belong together. ``name``: of its PNG file. ``height``: of a panel over its width."""

    name: str
    title: str
    origin: Origin
    panels: Sequence[Panel]
    marks: Sequence[Mark] = ()
    caption: str = ""
    height: float = 0.72


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row. ``origin`` None: it holds no measured thing.

    ``folded``: only its title is seen until it is opened.
    """

    title: str
    origin: Origin | None
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False

    def is_words(self, column: int) -> bool:
        """Whether a column holds words, which begin at the left, rather than numbers, which end at the right."""
        if column == 0:
            return True
        cells = [row[column] for row in self.rows if row[column] not in ("", "-", "none")]
        return any(cell[0].isalpha() and not cell[1:2].isdigit() for cell in cells)


@dataclass(frozen=True)
class Absent:
    """A result that was not given, and the command that makes it."""

    what: str
    command: str


@dataclass(frozen=True)
class Section:
    """A part of the page under one heading. ``slug``: its place in addresses."""

    slug: str
    title: str
    text: str
    parts: Sequence[Plot | Table | Absent]


@dataclass(frozen=True)
class Card:
    """One headline figure."""

    figure: str
    text: str
    origin: Origin
