"""From results to what is shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from services.report import decisions, distributions, load_curves, policies, provenance, roofline, thresholds
from services.report.content import Absent, Plot, Section, Table
from services.report.report import SECTIONS, made_from
from services.report.results import CeilingsOf, Characterised, Origin, Policies, Search, Sweep
from services.report.sources import Sources, read_sources
from tests.services.report.conftest import MACHINE, RESULTS, characterised, search, sweep


def simulated(rows: list[dict[str, object]]) -> Policies:
    return Policies.model_validate(
        {"kind": "SIMULATED", "profiled_machine": MACHINE, "queries": 1000, "seed": 0, "rows": rows}
    )


def row(model: str, target: str = "medium", sizes: str = "production", **qps: float) -> dict[str, object]:
    rates = {f"{policy}_qps": rate for policy, rate in qps.items()}
    return {"model": model, "target": target, "sizes": sizes, "sla_ms": 25.0, "lone_ms": 5.0, **rates}


def tables(section: Section) -> list[Table]:
    return [part for part in section.parts if isinstance(part, Table)]


def test_a_geometric_mean_covers_the_models_where_both_meet_some_rate() -> None:
    rates = policies.simulated_groups(
        simulated(
            [
                row("a", static=10.0, paper=10.0, adaptive=20.0),
                row("b", static=10.0, paper=10.0, adaptive=80.0),
                row("c", static=0.0, paper=5.0, adaptive=9.0),
                row("infeasible"),
            ]
        )
    )[policies.TARGETS["medium"]]
    mean, models = policies.geometric_mean(rates, "adaptive", "static")
    assert mean == pytest.approx(4.0)
    assert models == ["a", "b"]
    assert policies.geometric_mean(rates[3:], "adaptive", "static")[1] == []


def test_targets_come_in_order_and_other_size_laws_last() -> None:
    rows = [
        row("a", t, s, static=1.0) for s in ("released", "production") for t in ("scaled", "medium", "low")
    ]
    rows.sort(key=lambda each: str(each["sizes"]))
    assert list(policies.simulated_groups(simulated(rows))) == [
        *(policies.TARGETS[target] for target in ("low", "medium", "scaled")),
        *(f"{target}, released sizes" for target in ("low", "medium", "scaled")),
    ]


def test_the_headlines_are_the_means_of_the_repository_s_own_results() -> None:
    cards = list(policies.cards(read_sources([RESULTS])))
    rows = json.loads((RESULTS / "policies_simulated.json").read_text())["rows"]
    ratios = [
        r["adaptive_qps"] / r["static_qps"]
        for r in rows
        if (r["target"], r["sizes"]) == ("medium", "production")
    ]
    expected = float(np.exp(np.mean(np.log(ratios))))
    (card,) = [c for c in cards if c.origin is Origin.SIMULATED and "medium" in c.text]
    assert card.figure == f"{expected:.2f}x"
    assert f"{len(ratios)} models" in card.text


def test_a_sweep_is_a_curve_ascending_in_rate_that_knows_where_it_fails() -> None:
    (curve,) = load_curves.of_sweep(Sweep.model_validate(sweep()))
    assert [rung.qps for rung in curve.rungs] == [50.0, 100.0, 200.0, 400.0]
    assert [rung.shortfall is None for rung in curve.rungs] == [True, True, False, False]
    assert curve.sla.seconds == 0.025


def test_a_search_is_a_curve_with_its_highest_rate() -> None:
    curve = load_curves.of_search(Search.model_validate(search()))
    assert [rung.qps for rung in curve.rungs] == [50.0, 75.0, 100.0]
    assert curve.highest_qps == 75.0


def test_single_runs_and_judged_tests_stand_in_a_table_with_their_verdicts(everything: list[Path]) -> None:
    (table,) = tables(load_curves.section(read_sources(everything)))
    assert table.rows == [
        ["wnd", "50", "25", "6.67", "20", "40", "target met"],
        ["wnd", "", "25", "4", "20", "none", "MLPerf LoadGen 6.0: VALID"],
    ]


def test_the_stretched_axis_of_a_distribution_holds_the_percentiles() -> None:
    latency_s = np.arange(1, 10_001) / 1e4
    late, ms = distributions.late_shares(latency_s)
    for percent in (50, 90, 99, 99.9):
        at = np.argmin(np.abs(late - -np.log10(1 - percent / 100)))
        assert ms[at] == pytest.approx(10 * percent, rel=0.02)
    assert np.all(np.diff(ms) >= 0)


def test_queries_without_an_answer_end_the_curve() -> None:
    latency_s = np.concatenate((np.full(90, 0.01), np.full(10, np.inf)))
    late, ms = distributions.late_shares(latency_s)
    assert np.all(ms == 10.0)
    assert late[-1] <= 1.0
    assert not len(distributions.late_shares(np.array([]))[1])


def test_the_rates_shown_are_the_first_the_last_and_some_between(everything: list[Path]) -> None:
    sources = read_sources(everything)
    (runs,) = sources.latencies.values()
    many = [*runs] * 3
    rates = [run.load.qps for run in distributions.chosen(many)]
    assert len(rates) == 4
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (50.0, 150.0)
    assert len(distributions.chosen(runs[:1])) == 1


def test_the_roof_is_memory_left_of_the_ridge_and_arithmetic_right_of_it() -> None:
    ceilings = CeilingsOf.model_validate(characterised()["ceilings"][0])
    low, high = roofline.roof(ceilings, np.array([0.5, 100.0]), 1e10)
    assert low == 5e9
    assert high == 6e10


def test_the_table_of_work_names_the_measured_class() -> None:
    model = Characterised.model_validate(characterised("wnd", "attention"))
    from services.report.sources import Source

    section = roofline.section(Sources((Source(Path("x.json"), model),)))
    (table,) = tables(section)
    assert table.rows[0][:4] == ["wnd", "attention", "memory", "50%"]


def test_a_section_whose_result_is_absent_names_the_command_and_draws_nothing() -> None:
    report = made_from(Sources(()))
    assert not list(report.plots)
    without = [section for section in report.sections if section.slug != "sources"]
    assert len(without) == len(SECTIONS) - 1
    for section in without:
        assert section.parts
        for part in section.parts:
            assert isinstance(part, Absent)
            assert part.command.startswith(("deeprecsys ", "python -m benchmarks."))


def test_every_plot_says_where_it_comes_from_and_what_it_shows(everything: list[Path]) -> None:
    report = made_from(read_sources(everything))
    plots = {plot.name: plot for plot in report.plots}
    assert not list(report.absent)
    assert {name: plot.origin.value for name, plot in plots.items()} == {
        "policies_simulated": "simulated",
        "policies_live": "measured",
        "load": "measured",
        "distributions": "measured",
        "batch_sizes": "measured",
        "roofline": "measured",
        "operators": "measured",
        "thresholds": "simulated",
        "thresholds_paced": "PACED",
        "decisions": "simulated",
        "decisions_accelerator": "simulated",
        "costs": "measured",
    }
    for plot in plots.values():
        assert plot.panels
        for panel in plot.panels:
            assert any(sign.isdigit() for sign in panel.alt), panel.title


def test_every_decision_of_every_story_is_in_the_table() -> None:
    sources = read_sources([RESULTS / "decisions.json"])
    rows = json.loads((RESULTS / "decisions.json").read_text())["rows"]
    (table,) = tables(decisions.section(sources))
    assert len(table.rows) == sum(len(each["decisions"]) for each in rows)
    assert any("day" in each["scenario"] for each in rows)
    assert any("step" in each["scenario"] for each in rows)


def test_a_bound_of_a_search_is_not_said_to_be_its_throughput() -> None:
    section = thresholds.section(read_sources([RESULTS / "offload.json"]))
    (plot,) = [part for part in section.parts if isinstance(part, Plot)]
    (row,) = json.loads((RESULTS / "offload.json").read_text(encoding="utf-8"))["threshold"]
    bounds = {t: found["no_more_than"] for t, found in row["sweep"].items() if "no_more_than" in found}
    assert bounds
    for threshold, found in row["sweep"].items():
        said = f"no more than {bounds[threshold]:.0f}" if threshold in bounds else f"{found['qps']:.0f}"
        assert f"{threshold}: {said}" in plot.panels[0].alt


def test_machines_and_seeds_are_named_once_for_every_file(everything: list[Path]) -> None:
    sources = read_sources(everything)
    machines, files, _ = tables(provenance.section(sources))
    assert [r[1] for r in machines.rows] == ["AMD EPYC, 2 cores", "Test CPU, 2 cores"]
    by_file = {r[0]: r for r in files.rows}
    assert len(by_file) == len(sources.known) + len(sources.latencies) + len(sources.passed_over)
    assert by_file["sweep.json"][2:] == [
        "measured",
        "machine 2",
        "seed 7, production sizes, poisson arrivals",
    ]
    assert by_file["policies_simulated.json"][4] == "seed 0, queries 10,000"
    assert by_file["latencies.parquet"][1] == "latencies of 3 runs"
