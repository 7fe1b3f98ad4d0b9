"""Small real ONNX models, a real repository of them, and a real server on a real socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from services.models.export import Exported, export
from services.rank.server import serve
from services.rank.settings import ServeSettings

REQUIRE_ALL = "DEEPRECSYS_REQUIRE_ALL"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Where everything must be there, a skip is a failure."""
    report = yield
    if report.skipped and os.environ.get(REQUIRE_ALL) and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but {REQUIRE_ALL} is set: {report.longrepr}"
    return report


TABLE = np.linspace(-1.0, 1.0, 40, dtype=np.float32).reshape(10, 4)
"""The table of the linear model: 10 rows of 4."""


def linear_scores(dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """What the linear model must answer: sigmoid of the sum of the dense features [N, 3] and the rows [N, 2]."""
    total = dense.sum(axis=1) + TABLE[ids].sum(axis=(1, 2))
    return 1.0 / (1.0 + np.exp(-total))


def _model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, np.ndarray]
) -> bytes:
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def linear_model(batch: str | int = "batch", table: np.ndarray = TABLE) -> bytes:
    """Inputs dense FP32 [N, 3] and ids INT32 [N, 2]; outputs score [N, 1] and logit [N, 1]."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "row_axes"], ["pooled"], keepdims=0),
        helper.make_node("Unsqueeze", ["pooled", "one"], ["column"]),
        helper.make_node("ReduceSum", ["dense", "one"], ["summed"], keepdims=1),
        helper.make_node("Add", ["summed", "column"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
    ]
    inputs = [
        helper.make_tensor_value_info("dense", TensorProto.FLOAT, [batch, 3]),
        helper.make_tensor_value_info("ids", TensorProto.INT32, [batch, 2]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 1]) for name in ("score", "logit")
    ]
    constants = {"table": table, "row_axes": np.array([1, 2]), "one": np.array([1])}
    return _model(nodes, inputs, outputs, constants)


def two_task_model() -> bytes:
    """Input dense FP32 [N, 2], returned as it is: output scores [N, 2]."""
    nodes = [helper.make_node("Identity", ["dense"], ["scores"])]
    inputs = [helper.make_tensor_value_info("dense", TensorProto.FLOAT, ["batch", 2])]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])]
    return _model(nodes, inputs, outputs, {})


def row_sum_model() -> bytes:
    """Input rows FP32 [N, any length]; output score [N, 1], their sum."""
    nodes = [helper.make_node("ReduceSum", ["rows", "one"], ["score"], keepdims=1)]
    inputs = [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", "length"])]
    outputs = [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1])]
    return _model(nodes, inputs, outputs, {"one": np.array([1])})


def cast_sum_model(element: int) -> bytes:
    """Input ids [N, 2] of an integer type; output score [N, 1], their sum."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["numbers", "one"], ["score"], keepdims=1),
    ]
    inputs = [helper.make_tensor_value_info("ids", element, ["batch", 2])]
    outputs = [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1])]
    return _model(nodes, inputs, outputs, {"one": np.array([1])})


def constant_model() -> bytes:
    """No input; output score [1, 1]."""
    nodes = [helper.make_node("Identity", ["one"], ["score"])]
    outputs = [helper.make_tensor_value_info("score", TensorProto.FLOAT, [1, 1])]
    return _model(nodes, [], outputs, {"one": np.ones((1, 1), np.float32)})


LINEAR_CONFIG = """
platform: "onnxruntime_onnx"
max_batch_size: 64
input [ { name: "dense" data_type: TYPE_FP32 dims: [ 3 ] }, { name: "ids" data_type: TYPE_INT32 dims: [ 2 ] } ]
output [ { name: "score" data_type: TYPE_FP32 dims: [ 1 ] } ]
parameters { key: "sla_ms" value { string_value: "50" } }
parameters { key: "id_rows.ids" value { string_value: "10, 8" } }
parameters { key: "user_inputs" value { string_value: "dense" } }
"""


def write_model(repository: Path, name: str, onnx_bytes: bytes, config: str, version: str = "1") -> Path:
    """Put a model into the repository and return its directory."""
    directory = repository / name
    (directory / version).mkdir(parents=True)
    (directory / version / "model.onnx").write_bytes(onnx_bytes)
    (directory / "config.pbtxt").write_text(config)
    return directory


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the models `linear` and `two_task`."""
    place = tmp_path / "repository"
    write_model(place, "linear", linear_model(), LINEAR_CONFIG)
    tasks = 'parameters { key: "tasks" value { string_value: "click,buy" } }'
    write_model(place, "two_task", two_task_model(), f"max_batch_size: 8 {tasks}")
    return place


class Exports(dict[str, Exported]):
    """Models at scale tiny, each exported once for the whole run, when first asked for. Read only."""

    def __init__(self, repository: Path) -> None:
        super().__init__()
        self._repository = repository

    def __missing__(self, slug: str) -> Exported:
        (self[slug],) = export([slug], self._repository, "tiny", seed=3)
        return self[slug]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """The eight models, exported as they are needed."""
    return Exports(tmp_path_factory.mktemp("exported"))


ServerFactory = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture
def running() -> ServerFactory:
    """A factory of servers in this process on free ports: `async with running(repository, ...) as address`."""

    @asynccontextmanager
    async def start(repository: Path, **settings: Any) -> AsyncIterator[str]:
        address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        chosen = ServeSettings(repository=repository, port=0, warmup_s=0.02, **settings)
        life = asyncio.create_task(serve(chosen, address.set_result, stop))
        await asyncio.wait([life, address], return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            await life  # raises what stopped it
        try:
            yield await address
        finally:
            stop.set()
            await life

    return start
