"""What an operator is for is told by what flows through it."""

from __future__ import annotations

import pytest
from onnx import ModelProto, helper

from services.characterise.dataflow import Dataflow, Part
from tests.services.characterise import graphs

E, M, A, R, O = Part.EMBEDDING, Part.MLP, Part.ATTENTION, Part.RECURRENCE, Part.OTHER  # noqa: E741


def parts(model: ModelProto) -> list[Part]:
    return Dataflow(model.graph).parts()


def test_look_ups_their_ids_and_their_pooling_are_embedding_and_layers_with_their_activations_mlp() -> None:
    assert parts(graphs.bags()) == [E, E, E, O, M, M, M, M]


def test_products_of_activations_and_what_lies_between_and_feeds_only_them_are_attention() -> None:
    assert parts(graphs.attention()) == [A, A, A, A, A, O, M, M]


def test_a_recurrent_operator_is_recurrence_also_when_it_is_a_scan_or_a_loop() -> None:
    assert parts(graphs.gru())[1] is R
    assert parts(graphs.scan())[1] is R
    assert parts(graphs.loop()) == [R]


def test_weights_that_are_used_again_on_their_own_result_are_an_unrolled_recurrence() -> None:
    found = parts(graphs.unrolled())  # the last step's tanh goes to no further step
    assert found == [A, R, R, R, R, R, R, R, O, M]


def test_the_same_weights_for_two_towers_are_no_recurrence() -> None:
    towers = graphs.model(
        [
            helper.make_node("MatMul", ["left", "w"], ["a"]),
            helper.make_node("MatMul", ["right", "w"], ["b"]),
            helper.make_node("Concat", ["a", "b"], ["both"], axis=1),
        ],
        {"left": (graphs.FLOAT, ["n", 4]), "right": (graphs.FLOAT, ["n", 4])},
        {"both": ["n", 4]},
        {"w": graphs.weights(4, 2)},
    )
    assert parts(towers) == [M, M, O]


def test_layers_below_a_single_product_of_activations_stay_mlp() -> None:
    towers = graphs.model(
        [
            helper.make_node("MatMul", ["left", "w"], ["a"]),
            helper.make_node("MatMul", ["right", "v"], ["b"]),
            helper.make_node("Transpose", ["b"], ["turned"]),
            helper.make_node("MatMul", ["a", "turned"], ["similarity"]),
        ],
        {"left": (graphs.FLOAT, ["n", 4]), "right": (graphs.FLOAT, ["n", 4])},
        {"similarity": ["n", "n"]},
        {"w": graphs.weights(4, 2), "v": graphs.weights(4, 2)},
    )
    assert parts(towers) == [M, M, A, A]


@pytest.mark.parametrize("index", ["constant", "data"])
def test_a_gather_is_a_look_up_only_with_ids_in_a_constant_table(index: str) -> None:
    inputs = {"ids": (graphs.INT32, ["n"]), "data": (graphs.FLOAT, ["n", 3])}
    source, ids = ("data", "ids") if index == "data" else ("table", "first")
    gather = graphs.model(
        [
            helper.make_node("Gather", [source, ids], ["rows"]),
            helper.make_node("MatMul", ["data", "table"], ["score"]),
        ],
        inputs,
        {"rows": ["m", 3], "score": ["n", 3]},
        {"table": graphs.weights(3, 3), "first": graphs.np.array([0], graphs.np.int32)},
    )
    assert parts(gather)[0] is O


def test_a_loop_that_only_sums_rows_is_embedding_as_torch_exports_bags() -> None:
    body = helper.make_graph(
        [
            helper.make_node("Gather", ["ids", "trip"], ["id"], axis=1),
            helper.make_node("Gather", ["table", "id"], ["row"]),
            helper.make_node("Add", ["sum", "row"], ["sum_out"]),
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("trip", graphs.TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", graphs.TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", graphs.FLOAT, ["n", 3]),
        ],
        [
            helper.make_tensor_value_info("go_on_out", graphs.TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_out", graphs.FLOAT, ["n", 3]),
        ],
    )
    bag = graphs.model(
        [helper.make_node("Loop", ["trips", "true", "zero"], ["pooled"], body=body)],
        {"ids": (graphs.INT32, ["n", 2]), "zero": (graphs.FLOAT, ["n", 3])},
        {"pooled": ["n", 3]},
        {
            "table": graphs.weights(9, 3),
            "trips": graphs.np.array(2),
            "true": graphs.np.array(True),
        },
    )
    assert parts(bag) == [E]
