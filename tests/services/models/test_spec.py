"""The spec against the paper's model table and the released configurations, as numbers written out here."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprecsys.errors import InvalidSettingError
from services.models.spec import SCALES, SLUGS, override_names, spec_for

MIB = 2**20


def test_the_eight_slugs_are_the_published_eight() -> None:
    assert SLUGS == ("ncf", "wnd", "mt_wnd", "rmc1", "rmc2", "rmc3", "din", "dien")


@pytest.mark.parametrize(
    ("slug", "sla_ms", "bottleneck"),
    [
        ("rmc1", 100, "embedding"),
        ("rmc2", 400, "embedding"),
        ("rmc3", 100, "mlp"),
        ("ncf", 5, "mlp"),
        ("wnd", 25, "mlp"),
        ("mt_wnd", 25, "mlp"),
        ("din", 100, "attention"),
        ("dien", 35, "attention"),
    ],
)
def test_targets_and_bottlenecks_are_the_papers(slug: str, sla_ms: float, bottleneck: str) -> None:
    spec = spec_for(slug)
    assert (spec.sla_percentile, spec.sla_ms, spec.bottleneck) == (95, sla_ms, bottleneck)


@pytest.mark.parametrize(
    ("slug", "dense", "bottom", "top", "tables", "lookups", "dim"),
    [
        ("rmc1", 256, (128, 32), (256, 64, 1), 8, 80, 32),
        ("rmc2", 256, (128, 32), (512, 128, 1), 32, 80, 64),
        ("rmc3", 2560, (512, 32), (512, 128, 1), 10, 20, 32),
        ("wnd", 512, (), (1024, 512, 256, 1), 27, 1, 32),
        ("mt_wnd", 512, (), (1024, 512), 43, 1, 32),
        ("ncf", 0, (), (256, 256, 128), 4, 1, 64),
    ],
)
@pytest.mark.parametrize("scale", SCALES)
def test_widths_tables_and_lookups_are_the_papers_at_every_scale(
    scale: str,
    slug: str,
    dense: int,
    bottom: tuple[int, ...],
    top: tuple[int, ...],
    tables: int,
    lookups: int,
    dim: int,
) -> None:
    spec = spec_for(slug, scale)
    group = spec.group("ids")
    assert (spec.dense_width, spec.bottom, spec.top, spec.dim) == (dense, bottom, top, dim)
    assert (group.tables, group.lookups) == (tables, lookups)


def test_din_and_dien_have_the_released_tables() -> None:
    din, dien = spec_for("din", "paper"), spec_for("dien", "paper")
    assert {g.input: (g.tables, g.rows[0], g.lookups) for g in din.groups} == {
        "profile": (1, 1_000_000, 3),
        "behaviours": (251, 100_000, 3),
        "ad": (1, 10_000_000, 3),
        "context": (1, 10_000_000, 3),
    }
    assert {g.input: (g.tables, g.rows[0], g.lookups) for g in dien.groups} == {
        "profile": (1, 500_000, 1),
        "behaviours": (40, 500_000, 1),
        "ad": (1, 5_000_000, 1),
        "context": (1, 5_000_000, 1),
    }
    assert din.top == dien.top == (200, 80, 2)


@pytest.mark.parametrize(
    ("slug", "gigabytes"),
    [
        ("ncf", 0.09), ("wnd", 3.46), ("mt_wnd", 3.90), ("rmc1", 4.10),
        ("rmc2", 4.10), ("rmc3", 2.56), ("din", 5.90), ("dien", 3.90),
    ],
)  # fmt: skip
def test_tables_at_scale_paper_are_as_large_as_the_released_ones(slug: str, gigabytes: float) -> None:
    assert spec_for(slug, "paper").table_bytes / 1e9 == pytest.approx(gigabytes, abs=0.006)


def test_tables_at_scale_laptop_outgrow_a_cache_and_fit_a_laptop() -> None:
    sizes = {slug: spec_for(slug).table_bytes for slug in SLUGS}
    assert all(sizes[slug] >= 256 * MIB for slug in ("rmc1", "rmc2", "rmc3", "din"))
    assert sum(sizes.values()) < 2e9


def test_input_and_output_names_and_shapes_are_the_contract() -> None:
    assert {slug: dict(spec_for(slug).inputs) for slug in SLUGS} == {
        "ncf": {"ids": (4,)},
        "wnd": {"dense": (512,), "ids": (27,)},
        "mt_wnd": {"dense": (512,), "ids": (43,)},
        "rmc1": {"dense": (256,), "ids": (8, 80)},
        "rmc2": {"dense": (256,), "ids": (32, 80)},
        "rmc3": {"dense": (2560,), "ids": (10, 20)},
        "din": {"profile": (3,), "behaviours": (251, 3), "ad": (3,), "context": (3,)},
        "dien": {"profile": (1,), "behaviours": (40,), "ad": (1,), "context": (1,)},
    }
    two_classes = {"score": (1,), "probabilities": (2,)}
    assert {slug: dict(spec_for(slug).outputs) for slug in SLUGS} == {
        **{slug: {"score": (1,)} for slug in SLUGS},
        "mt_wnd": {"score": (5,)},
        "din": two_classes,
        "dien": two_classes,
    }


def test_the_users_side_is_profile_and_behaviours() -> None:
    sides = {slug: spec_for(slug).user_inputs for slug in SLUGS if spec_for(slug).user_inputs}
    assert sides == {"din": ("profile", "behaviours"), "dien": ("profile", "behaviours")}


def test_every_number_can_be_overridden() -> None:
    spec = spec_for(
        "rmc1", "tiny", dense_width=16, bottom=[8, 4], dim=4, top=(6, 1), ids_tables=3, ids_lookups=5, ids_rows=70,
        interaction="dot", sla_ms=12, sla_percentile=99, max_batch_size=128,
    )  # fmt: skip
    assert spec.inputs == {"dense": (16,), "ids": (3, 5)}
    assert spec.group("ids").rows == (70, 70, 70)
    assert (spec.bottom, spec.top, spec.sla_ms, spec.sla_percentile) == ((8, 4), (6, 1), 12, 99)


def test_rows_can_be_given_for_each_table() -> None:
    assert spec_for("ncf", ids_rows=(5, 6, 7, 8)).group("ids").rows == (5, 6, 7, 8)
    assert spec_for("din", "tiny", behaviours_tables=7).group("behaviours").rows == 7 * (50,)


@pytest.mark.parametrize(
    ("slug", "scale", "overrides", "says"),
    [
        ("rmc4", "tiny", {}, "unknown model 'rmc4'.*rmc1"),
        ("rmc1", "huge", {}, "unknown scale 'huge'.*tiny, laptop, paper"),
        ("rmc1", "tiny", {"lookups": 3}, "rmc1 has no setting lookups.*ids_lookups"),
        ("rmc1", "tiny", {"slug": "x"}, "has no setting slug"),
        ("rmc1", "tiny", {"scale": "laptop"}, "has no setting scale"),
        ("rmc1", "tiny", {"ids_rows": 0}, "ids_rows must be a whole number of at least 1"),
        ("rmc1", "tiny", {"ids_lookups": True}, "ids_lookups must be"),
        ("rmc1", "tiny", {"top": "wide"}, "top cannot be 'wide'"),
        ("rmc1", "tiny", {"top": (64, 2)}, "top must end in 1"),
        ("rmc1", "tiny", {"dim": 0}, "widths must be at least 1"),
        ("rmc1", "tiny", {"interaction": "sum"}, "interaction is concat or dot"),
        ("rmc1", "tiny", {"sla_ms": 0}, "SLA"),
        ("rmc2", "tiny", {"interaction": "dot"}, "dot needs dim equal to the last bottom width"),
        ("rmc1", "tiny", {"ids_rows": 2**30}, "INT32"),
        ("mt_wnd", "tiny", {"ids_tables": 3}, "give ids_rows as well"),
        ("mt_wnd", "tiny", {"tasks": ("a", "a")}, "task names must differ"),
        ("wnd", "tiny", {"ids_lookups": 2}, "no axis"),
        ("ncf", "tiny", {"ids_rows": (1, 2)}, "four tables"),
        ("din", "tiny", {"top": (8, 1)}, "2 classes"),
        ("rmc1", "tiny", {"tasks": ("a", "b")}, "tasks is for wnd and mt_wnd only"),
        ("rmc1", "tiny", {"tower": (1,)}, "tower is for wnd and mt_wnd only"),
        ("ncf", "tiny", {"dense_width": 3}, "dense_width is for wnd and mt_wnd and rmc1"),
        ("ncf", "tiny", {"hidden": 3}, "hidden is for din and dien only"),
        ("din", "tiny", {"bottom": 3}, "bottom is for rmc1"),
        ("wnd", "tiny", {"interaction": "dot"}, "interaction is for rmc1"),
        ("wnd", "tiny", {"tasks": ("a", "b")}, "tasks and tower go together"),
        ("mt_wnd", "tiny", {"tasks": ("a,b", "c")}, "no comma"),
        ("mt_wnd", "tiny", {"tasks": ("a", "")}, "no comma"),
        ("rmc1", "tiny", {"sla_ms": 10**400}, "sla_ms is too large"),
        ("rmc1", "tiny", {"sla_ms": float("inf")}, "SLA"),
        ("rmc1", "tiny", {"sla_ms": float("nan")}, "SLA"),
        ("rmc1", "tiny", {"sla_ms": 1e-9}, "SLA"),
        ("rmc1", "tiny", {"ids_rows": ()}, "ids_rows needs a number"),
        ("rmc1", "tiny", {"ids_tables": 10**9}, "ids_tables must be at most"),
        ("rmc1", "tiny", {"ids_lookups": 2**31}, "ids_lookups must be at most"),
        ("rmc1", "tiny", {"dim": 2**31}, "widths must be at most"),
        ("rmc1", "tiny", {"max_batch_size": 2**31}, "max_batch_size must be from 1"),
    ],
)
def test_a_setting_that_cannot_work_is_named(
    slug: str, scale: str, overrides: dict[str, object], says: str
) -> None:
    with pytest.raises(InvalidSettingError, match=says):
        spec_for(slug, scale, **overrides)


@given(st.sampled_from(SLUGS), st.data())
def test_any_override_is_either_taken_or_refused_in_words(slug: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(override_names(slug)))
    value = data.draw(
        st.one_of(
            st.integers(-5, 5), st.floats(), st.text(max_size=3), st.lists(st.integers(-2, 5), max_size=4)
        )
    )
    try:
        spec = spec_for(slug, "tiny", **{name: value})
    except InvalidSettingError:
        return
    assert spec.inputs
    assert spec.outputs


def test_the_spec_and_the_config_need_no_torch() -> None:
    code = (
        "import sys, services.models.export, services.models.triton_config; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
