"""Drawings that follow the page's colours, and PNG files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from deeprecsys.errors import InvalidSettingError
from services.report.content import Panel, Plot, Table
from services.report.drawing import mark_svg, panel_svg, write_png
from services.report.palette import BLUE, COLOURS, GREEN, INK, MUTED, PLUM, RUST, Mark
from services.report.report import made_from
from services.report.results import Origin
from services.report.sources import read_sources


def luminance(colour: str) -> float:
    parts = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [INK, MUTED, BLUE, RUST, GREEN, PLUM], ids=lambda c: c.name)
def test_every_colour_stands_out_in_light_and_dark(colour) -> None:
    least = 4.5 if colour in (INK, MUTED) else 3.0
    assert contrast(colour.light, "#ffffff") >= least
    assert contrast(colour.dark, "#15181c") >= least


def test_no_two_colours_are_one_in_either_form() -> None:
    assert len({c.light for c in COLOURS}) == len({c.dark for c in COLOURS}) == len(COLOURS)


def panel(text: str = "one") -> Panel:
    return Panel(
        "a panel",
        "1 line",
        lambda figure: figure.subplots().plot([1, 2], [3, 4], color=BLUE.light, label=text),
    )


def test_a_drawing_has_no_colour_of_its_own_and_no_size(everything: list[Path]) -> None:
    for plot in made_from(read_sources(everything)).plots:
        for number, each in enumerate(plot.panels):
            svg = panel_svg(each, plot.height, f"{plot.name}-{number}")
            assert re.findall(r"(?:fill|stroke|color)[:=]\s*\"?#[0-9a-f]{3,6}", svg) == [], plot.name
            assert not re.search(r"<svg[^>]* (width|height)=", svg)
            assert "http" not in svg


def test_ids_belong_to_their_drawing_and_lead_somewhere(everything: list[Path]) -> None:
    seen: set[str] = set()
    for plot in made_from(read_sources(everything)).plots:
        for number, each in enumerate(plot.panels):
            svg = panel_svg(each, plot.height, f"{plot.name}-{number}")
            ids = re.findall(r' id="([^"]+)"', svg)
            assert len(ids) == len(set(ids))
            assert not seen & set(ids)
            seen |= set(ids)
            assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)) <= {(i, "") for i in ids} | {
                ("", i) for i in ids
            }


def test_a_drawing_is_the_same_every_time() -> None:
    assert panel_svg(panel(), 0.7, "same") == panel_svg(panel(), 0.7, "same")
    assert mark_svg(Mark("bar", BLUE, hatch="//", bar=True), "a") == mark_svg(
        Mark("bar", BLUE, hatch="//", bar=True), "a"
    )


def test_a_png_holds_all_panels_on_white(tmp_path: Path) -> None:
    for count, columns in ((1, 1), (2, 2), (4, 2), (5, 3)):
        plot = Plot("some", "Some", Origin.SIMULATED, [panel()] * count, (Mark("one", BLUE),))
        write_png(plot, tmp_path / "some.png")
        with Image.open(tmp_path / "some.png") as image:
            assert image.width == columns * 480
            assert image.getpixel((1, 1))[:3] == (254, 254, 254)


def test_a_png_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    plot = Plot("some", "Some", Origin.SIMULATED, [panel()])
    with pytest.raises(InvalidSettingError, match=r"cannot write .*none/some\.png"):
        write_png(plot, tmp_path / "none" / "some.png")


def test_columns_of_numbers_end_at_the_right_and_words_begin_at_the_left() -> None:
    rows = [["wnd", "12", "-", "p95 over"], ["rmc1", "none", "x1.04", "no"]]
    table = Table("t", None, ("model", "rate", "gain", "why"), rows)
    assert [table.is_words(column) for column in range(4)] == [True, False, False, True]
