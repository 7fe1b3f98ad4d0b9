"""Tiny ONNX models whose work can be computed by hand. Nodes have no names, as many a model's have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[int, Sequence[Any]]],
    outputs: Mapping[str, Sequence[Any]],
    constants: Mapping[str, np.ndarray],
) -> onnx.ModelProto:
    """Return a checked model; ``inputs`` by name, each with its element type and shape, ``outputs`` with theirs."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def bags() -> onnx.ModelProto:
    """Three rows of 8 summed, beside 4 dense numbers, through layers of 5 and 1."""
    return model(
        [
            helper.make_node("Add", ["ids", "offset"], ["absolute"]),
            helper.make_node("Gather", ["table", "absolute"], ["rows"]),
            helper.make_node("ReduceSum", ["rows", "axis"], ["pooled"], keepdims=0),
            helper.make_node("Concat", ["pooled", "dense"], ["features"], axis=1),
            helper.make_node("Gemm", ["features", "w0", "b0"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("Gemm", ["active", "w1", "b1"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["score"]),
        ],
        {"ids": (INT32, ["n", 3]), "dense": (FLOAT, ["n", 4])},
        {"score": ["n", 1]},
        {
            "table": weights(10, 8),
            "offset": np.array([0], np.int32),
            "axis": np.array([1]),
            "w0": weights(12, 5),
            "b0": weights(5),
            "w1": weights(5, 1),
            "b1": weights(1),
        },
    )


def gru() -> onnx.ModelProto:
    """Five steps of 3 numbers through a GRU of 2."""
    return model(
        [
            helper.make_node("Transpose", ["sequence"], ["steps"], perm=[1, 0, 2]),
            helper.make_node("GRU", ["steps", "w", "r"], ["", "last"], hidden_size=2),
            helper.make_node("Squeeze", ["last", "axis"], ["state"]),
        ],
        {"sequence": (FLOAT, ["n", 5, 3])},
        {"state": ["n", 2]},
        {"w": weights(1, 6, 3), "r": weights(1, 6, 2), "axis": np.array([0])},
    )


def unrolled() -> onnx.ModelProto:
    """Three steps: state = tanh(step + state @ u), by the same u; then a layer of 1."""
    nodes = [helper.make_node("Split", ["sequence", "ones"], ["x0", "x1", "x2"], axis=1)]
    nodes.append(helper.make_node("MatMul", ["x0", "u"], ["p0"]))
    nodes.append(helper.make_node("Tanh", ["p0"], ["h0"]))
    for step in (1, 2):
        nodes.append(helper.make_node("Add", [f"x{step}", f"h{step - 1}"], [f"s{step}"]))
        nodes.append(helper.make_node("MatMul", [f"s{step}", "u"], [f"p{step}"]))
        nodes.append(helper.make_node("Tanh", [f"p{step}"], [f"h{step}"]))
    nodes.append(helper.make_node("MatMul", ["h2", "v"], ["score"]))
    return model(
        nodes,
        {"sequence": (FLOAT, ["n", 6])},
        {"score": ["n", 1]},
        {"ones": np.array([2, 2, 2]), "u": weights(2, 2), "v": weights(2, 1)},
    )


def attention() -> onnx.ModelProto:
    """Four items of 3 weighed by one query of 3: scores by a product, a softmax, a sum by a product; a layer of 1."""
    return model(
        [
            helper.make_node("Mul", ["query", "scale"], ["scaled"]),
            helper.make_node("MatMul", ["items", "scaled"], ["relevance"]),
            helper.make_node("Softmax", ["relevance"], ["share"], axis=1),
            helper.make_node("Transpose", ["share"], ["row"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["row", "items"], ["pooled"]),
            helper.make_node("Squeeze", ["pooled", "one"], ["interest"]),
            helper.make_node("MatMul", ["interest", "w"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["score"]),
        ],
        {"items": (FLOAT, ["n", 4, 3]), "query": (FLOAT, ["n", 3, 1])},
        {"score": ["n", 1]},
        {"scale": np.float32([0.5]), "one": np.array([1]), "w": weights(3, 1)},
    )


def scan() -> onnx.ModelProto:
    """Five steps of a Scan whose body multiplies a state of 3 by a matrix from outside."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "u"], ["product"]),
            helper.make_node("Add", ["product", "step"], ["state_out"]),
        ],
        "body",
        [helper.make_tensor_value_info(name, FLOAT, ["n", 3]) for name in ("state", "step")],
        [helper.make_tensor_value_info("state_out", FLOAT, ["n", 3])],
    )
    return model(
        [
            helper.make_node("Transpose", ["sequence"], ["steps"], perm=[1, 0, 2]),
            helper.make_node("Scan", ["first", "steps"], ["last"], body=body, num_scan_inputs=1),
        ],
        {"sequence": (FLOAT, ["n", 5, 3]), "first": (FLOAT, ["n", 3])},
        {"last": ["n", 3]},
        {"u": weights(3, 3)},
    )


def loop(trips: int | None = 4) -> onnx.ModelProto:
    """A Loop whose body multiplies a state of 3 by a matrix; without ``trips`` an input says how often."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "u"], ["state_out"]),
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, ["n", 3]),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", FLOAT, ["n", 3]),
        ],
    )
    constants = {"true": np.array(True), "u": weights(3, 3)}
    inputs: dict[str, tuple[int, Sequence[Any]]] = {"first": (FLOAT, ["n", 3])}
    if trips is None:
        inputs["trips"] = (TensorProto.INT64, [])
    else:
        constants["trips"] = np.array(trips)
    return model(
        [helper.make_node("Loop", ["trips", "true", "first"], ["last"], body=body)],
        inputs,
        {"last": ["n", 3]},
        constants,
    )


def unknown_shape() -> onnx.ModelProto:
    """Multiplies as many rows as are not zero: no shape says how many."""
    return model(
        [
            helper.make_node("NonZero", ["dense"], ["where"]),
            helper.make_node("Cast", ["where"], ["numbers"], to=FLOAT),
            helper.make_node("Transpose", ["numbers"], ["rows"]),
            helper.make_node("MatMul", ["rows", "w"], ["score"]),
        ],
        {"dense": (FLOAT, ["n", 4])},
        {"score": ["n", 1]},
        {"w": weights(2, 1)},
    )
