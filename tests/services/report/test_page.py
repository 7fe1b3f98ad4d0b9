"""The page in a real browser: nothing complained of, nothing asked for, nothing cut off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.report.report import Report, made_from
from services.report.sources import Sources, read_sources
from tests.services.report.chromium import Page, browser

pytestmark = pytest.mark.slow

PHONE, TABLET, DESKTOP = 390, 768, 1280


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(everything: list[Path]) -> Report:
    return made_from(read_sources(everything))


@pytest.fixture(scope="module")
def address(report: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    report.write_page(path)
    return path.as_uri()


def test_what_a_page_does_wrong_is_noticed(page: Page, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.html"
    wrong.write_text(
        "<!doctype html><title>x</title><div style='width: 900px'>wide</div>"
        "<img src='http://127.0.0.1:9/picture.png'><script>console.error('oh'); nothing.there</script>"
    )
    page.open(wrong.as_uri(), PHONE)
    assert any("oh" in complaint for complaint in page.complaints)
    assert any("nothing is not defined" in complaint for complaint in page.complaints)
    assert page.asked_for == ["http://127.0.0.1:9/picture.png"]
    assert page.evaluate("document.documentElement.scrollWidth") > PHONE


@pytest.mark.parametrize("width", [PHONE, TABLET, DESKTOP])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_a_complaint_or_a_request_and_fits_its_width(
    page: Page, address: str, width: int, scheme: str, tmp_path: Path
) -> None:
    page.open(address, width, scheme=scheme)
    assert page.complaints == []
    assert page.asked_for == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert len(page.screenshot(tmp_path / "page.png")) > 100_000


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_every_plot_is_drawn_with_all_its_panels_inside_the_page(
    page: Page, address: str, report: Report, width: int
) -> None:
    page.open(address, width)
    drawn = page.evaluate(
        """Object.fromEntries([...document.querySelectorAll("[data-plot]")].map(plot => [plot.dataset.plot,
        [...plot.querySelectorAll("figure svg")].map(svg => {
            const box = svg.getBoundingClientRect();
            return [svg.getAttribute("aria-label"), svg.querySelectorAll("path").length,
                    box.width, box.height, box.left >= 0 && box.right <= innerWidth];
        })]))"""
    )
    assert {name: len(panels) for name, panels in drawn.items()} == {
        plot.name: len(plot.panels) for plot in report.plots
    }
    for plot in report.plots:
        for panel, (label, paths, wide, high, inside) in zip(plot.panels, drawn[plot.name], strict=True):
            assert label == panel.alt
            assert paths > 5
            assert wide > 200
            assert high > 100
            assert inside, panel.title


def test_letters_and_lines_change_with_the_scheme(page: Page, address: str) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        page.open(address, DESKTOP, scheme=scheme)
        seen[scheme] = page.evaluate(
            """["figure svg text", "figure svg path[style*='--blue']"].map(what => {
                const style = getComputedStyle(document.querySelector(what));
                return style.fill === "none" ? style.stroke : style.fill;
            }).concat(getComputedStyle(document.body).backgroundColor)"""
        )
    assert all(light != dark for light, dark in zip(seen["light"], seen["dark"], strict=True)), seen
    page.open(address, DESKTOP, scheme="dark", media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_contents_lead_to_every_section(page: Page, address: str, report: Report) -> None:
    page.open(address, DESKTOP)
    links = page.evaluate(
        """[...document.querySelectorAll("nav a")].map(link =>
        [link.textContent, document.querySelector(link.getAttribute("href")).querySelector("h2").textContent])"""
    )
    assert links == [[section.title, section.title] for section in report.sections]


def test_wide_tables_scroll_in_their_own_box_and_can_be_reached_by_keyboard(page: Page, address: str) -> None:
    page.open(address, PHONE)
    boxes = page.evaluate(
        """[...document.querySelectorAll(".scroll")].map(box =>
        [box.scrollWidth > box.clientWidth, getComputedStyle(box).overflowX, box.tabIndex, box.ariaLabel])"""
    )
    assert any(wider for wider, *_ in boxes)
    assert all(overflow == "auto" and tab == 0 and label for _, overflow, tab, label in boxes)


def test_print_shows_what_is_folded_and_cuts_no_table_off(page: Page, address: str) -> None:
    page.open(address, 760, media="print")
    assert page.evaluate("document.documentElement.scrollWidth") == 760
    folded = page.evaluate("document.querySelector('details table').getBoundingClientRect().height")
    assert folded > 200
    cut = page.evaluate(
        "[...document.querySelectorAll('table')].filter(t => t.getBoundingClientRect().right > 761).length"
    )
    assert cut == 0


def test_text_from_a_file_stays_text(page: Page, tmp_path: Path) -> None:
    from services.report.results import Profile
    from services.report.sources import Source
    from tests.services.report.conftest import PROFILES

    data = read_sources([PROFILES / "wnd.json"]).of(Profile)[0].model_dump()
    wrong = Profile.model_validate(data | {"model": "<script>console.error('in')</script>\"'"})
    path = tmp_path / "report.html"
    made_from(Sources((Source(Path("<b>.json"), wrong),))).write_page(path)
    page.open(path.as_uri(), DESKTOP)
    assert page.complaints == []
    assert "<script>" in page.evaluate(
        "document.querySelector('[data-plot=batch_sizes] figcaption').textContent"
    )


def test_a_report_of_nothing_names_the_commands_and_draws_no_empty_plot(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    made_from(Sources(())).write_page(path)
    page.open(path.as_uri(), PHONE)
    assert page.complaints == []
    assert page.evaluate("document.querySelectorAll('figure').length") == 0
    commands = page.evaluate("[...document.querySelectorAll('.absent code')].map(c => c.textContent)")
    assert "deeprecsys profile" in commands
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE
