"""The breakdown is that of ONNX Runtime's own profiler, less what the profiler itself takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from deeprecsys.errors import RepositoryError
from services.characterise.characterisation import open_model
from services.characterise.dataflow import Part
from services.characterise.operators import (
    PAPER_GROUPS,
    ProfiledModel,
    break_down,
    paper_group,
    read_trace,
    without_profiler,
)
from services.rank.repository import read_listing
from tests.conftest import write_model
from tests.services.characterise import graphs

BAGS_CONFIG = 'max_batch_size: 64 parameters { key: "id_rows.ids" value { string_value: "10" } }'


def test_a_real_session_is_broken_down_by_operator_part_and_batch_size(tmp_path: Path) -> None:
    model = graphs.bags()
    directory = write_model(tmp_path, "bags", model.SerializeToString(), BAGS_CONFIG)
    engine, spec = open_model(read_listing(directory))
    seen: list[int] = []
    found = break_down(engine, spec, model, sizes=(1, 16, 1024), seconds_each=0.001, progress=seen.append)
    assert seen == [1, 16]  # 1024 is more than the model's largest batch
    assert [b.batch_size for b in found] == seen
    for breakdown in found:
        assert breakdown.runs >= 10
        nodes = {(o.operator, o.part): o.nodes for o in breakdown.operators}
        assert nodes[("Gather", Part.EMBEDDING)] == 1
        assert nodes[("ReduceSum", Part.EMBEDDING)] == 1
        assert nodes[("Concat", Part.OTHER)] == 1
        assert sum(n for (_, part), n in nodes.items() if part is Part.MLP) in (
            2,
            3,
            4,
        )  # as far as they are fused
        assert sum(o.share for o in breakdown.operators) == pytest.approx(1)
        assert sum(breakdown.part_s.values()) == pytest.approx(sum(o.seconds for o in breakdown.operators))
        assert breakdown.profiled_s >= sum(o.seconds for o in breakdown.operators)
        assert sum(breakdown.paper_share.values()) == pytest.approx(1)
        assert set(breakdown.paper_share) == set(PAPER_GROUPS)


def test_what_runs_inside_a_loop_is_counted_once_in_the_loop(tmp_path: Path) -> None:
    profiled = ProfiledModel(graphs.loop(), tmp_path, tmp_path)
    for _ in range(3):
        profiled.run({"first": np.ones((2, 3), np.float32)}, ["last"])
    runs, parts = profiled.finish()
    assert len(runs) == 3
    assert [kind for kind, _ in parts.values()] == ["Loop"]
    assert all(set(run.node_s) == set(parts) for run in runs)
    assert all(0 <= sum(run.node_s.values()) <= run.executor_s for run in runs)


def test_tables_beside_the_model_are_found(tmp_path: Path) -> None:
    path = tmp_path / "1" / "model.onnx"
    path.parent.mkdir()
    onnx.save(graphs.bags(), path, save_as_external_data=True, location="model.onnx.data", size_threshold=64)
    bare = onnx.load(path, load_external_data=False)
    assert not bare.graph.initializer[0].raw_data
    (tmp_path / "folder").mkdir()
    profiled = ProfiledModel(bare, path.parent, tmp_path / "folder")
    inputs = {"ids": np.ones((2, 3), np.int32), "dense": np.ones((2, 4), np.float32)}
    assert profiled.run(inputs, ["score"])[0].shape == (2, 1)
    runs, parts = profiled.finish()
    assert ("Gather", Part.EMBEDDING) in parts.values()
    assert len(runs) == 1


def test_a_model_that_cannot_be_profiled_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="cannot be profiled in .*none"):
        ProfiledModel(graphs.bags(), tmp_path, tmp_path / "none")


def event(name: str, microseconds: int, kind: str = "Session") -> dict[str, object]:
    return {"cat": kind, "name": name, "dur": microseconds}


def test_a_trace_is_cut_into_runs_and_other_events_are_left_out() -> None:
    events = [
        event("model_loading_uri", 900),
        event("a_kernel_time", 5, "Node"),
        event("inner_kernel_time", 2, "Node"),
        event("a_fence_before", 1, "Node"),
        event("b_kernel_time", 7, "Node"),
        event("SequentialExecutor::Execute", 20),
        event("model_run", 30),
        event("a_kernel_time", 6, "Node"),
        event("b_kernel_time", 8, "Node"),
        event("SequentialExecutor::Execute", 21),
        event("model_run", 31),
    ]
    first, second = read_trace(events, {"a": None, "b": None})
    assert first.node_s == pytest.approx({"a": 5e-6, "b": 7e-6})
    assert (first.executor_s, second.executor_s) == pytest.approx((20e-6, 21e-6))
    with pytest.raises(RepositoryError, match="run 0 lacks the nodes c"):
        read_trace(events, {"a": None, "b": None, "c": None})


def test_the_profilers_own_time_comes_off_every_node_alike_and_never_more_than_the_quickest_took() -> None:
    node_s = {"a": 5.0, "b": 9.0}
    assert without_profiler(node_s, 10.0) == ({"a": 3.0, "b": 7.0}, 2.0)
    assert without_profiler(node_s, 1.0) == ({"a": 0.0, "b": 4.0}, 5.0)
    assert without_profiler(node_s, 20.0) == (node_s, 0.0)


@pytest.mark.parametrize(
    ("operator", "part", "group"),
    [
        ("Gather", Part.EMBEDDING, "SparseLengthsSum"),
        ("Add", Part.EMBEDDING, "SparseLengthsSum"),
        ("Add", Part.OTHER, "Sum"),
        ("FusedGemm", Part.MLP, "FC"),
        ("MatMul", Part.ATTENTION, "FC"),
        ("FusedGemm", Part.RECURRENCE, "RecurrentNetwork"),
        ("Softmax", Part.ATTENTION, "Softmax"),
        ("Transpose", Part.OTHER, "Other"),
    ],
)
def test_operators_have_the_papers_names(operator: str, part: Part, group: str) -> None:
    assert paper_group(operator, part) == group
