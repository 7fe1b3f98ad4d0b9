"""The whole report: from files to sections, and to the page and the PNG files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deeprecsys.errors import InvalidSettingError
from services.report import (
    batch_sizes,
    costs,
    decisions,
    distributions,
    load_curves,
    policies,
    provenance,
    roofline,
    thresholds,
)
from services.report.content import Absent, Card, Plot, Section
from services.report.drawing import write_png
from services.report.page import render
from services.report.sources import Sources, read_sources

SECTIONS = (
    *(policies, load_curves, distributions, batch_sizes, roofline, thresholds, decisions, costs, provenance),
)
"""What the page shows, in this order; each has ``section(sources)``."""


@dataclass(frozen=True)
class Report:
    """All that a report holds, drawn when it is written."""

    sections: Sequence[Section]
    cards: Sequence[Card]
    files: int

    @property
    def plots(self) -> Iterator[Plot]:
        """Every plot, in the order of the page."""
        return (part for section in self.sections for part in section.parts if isinstance(part, Plot))

    @property
    def absent(self) -> Iterator[Absent]:
        """Every result that was not given."""
        return (part for section in self.sections for part in section.parts if isinstance(part, Absent))

    def write_page(self, path: Path) -> None:
        """Write the HTML file. Raises InvalidSettingError when it cannot be written."""
        page = render(self.sections, self.cards, self.files)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page, encoding="utf-8")
        except OSError as error:
            raise InvalidSettingError(f"cannot write {path}: {error.strerror}") from error

    def write_pngs(self, folder: Path) -> list[Path]:
        """Write every plot as ``NAME.png`` into the folder. Raises InvalidSettingError when one cannot be written."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidSettingError(f"cannot write into {folder}: {error.strerror}") from error
        written = []
        for plot in self.plots:
            written.append(folder / f"{plot.name}.png")
            write_png(plot, written[-1])
        return written


def report_of(paths: Sequence[Path]) -> Report:
    """Read the results in files and folders. Raises InvalidSettingError as ``read_sources`` does."""
    sources = read_sources(paths)
    return made_from(sources)


def made_from(sources: Sources) -> Report:
    """Return the report of results."""
    sections = [each.section(sources) for each in SECTIONS]
    return Report(sections, list(policies.cards(sources)), len(sources.known) + len(sources.latencies))
