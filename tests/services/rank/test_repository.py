"""What is read from a model directory, and what is said of a broken one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

import services.rank.loading
from deeprecsys import AsyncRankClient
from deeprecsys.errors import InvalidQueryError, RepositoryError, UnavailableError
from scheduler.measure import Sla
from services.rank.cpu import CpuEngine
from services.rank.model import ModelSpec
from services.rank.repository import build_spec, model_directories, read_listing
from tests.conftest import (
    LINEAR_CONFIG,
    constant_model,
    linear_model,
    linear_scores,
    row_sum_model,
    two_task_model,
    write_model,
)


def read(directory: Path) -> ModelSpec:
    listing = read_listing(directory)
    version = listing.versions[0]
    return build_spec(listing, version, CpuEngine(listing.model_file(version)).ports())


def test_the_configuration_and_the_file_are_joined(tmp_path: Path) -> None:
    spec = read(write_model(tmp_path, "linear", linear_model(), LINEAR_CONFIG, version="12"))
    assert (spec.name, spec.version, spec.key) == ("linear", "12", "linear/12")
    dense, ids = spec.inputs
    assert (dense.name, dense.dtype, dense.shape, dense.user_side, dense.id_rows) == (
        "dense",
        np.dtype("<f4"),
        (3,),
        True,
        None,
    )
    assert (ids.shape, ids.id_rows) == ((2,), (10, 8))
    assert spec.sla == Sla(95.0, 0.05)
    assert (spec.largest_batch, spec.whole, spec.score_output, spec.tasks) == (64, False, "score", ())


def test_what_the_configuration_leaves_out_is_read_from_the_file_and_the_sla_has_a_default(
    tmp_path: Path,
) -> None:
    spec = read(write_model(tmp_path, "mine", two_task_model(), "max_batch_size: 8"))
    assert [(i.name, i.shape) for i in spec.inputs] == [("dense", (2,))]
    assert spec.sla == Sla(95.0, 0.1)
    assert spec.tasks == ("task_0", "task_1")


def test_a_model_without_batching_keeps_each_query_whole(tmp_path: Path) -> None:
    config = 'max_batch_size: 0 input [ { name: "dense" data_type: TYPE_FP32 dims: [ -1, 3 ] } ]'
    spec = read(write_model(tmp_path, "whole", linear_model(), config))
    assert spec.whole
    assert [i.shape for i in spec.inputs] == [(3,), (2,)]


def test_a_file_for_single_candidates_is_run_one_by_one(tmp_path: Path) -> None:
    spec = read(write_model(tmp_path, "one", linear_model(batch=1), "max_batch_size: 64"))
    assert (spec.largest_batch, spec.whole) == (1, False)


def test_versions_are_chosen_as_triton_does(tmp_path: Path) -> None:
    directory = write_model(tmp_path, "linear", linear_model(), LINEAR_CONFIG)
    for version in ("3", "10", "0", "old"):
        (directory / version).mkdir()
    config = directory / "config.pbtxt"
    assert read_listing(directory).versions == ("10",)
    config.write_text(LINEAR_CONFIG + "version_policy { latest { num_versions: 2 } }")
    assert read_listing(directory).versions == ("10", "3")
    config.write_text(LINEAR_CONFIG + "version_policy { all { } }")
    assert read_listing(directory).versions == ("10", "3", "1")
    config.write_text(LINEAR_CONFIG + "version_policy { specific { versions: [ 1, 99 ] } }")
    assert read_listing(directory).versions == ("1",)


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


BROKEN = {
    "syntax": ("max_batch_size: many", "config.pbtxt: line 1:17"),
    "name": ('name: "other"', 'name "other" differs from the directory "m"'),
    "backend": ('backend: "pytorch"', 'backend "pytorch" is not served here; use "onnxruntime"'),
    "unknown input": (
        'max_batch_size: 4 input [ { name: "age" data_type: TYPE_FP32 dims: [ 1 ] } ]',
        'input "age" is not in the ONNX file, which has dense, ids',
    ),
    "wrong dtype": (
        'max_batch_size: 4 input [ { name: "ids" data_type: TYPE_INT64 dims: [ 2 ] } ]',
        'input "ids" is int64, but the ONNX file has int32',
    ),
    "wrong shape": (
        'max_batch_size: 4 output [ { name: "score" data_type: TYPE_FP32 dims: [ 5 ] } ]',
        'output "score" has the shape [-1, 5], but the ONNX file has [-1, 1]',
    ),
    "dims with the batch axis": (
        'max_batch_size: 4 input [ { name: "dense" data_type: TYPE_FP32 dims: [ -1, 3 ] } ]',
        'input "dense" has the shape [-1, -1, 3], but the ONNX file has [-1, 3]',
    ),
    "sla": (parameter("sla_ms", "soon"), 'parameter sla_ms is "soon"; it must be milliseconds above 0'),
    "percentile": (parameter("sla_percentile", "100"), 'parameter sla_percentile is "100"'),
    "id rows of floats": (parameter("id_rows.dense", "5"), "id_rows.dense: the input holds float32, not ids"),
    "id rows not numbers": (
        parameter("id_rows.ids", "5,-1"),
        "id_rows.ids must be one whole number from 1 to 2147483648",
    ),
    "id rows of other width": (
        parameter("id_rows.ids", "5,5,5"),
        "id_rows.ids has 3 numbers; the input has 2 columns",
    ),
    "id rows of nothing": (parameter("id_rows.idz", "5"), 'parameter id_rows: "idz" is none of dense, ids'),
    "id rows of no decimal": (parameter("id_rows.ids", "²"), "id_rows.ids must be one whole number"),
    "id rows beyond int32": (
        parameter("id_rows.ids", "99999999999999999999"),
        "from 1 to 2147483648 (int32 ids)",
    ),
    "user inputs": (parameter("user_inputs", "dense,who"), '"who" is none of dense, ids'),
    "score output": (parameter("score_output", "best"), '"best" is none of score, logit'),
    "tasks": (parameter("tasks", "a,b"), 'parameter tasks names 2 tasks, but output "score" has 1 columns'),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_configuration_is_named_with_its_reason(case: str, tmp_path: Path) -> None:
    config, reason = BROKEN[case]
    directory = write_model(tmp_path, "m", linear_model(), config)
    with pytest.raises(RepositoryError) as broken:
        read(directory)
    assert reason in str(broken.value)
    assert "\n" not in str(broken.value)


def test_a_file_of_a_fixed_larger_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RepositoryError, match="batches of exactly \\[4\\] only: export it with a dynamic first axis"
    ):
        read(write_model(tmp_path, "m", linear_model(batch=4), "max_batch_size: 4"))


def test_missing_and_corrupt_files_are_named(tmp_path: Path) -> None:
    directory = write_model(tmp_path, "m", b"not an ONNX file", "max_batch_size: 4")
    with pytest.raises(RepositoryError, match="1/model.onnx cannot be opened"):
        read(directory)
    (directory / "1" / "model.onnx").unlink()
    with pytest.raises(RepositoryError, match="1/model.onnx is missing; run `deeprecsys export`"):
        read(directory)
    (directory / "1").rmdir()
    with pytest.raises(RepositoryError, match="no version directory"):
        read_listing(directory)
    (directory / "config.pbtxt").unlink()
    with pytest.raises(RepositoryError, match="config.pbtxt: No such file"):
        read_listing(directory)
    with pytest.raises(RepositoryError, match="model repository .*: No such file"):
        model_directories(tmp_path / "nowhere")


async def test_a_broken_model_is_reported_and_does_not_stop_the_others(repository, running) -> None:
    write_model(repository, "corrupt", b"\x00garbage", "max_batch_size: 4")
    write_model(repository, "misspelt", linear_model(), "max_batch: 4")
    write_model(repository, "no_input", constant_model(), "max_batch_size: 4")
    write_model(repository, "odd\udcff", linear_model(), LINEAR_CONFIG)
    (repository / "linear" / "²").mkdir()
    async with running(repository) as address, AsyncRankClient(address) as client:
        models = {model.name: model for model in await client.models()}
        assert [name for name, model in models.items() if model.ready] == ["linear", "two_task"]
        assert "version 1: 1/model.onnx cannot be opened" in models["corrupt"].unready_reason
        assert str(repository) not in models["corrupt"].unready_reason
        assert "the ONNX file has no inputs" in models["no_input"].unready_reason
        assert "line 1:1" in models["misspelt"].unready_reason
        with pytest.raises(UnavailableError, match="model misspelt cannot be served: config.pbtxt"):
            await client.rank("misspelt", {})
        assert (await client.rank("two_task", {"dense": np.ones((1, 2), np.float32)})).ranking.tolist() == [0]


async def test_a_repository_without_any_servable_model_stops_the_server(tmp_path: Path, running) -> None:
    write_model(tmp_path, "corrupt", b"\x00garbage", "max_batch_size: 4")
    with pytest.raises(RepositoryError, match="no model of .* can be served"):
        async with running(tmp_path):
            pass


async def test_unbatched_and_single_candidate_models_are_served(tmp_path: Path, running) -> None:
    write_model(tmp_path, "whole", linear_model(), "max_batch_size: 0")
    write_model(tmp_path, "single", linear_model(batch=1), "max_batch_size: 64")
    rng = np.random.default_rng(1)
    dense, ids = rng.normal(size=(90, 3)).astype(np.float32), rng.integers(0, 8, (90, 2), dtype=np.int32)
    async with running(tmp_path) as address, AsyncRankClient(address) as client:
        whole = await client.rank("whole", {"dense": dense, "ids": ids})
        single = await client.rank("single", {"dense": dense, "ids": ids})
    assert (whole.batches, single.batches) == (1, 90)
    np.testing.assert_allclose(whole.scores, linear_scores(dense, ids), atol=1e-6)
    np.testing.assert_allclose(single.scores, linear_scores(dense, ids), atol=1e-6)


async def test_queries_of_different_shapes_are_served_each_as_a_whole(tmp_path: Path, running) -> None:
    write_model(tmp_path, "rows", row_sum_model(), "max_batch_size: 4")
    queries = [np.full((4, length), 1.0, np.float32) for length in (1, 7, 3, 20)]
    async with running(tmp_path, workers=1) as address, AsyncRankClient(address) as client:
        answers = await asyncio.gather(*(client.rank("rows", {"rows": rows}) for rows in queries))
        assert [answer.scores.tolist() for answer in answers] == [[rows.shape[1]] * 4 for rows in queries]
        assert (await client.model("rows")).max_candidates == 4
        with pytest.raises(InvalidQueryError, match="a query may have 4 candidates"):
            await client.rank("rows", {"rows": np.ones((5, 2), np.float32)})


async def test_two_versions_are_served_and_asked_for_by_number(repository: Path, running) -> None:
    directory = repository / "linear"
    (directory / "2").mkdir()
    (directory / "2" / "model.onnx").write_bytes((directory / "1" / "model.onnx").read_bytes())
    (directory / "config.pbtxt").write_text(LINEAR_CONFIG + "version_policy { all { } }")
    query = {"dense": np.ones((2, 3), np.float32), "ids": np.zeros((2, 2), np.int32)}
    async with running(repository) as address, AsyncRankClient(address) as client:
        assert (await client.rank("linear", query)).version == "2"
        assert (await client.rank("linear", query, version="1")).version == "1"
        assert list((await client.model("linear")).versions) == ["2", "1"]
        assert list((await client.model("linear", version="1")).versions) == ["1", "2"]


async def test_a_broken_newer_version_is_named_while_the_older_one_answers(repository: Path, running) -> None:
    directory = repository / "linear"
    (directory / "2").mkdir()
    (directory / "2" / "model.onnx").write_bytes(b"broken")
    (directory / "config.pbtxt").write_text(LINEAR_CONFIG + "version_policy { all { } }")
    async with running(repository) as address, AsyncRankClient(address) as client:
        model = await client.model("linear")
    assert (model.ready, list(model.versions)) == (True, ["1"])
    assert model.unready_reason.startswith("cannot be served: version 2: 2/model.onnx cannot be opened")


async def test_whatever_is_odd_about_a_model_stays_its_own(repository: Path, running, monkeypatch) -> None:
    def odd(engine: object, spec: ModelSpec, *_: object) -> object:
        if spec.name == "linear":
            raise StopIteration
        return real(engine, spec, *_)

    real = services.rank.loading.warm_up
    monkeypatch.setattr("services.rank.loading.warm_up", odd)
    async with running(repository) as address, AsyncRankClient(address) as client:
        models = {model.name: model for model in await client.models()}
    assert models["two_task"].ready
    assert (
        models["linear"].unready_reason
        == "cannot be served: version 1: StopIteration while loading; the log has the trace"
    )
