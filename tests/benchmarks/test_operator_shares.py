"""The comparison with the paper's shares reads the authors' table and moves no figure."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest

from benchmarks.operator_shares import MEASURED, MODELS, compared, paper_shares
from services.characterise.characterisation import Characterisation, read_characterisation


@pytest.fixture(scope="module")
def measured() -> list[Characterisation]:
    return [read_characterisation(MEASURED / f"{model}.characterisation.json") for model in MODELS]


def test_the_paper_has_every_model_at_every_batch_size_and_its_shares_are_whole() -> None:
    shares = paper_shares()
    assert set(shares) == {(model, size) for model in MODELS for size in (1, 16, 64, 1024)}
    assert all(sum(of.values()) == pytest.approx(100, abs=0.1) for of in shares.values())
    assert shares["rmc1", 64]["SparseLengthsSum"] == 78.42
    assert shares["dien", 1]["RecurrentNetwork"] == 96.35


def test_what_was_measured_is_set_beside_the_same_batch_size_of_the_paper(
    measured: list[Characterisation],
) -> None:
    entries = compared(measured, paper_shares())
    assert len(entries) == 4 * len(MODELS)
    for entry in entries:
        assert sum(cast("dict[str, float]", entry["here_pct"]).values()) == pytest.approx(100, abs=0.5)


def test_the_share_that_moved_is_0_for_equal_shares_and_100_for_disjoint_ones(
    measured: list[Characterisation],
) -> None:
    model = dataclasses.replace(measured[0], operators=measured[0].operators[:1])
    mine: Any = {group: 100 * share for group, share in model.operators[0].breakdown.paper_share.items()}
    size = model.operators[0].breakdown.batch_size
    (same,) = compared([model], {(model.model, size): mine})
    assert same["moved_pct"] == 0
    (other,) = compared([model], {(model.model, size): {**dict.fromkeys(mine, 0.0), "Softmax": 100.0}})
    assert other["moved_pct"] == pytest.approx(100 - mine["Softmax"], abs=0.1)
