from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deeprecsys.errors import ExportError, InvalidSettingError
from services.models import export as export_module
from services.models import parity
from services.models.build import build
from services.models.candidates import random_candidates
from services.models.export import STEPS, Exported, Progress, export, export_one
from services.models.parity import MAX_ERROR, MIN_REDRAW_MOVE, MIN_SCORE_STD, onnx_scorer
from services.models.spec import SLUGS, ModelSpec, spec_for

SMALL = {"ids_rows": 90, "ids_lookups": 4, "ids_tables": 3}


Scores = Mapping[str, np.ndarray]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


EACH = [slug if slug == "ncf" else pytest.param(slug, marks=pytest.mark.slow) for slug in SLUGS]
"""Exporting all eight takes a while: the fast tests look at the smallest."""


def onnx_path(found: Exported) -> Path:
    return found.path / "model.onnx"


@pytest.mark.parametrize("slug", EACH)
def test_an_exported_model_agrees_with_torch_and_every_table_matters(
    exported: dict[str, Exported], slug: str
) -> None:
    found = exported[slug].parity
    assert found is not None
    assert found.max_error <= MAX_ERROR
    assert found.score_std >= MIN_SCORE_STD
    assert found.smallest_redraw_move >= MIN_REDRAW_MOVE
    assert found.rolled_error > 100 * MAX_ERROR


@pytest.mark.parametrize("slug", EACH)
def test_any_number_of_candidates_is_scored_and_each_alone(exported: dict[str, Exported], slug: str) -> None:
    spec, score = spec_for(slug, "tiny"), onnx_scorer(onnx_path(exported[slug]))
    inputs = random_candidates(spec, 300, np.random.default_rng(0))
    together = score(inputs)
    assert {name: array.shape[1:] for name, array in together.items()} == spec.outputs
    assert all(np.all((array > 0) & (array < 1)) for array in together.values())
    alone = score({name: array[123:124] for name, array in inputs.items()})
    for name, array in alone.items():
        np.testing.assert_allclose(array, together[name][123:124], atol=1e-5)


@pytest.mark.parametrize("slug", EACH)
def test_the_graph_has_no_loop_and_the_contracts_inputs(exported: dict[str, Exported], slug: str) -> None:
    spec, graph = spec_for(slug, "tiny"), onnx.load(onnx_path(exported[slug])).graph
    assert not {node.op_type for node in graph.node} & {"Loop", "Scan", "If", "GatherND"}
    types = {i.name: i.type.tensor_type for i in graph.input}
    assert list(types) == list(spec.inputs)
    assert all(t.shape.dim[0].dim_param for t in types.values())
    assert {name: t.elem_type == onnx.TensorProto.FLOAT for name, t in types.items()} == {
        name: name == "dense" for name in types
    }
    assert [o.name for o in graph.output] == list(spec.outputs)


@pytest.mark.slow
@pytest.mark.parametrize("slug", ["din", "dien"])
def test_two_class_scores_are_the_probability_of_class_1(exported: dict[str, Exported], slug: str) -> None:
    inputs = random_candidates(spec_for(slug, "tiny"), 9, np.random.default_rng(1))
    found = onnx_scorer(onnx_path(exported[slug]))(inputs)
    np.testing.assert_array_equal(found["score"], found["probabilities"][:, 1:])
    np.testing.assert_allclose(found["probabilities"].sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("slug", EACH)
def test_the_file_tells_nothing_of_the_machine_it_was_made_on(
    exported: dict[str, Exported], slug: str
) -> None:
    blob = onnx_path(exported[slug]).read_bytes()
    for trace in (
        b"site-packages",
        b"services/models",
        b'File "',
        b"stack_trace",
        str(Path.cwd()).encode(),
        b"/tmp/",
    ):
        assert trace not in blob


@pytest.mark.parametrize("slug", EACH)
def test_a_model_directory_holds_the_config_and_the_version_and_nothing_else(
    exported: dict[str, Exported], slug: str
) -> None:
    place = exported[slug].path
    assert {p.name for p in place.parent.iterdir()} == {"1", "config.pbtxt"}
    assert {p.name for p in place.iterdir()} <= {"model.onnx", "model.onnx.data"}
    assert not [p for p in place.parent.parent.iterdir() if p.name not in SLUGS]


@pytest.fixture
def published(exported: dict[str, Exported], repository: Path) -> Path:
    """A repository that holds ncf, of scale tiny and seed 3."""
    shutil.copytree(exported["ncf"].path.parent, repository / "ncf")
    return repository


@pytest.mark.slow
def test_progress_names_every_step_of_every_model(repository: Path) -> None:
    steps: list[Progress] = []
    export(["ncf", "rmc3"], repository, "tiny", progress=steps.append)
    assert steps == [
        Progress(slug, step, n, 2) for n, slug in enumerate(["ncf", "rmc3"], 1) for step in STEPS
    ]


@pytest.mark.parametrize("slug", EACH)
def test_exporting_twice_takes_every_step_again_and_gives_the_same_bytes(
    exported: dict[str, Exported], slug: str, repository: Path
) -> None:
    steps: list[Progress] = []
    export([slug], repository, "tiny", seed=3, progress=steps.append)
    assert contents(repository / slug) == contents(exported[slug].path.parent)
    assert steps == [Progress(slug, step, 1, 1) for step in STEPS]


def test_another_seed_gives_other_scores() -> None:
    spec = spec_for("rmc1", "tiny", **SMALL)
    inputs = {k: torch.from_numpy(v) for k, v in random_candidates(spec, 5, np.random.default_rng(0)).items()}
    one, same, other = (build(spec, seed)(**inputs) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=0.01)


def test_building_leaves_torchs_own_generator_and_threads_alone() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    build(spec_for("ncf", "tiny"), 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_published_version_is_reported_and_not_touched(
    exported: dict[str, Exported], published: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in published.rglob("*")}
    (second,) = export(["ncf"], published, "tiny", seed=3)
    assert (exported["ncf"].already_there, second.already_there) == (False, True)
    assert second.file_bytes == exported["ncf"].file_bytes
    assert {p: p.stat().st_mtime_ns for p in published.rglob("*")} == before


@pytest.mark.parametrize("changed", [{"seed": 1}, {"overrides": {"dim": 8}}])
def test_a_version_made_from_other_settings_is_not_passed_off_as_the_one_asked_for(
    published: Path, changed: dict[str, object]
) -> None:
    before = contents(published)
    with pytest.raises(ExportError, match="other settings.*--version.*--repository"):
        export(["ncf"], published, **{"scale": "tiny", "seed": 3, **changed})
    assert contents(published) == before


def test_a_target_written_as_a_whole_number_is_the_same_recipe(published: Path) -> None:
    (again,) = export(["ncf"], published, "tiny", seed=3, overrides={"sla_ms": 5, "sla_percentile": 95})
    assert again.already_there


@pytest.mark.slow
def test_another_version_leaves_the_first_alone(published: Path) -> None:
    before = contents(published / "ncf" / "1")
    (second,) = export(["ncf"], published, "tiny", seed=1, version=2)
    assert second.path == published / "ncf" / "2"
    assert contents(published / "ncf" / "1") == before


@pytest.mark.parametrize("left", [0, 100, 10_000])
def test_a_version_with_a_torn_file_is_not_called_whole(published: Path, left: int) -> None:
    file = published / "ncf" / "1" / "model.onnx"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ExportError, match="not a whole model"):
        export(["ncf"], published, "tiny", seed=3)


def test_a_version_without_a_file_is_not_called_whole(repository: Path) -> None:
    (repository / "ncf" / "1").mkdir(parents=True)
    with pytest.raises(ExportError, match="not a whole model"):
        export(["ncf"], repository, "tiny")


@pytest.mark.slow
def test_a_version_with_a_missing_data_file_is_not_called_whole(
    exported: dict[str, Exported], repository: Path
) -> None:
    broken = repository / "rmc2" / "1"
    broken.mkdir(parents=True)
    (broken / "model.onnx").write_bytes(onnx_path(exported["rmc2"]).read_bytes())
    with pytest.raises(ExportError, match="not a whole model"):
        export(["rmc2"], repository, "tiny", seed=3)


class Deaf(nn.Module):
    """A DLRM that does not listen to one of its tables, the fault that initial weights used to hide."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(dense, torch.cat([ids[:, :2], ids[:, :1]], dim=1))
        return found


class Indifferent(nn.Module):
    """A model that scores every candidate alike."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return 0.5 + 1e-3 * torch.as_tensor(self.inner(dense, ids))


class TwoFaced(nn.Module):
    """A model whose exported graph is not what torch computes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        wrong = 1e-3 if torch.compiler.is_exporting() else 0.0
        return torch.as_tensor(self.inner(dense, ids)) + wrong


@pytest.mark.parametrize(
    ("wrapper", "says"),
    [
        (Deaf, "a table moves no score"),
        pytest.param(Indifferent, "scores spread by only", marks=pytest.mark.slow),
        pytest.param(TwoFaced, "ONNX Runtime and torch differ", marks=pytest.mark.slow),
    ],
)
def test_a_model_that_fails_its_check_leaves_nothing_behind(
    wrapper: type[nn.Module], says: str, repository: Path
) -> None:
    def wrapped(spec: ModelSpec, seed: int) -> nn.Module:
        return wrapper(build(spec, seed)).eval()

    with pytest.raises(ExportError, match=says):
        export_one(spec_for("rmc1", "tiny", **SMALL), repository, build=wrapped)
    assert list(repository.iterdir()) == []


def checked(path: Path, spec: ModelSpec, change: Callable[[Scores], Scores]) -> None:
    """Check a file against its own outputs after ``change``."""
    score, rng = parity.onnx_scorer(path), np.random.default_rng(0)
    expected = parity.references(spec, lambda inputs: change(score(inputs)), rng)
    parity.check(spec, path, expected, rng)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: {"score": s["score"] + 1e-3}, "ONNX Runtime and torch differ"),
        (lambda s: {"score": s["score"] * np.nan}, "ONNX Runtime and torch differ"),
        (lambda s: {"score": 0 * s["score"]}, "ONNX Runtime and torch differ"),
        (lambda s: {"score": np.hstack([s["score"], s["score"]])}, "outputs are .*2"),
        (lambda s: {**s, "more": s["score"]}, "outputs are .*more"),
    ],
)
def test_the_check_wants_what_torch_and_the_spec_say(
    exported: dict[str, Exported], change: Callable[[Scores], Scores], says: str
) -> None:
    path, spec = onnx_path(exported["ncf"]), spec_for("ncf", "tiny")
    checked(path, spec, lambda scores: scores)
    with pytest.raises(ExportError, match=f"ncf: not published: {says}"):
        checked(path, spec, change)


def test_a_model_of_other_outputs_than_its_spec_is_not_published(exported: dict[str, Exported]) -> None:
    two_tasks = dataclasses.replace(spec_for("ncf", "tiny"), tasks=("a", "b"))
    with pytest.raises(ExportError, match=r"outputs are \{'score': \(1,\)\}, not \{'score': \(2,\)\}"):
        checked(onnx_path(exported["ncf"]), two_tasks, lambda scores: scores)


def test_a_file_that_onnx_runtime_refuses_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    spec = spec_for("ncf", "tiny")
    scores = parity.references(
        spec,
        lambda inputs: {"score": np.zeros((len(inputs["ids"]), 1), np.float32)},
        np.random.default_rng(0),
    )
    with pytest.raises(ExportError, match="ncf: not published: ONNX Runtime cannot run it: ") as caught:
        parity.check(spec, tmp_path / "model.onnx", scores, np.random.default_rng(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (RuntimeError("no room for this\nmore of it"), "ncf: cannot build the model: no room for this"),
        (MemoryError(), "ncf: cannot build the model: MemoryError"),
    ],
)
def test_a_fault_of_torch_is_one_clear_line_and_leaves_nothing_behind(
    fault: Exception, says: str, repository: Path
) -> None:
    def faulty(spec: ModelSpec, seed: int) -> nn.Module:
        raise fault

    with pytest.raises(ExportError) as caught:
        export_one(spec_for("ncf", "tiny"), repository, build=faulty)
    assert str(caught.value) == says
    assert list(repository.iterdir()) == []


def test_tables_wider_than_any_memory_are_one_clear_line(repository: Path) -> None:
    with pytest.raises(ExportError, match="rmc1: cannot build the model: "):
        export(["rmc1"], repository, "tiny", overrides={"dense_width": 2**31 - 1, "bottom": (2**31 - 1, 32)})


def test_wrong_settings_are_refused_before_anything_is_written(repository: Path) -> None:
    with pytest.raises(InvalidSettingError):
        export(["ncf", "nonesuch"], repository, "tiny")
    with pytest.raises(ExportError, match="from 1 on"):
        export(["ncf"], repository, "tiny", version=0)
    for seed in (-1, 2**63):
        with pytest.raises(InvalidSettingError, match="a seed is a number from 0 to"):
            export(["ncf"], repository, "tiny", seed=seed)
    assert not repository.exists()


def test_a_repository_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    in_the_way = tmp_path / "models"
    in_the_way.write_text("a file")
    with pytest.raises(
        ExportError, match=r"ncf: cannot write to .*models.*; choose another with --repository"
    ) as caught:
        export(["ncf"], in_the_way, "tiny")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_noticed_before_the_work(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ExportError, match="GB are free"):
        export(["ncf"], repository, "tiny")


def test_a_missing_torch_names_the_extra(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r'pip install "deeprecsys\[export\]"'):
        export(["ncf"], repository, "tiny")


@pytest.mark.slow
def test_a_batch_smaller_than_the_exporters_example_can_be_asked_for(repository: Path) -> None:
    (found,) = export(["ncf"], repository, "tiny", overrides={"max_batch_size": 1})
    assert 'key: "sla_ms"' in (found.path.parent / "config.pbtxt").read_text()


@pytest.mark.slow
def test_large_tensors_lie_beside_the_model_in_one_file(repository: Path) -> None:
    (found,) = export(["rmc1"], repository, "tiny", overrides=SMALL | {"ids_rows": 20_000})
    assert {p.name for p in found.path.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert (found.path / "model.onnx.data").stat().st_size >= found.table_bytes == 3 * 20_000 * 32 * 4


@pytest.mark.slow
def test_independent_towers_are_an_option_of_mt_wnd(repository: Path) -> None:
    overrides = {"top": (), "tower": (16, 8, 1), "tasks": ("buy", "return"), "ids_rows": 100, "ids_tables": 3}
    (found,) = export(["mt_wnd"], repository, "tiny", overrides=overrides)
    spec = spec_for("mt_wnd", "tiny", **overrides)
    score = onnx_scorer(onnx_path(found))(random_candidates(spec, 4, np.random.default_rng(0)))["score"]
    assert score.shape == (4, 2)


@pytest.mark.slow
@pytest.mark.parametrize("slug", EACH)
def test_all_eight_export_at_scale_laptop(slug: str, repository: Path) -> None:
    (found,) = export([slug], repository, "laptop")
    assert found.table_bytes <= found.file_bytes < found.table_bytes + 20_000_000


def test_a_check_that_mixed_up_candidates_would_pass_refuses_the_model(
    exported: Mapping[str, Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, spec, rng = onnx_path(exported["ncf"]), spec_for("ncf", "tiny"), np.random.default_rng(0)
    expected = parity.references(spec, onnx_scorer(path), rng)
    assert parity.check(spec, path, expected, rng).rolled_error > MAX_ERROR
    monkeypatch.setattr(parity, "_rolled", dict)  # as if rolling the ids changed nothing
    with pytest.raises(ExportError, match="candidates with each other's ids pass the check"):
        parity.check(spec, path, expected, rng)
