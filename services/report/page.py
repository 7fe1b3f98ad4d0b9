"""The page: all sections as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from services.report.content import Card, Panel, Plot, Section
from services.report.drawing import mark_svg, panel_svg
from services.report.palette import COLOURS, Mark


def render(sections: Sequence[Section], cards: Sequence[Card], files: int) -> str:
    """Return the page. ``files``: from how many it was made."""
    environment = Environment(
        loader=PackageLoader("services.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.globals |= {"panel_svg": _panel, "mark_svg": _mark}
    return environment.get_template("page.html").render(
        sections=sections, cards=cards, files=files, colours=COLOURS, version=version("deeprecsys")
    )


def _panel(panel: Panel, plot: Plot, number: int) -> Markup:
    svg = Markup(panel_svg(panel, plot.height, f"{plot.name}-{number}"))  # noqa: S704 (drawn here, of escaped text)
    return Markup(svg.replace("<svg", Markup('<svg role="img" aria-label="{}"').format(panel.alt), 1))  # noqa: S704


def _mark(mark: Mark, plot: str, number: int) -> Markup:
    svg = mark_svg(mark, f"{plot}-mark-{number}")
    return Markup(svg.replace("<svg", '<svg aria-hidden="true"', 1))  # noqa: S704
