"""Which ONNX form pools embeddings fastest? The forms of services/models/layers.py were chosen from this.

Every run draws fresh ids: with repeated ids the gathered rows sit in the cache and all forms look 3 times faster.
One thread, tables of scale laptop. Prints one table and writes results/pooling_forms.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from services.models.candidates import Scorer, random_ids
from services.models.parity import onnx_scorer
from services.models.spec import TableGroup, spec_for

BATCH_SIZES = (1, 16, 64, 256)
INPUTS = (("rmc1", "ids"), ("rmc2", "ids"), ("rmc3", "ids"), ("din", "behaviours"))
RESULTS = Path(__file__).parent / "results" / "pooling_forms.json"
MAX_ADDS = 4  # more look-ups than this are not added one by one


@dataclasses.dataclass(frozen=True)
class Graph:
    """Nodes from ``ids`` to ``pooled``, and the constants that they name."""

    nodes: list[NodeProto]
    constants: dict[str, np.ndarray]


def stacked(group: TableGroup, weights: np.ndarray) -> Graph:
    """One Gather from one table that holds all, then one ReduceSum."""
    nodes = [*_gather_stacked(), helper.make_node("ReduceSum", ["rows", "axis"], ["pooled"], keepdims=0)]
    return Graph(nodes, {**_stack(group, weights), "axis": np.array([2])})


def stacked_matmul(group: TableGroup, weights: np.ndarray) -> Graph:
    """One Gather, then the sum as a product with ones."""
    nodes = [*_gather_stacked(), helper.make_node("MatMul", ["ones", "rows"], ["pooled"])]
    return Graph(nodes, {**_stack(group, weights), "ones": np.ones((1, group.lookups), np.float32)})


def stacked_add(group: TableGroup, weights: np.ndarray) -> Graph:
    """One Gather, then a Split of the look-ups and Adds."""
    parts = [f"part{i}" for i in range(group.lookups)]
    nodes = [*_gather_stacked(), helper.make_node("Split", ["rows", "ones"], parts, axis=2)]
    sums = [parts[0], *(f"sum{i}" for i in range(2, group.lookups)), "pooled"]
    pairs = zip(sums, parts[1:], sums[1:], strict=False)
    nodes += [helper.make_node("Add", [left, right], [total]) for left, right, total in pairs]
    return Graph(nodes, {**_stack(group, weights), "ones": np.ones(group.lookups, np.int64)})


def per_table(group: TableGroup, weights: np.ndarray) -> Graph:
    """Give each table a Gather and a ReduceSum."""
    tables = range(group.tables)
    nodes = [helper.make_node("Split", ["ids", "ones"], [f"ids{i}" for i in tables], axis=1)]
    for i in tables:
        nodes.append(helper.make_node("Gather", [f"table{i}", f"ids{i}"], [f"rows{i}"]))
        nodes.append(helper.make_node("ReduceSum", [f"rows{i}", "axis"], [f"pooled{i}"], keepdims=0))
    nodes.append(helper.make_node("Concat", [f"pooled{i}" for i in tables], ["pooled"], axis=1))
    constants = {f"table{i}": table for i, table in enumerate(np.split(weights, np.cumsum(group.rows)[:-1]))}
    return Graph(nodes, {**constants, "ones": np.ones(group.tables, np.int64), "axis": np.array([2])})


def embedding_bag(group: TableGroup, weights: np.ndarray) -> Graph:
    """Loop over all bags, as torch exports nn.EmbeddingBag."""
    body = helper.make_graph(
        [
            helper.make_node("Gather", ["bags", "bag"], ["bag_ids"]),
            helper.make_node("Gather", ["table", "bag_ids"], ["rows"]),
            helper.make_node("ReduceSum", ["rows", "first"], ["bag_sum"], keepdims=0),
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
        ],
        "bag",
        [
            helper.make_tensor_value_info("bag", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("bag_sum", TensorProto.FLOAT, [weights.shape[1]]),
        ],
    )
    nodes = [
        helper.make_node("Add", ["ids", "offsets"], ["absolute"]),
        helper.make_node("Reshape", ["absolute", "bag_shape"], ["bags"]),
        helper.make_node("Shape", ["bags"], ["bag_count"], start=0, end=1),
        helper.make_node("Squeeze", ["bag_count"], ["count"]),
        helper.make_node("Loop", ["count", "true"], ["pooled"], body=body),
    ]
    return Graph(
        nodes,
        {
            **_stack(group, weights),
            "bag_shape": np.array([-1, group.lookups]),
            "true": np.array(True),
            "first": np.array([0]),
        },
    )


FORMS: dict[str, Callable[[TableGroup, np.ndarray], Graph]] = {
    "stacked, ReduceSum": stacked,
    "stacked, MatMul": stacked_matmul,
    "stacked, Split + Add": stacked_add,
    "per table": per_table,
    "EmbeddingBag (Loop)": embedding_bag,
}


def _gather_stacked() -> list[NodeProto]:
    return [
        helper.make_node("Add", ["ids", "offsets"], ["absolute"]),
        helper.make_node("Gather", ["table", "absolute"], ["rows"]),
    ]


def _stack(group: TableGroup, weights: np.ndarray) -> dict[str, np.ndarray]:
    offsets = np.concatenate([[0], np.cumsum(group.rows)[:-1]]).astype(np.int32)
    return {"table": weights, "offsets": offsets[:, None]}


def write(graph: Graph, group: TableGroup, folder: Path) -> Path:
    ids = helper.make_tensor_value_info("ids", TensorProto.INT32, ["n", *group.dims])
    pooled = helper.make_tensor_value_info("pooled", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "pooling", [ids], [pooled], constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    path = folder / "pooling.onnx"
    onnx.save(model, path, save_as_external_data=True, location="pooling.onnx.data", size_threshold=1 << 20)
    return path


def us_per_candidate(
    scorers: dict[str, Scorer], group: TableGroup, batch_size: int, budget_s: float
) -> dict[str, float]:
    """Return each form's median over at least 5 fresh draws, taken in turns so that noise meets all forms."""
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {form: [] for form in scorers}
    end = time.perf_counter() + budget_s * len(scorers)
    rounds = 0
    while rounds < 5 or (time.perf_counter() < end and rounds < 300):
        rounds += 1
        for form, score in scorers.items():
            ids = random_ids(group, batch_size, rng)
            started = time.perf_counter()
            score({"ids": ids})
            seconds[form].append(time.perf_counter() - started)
    return {form: 1e6 * statistics.median(times) / batch_size for form, times in seconds.items()}


def measure(budget_s: float) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for slug, name in INPUTS:
        spec = spec_for(slug)
        group = spec.group(name)
        weights = np.random.default_rng(0).random((sum(group.rows), spec.dim), dtype=np.float32)
        forms = {f: b for f, b in FORMS.items() if b is not stacked_add or group.lookups <= MAX_ADDS}
        with tempfile.TemporaryDirectory() as folder:
            scorers = {
                form: onnx_scorer(write(build(group, weights), group, Path(tempfile.mkdtemp(dir=folder))))
                for form, build in forms.items()
            }
            by_batch = {b: us_per_candidate(scorers, group, b, budget_s) for b in BATCH_SIZES}
        for form in forms:
            us = {str(b): round(by_batch[b][form], 1) for b in BATCH_SIZES}
            found.append({"model": slug, "input": name, "form": form, "us_per_candidate": us})
    return found


def machine() -> dict[str, object]:
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "onnxruntime": ort.__version__,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget-s", type=float, default=0.7, help="seconds for each figure")
    arguments = parser.parse_args()
    found = measure(arguments.budget_s)
    table = Table("model", "form", *(f"batch {b}" for b in BATCH_SIZES), title="pooling, us a candidate")
    for row in found:
        us = row["us_per_candidate"]
        assert isinstance(us, dict)
        table.add_row(str(row["model"]), str(row["form"]), *(f"{value:.1f}" for value in us.values()))
    Console().print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    result = {"machine": machine(), "threads": 1, "scale": "laptop", "forms": found}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
