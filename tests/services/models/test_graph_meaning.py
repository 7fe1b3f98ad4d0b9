"""The exported graphs against independent numpy models that read only the weights out of the ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from services.models.candidates import random_candidates
from services.models.export import Exported, export
from services.models.parity import onnx_scorer
from services.models.spec import spec_for

Array = NDArray[np.float64]


def weights_of(path: Path) -> dict[str, Array]:
    graph = onnx.load(path).graph
    return {i.name: numpy_helper.to_array(i).astype(np.float64) for i in graph.initializer}


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array, axis: int) -> Array:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def mlp(x: Array, weights: dict[str, Array], name: str, layers: int, *, relu_last: bool) -> Array:
    for i in range(layers):
        x = x @ weights[f"{name}.layers.{i}.weight"].T + weights[f"{name}.layers.{i}.bias"]
        x = relu(x) if relu_last or i < layers - 1 else x
    return x


def pairwise(vectors: list[Array]) -> Array:
    pairs = [(i, j) for i in range(len(vectors)) for j in range(i)]
    return np.stack([(vectors[i] * vectors[j]).sum(1) for i, j in pairs], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("interaction", ["concat", "dot"])
def test_dlrm_is_pooled_tables_beside_a_bottom_mlp(interaction: str, tmp_path: Path) -> None:
    overrides = {"interaction": interaction, "ids_rows": (50, 60, 70), "ids_lookups": 20}
    (found,) = export(["rmc1"], tmp_path, "tiny", overrides=overrides)
    path = found.path / "model.onnx"
    weights = weights_of(path)
    inputs = random_candidates(spec_for("rmc1", "tiny", **overrides), 11, np.random.default_rng(5))
    bottom = mlp(inputs["dense"].astype(np.float64), weights, "bottom", 2, relu_last=True)
    pooled = [weights[f"tables.ids.weights.{t}"][inputs["ids"][:, t]].sum(1) for t in range(3)]
    crossed = np.concatenate(pooled, axis=1) if interaction == "concat" else pairwise([bottom, *pooled])
    wanted = sigmoid(mlp(np.concatenate([bottom, crossed], axis=1), weights, "top", 3, relu_last=False))
    np.testing.assert_allclose(onnx_scorer(path)(inputs)["score"], wanted, atol=1e-5)


@pytest.mark.slow
def test_din_weighs_each_behaviour_by_its_activation_unit(exported: dict[str, Exported]) -> None:
    path, spec = exported["din"].path / "model.onnx", spec_for("din", "tiny")
    weights = weights_of(path)
    inputs = random_candidates(spec, 6, np.random.default_rng(6))

    def bag(name: str) -> Array:
        return weights[f"tables.{name}.weights.0"][inputs[name]].sum(1)

    ad = bag("ad")
    first = np.concatenate([weights[f"attention.{part}"] for part in ("behaviour", "ad", "product")])
    interest = np.zeros_like(ad)
    for table in range(251):
        rows = table * 50 + inputs["behaviours"][:, table]
        e = weights["tables.behaviours.weights.0"][rows].sum(1)
        hidden = relu(np.concatenate([e, ad, e * ad], axis=1) @ first + weights["attention.bias"])
        interest += (hidden @ weights["attention.out"]) * e
    features = np.concatenate([bag("profile"), interest, ad, bag("context")], axis=1)
    wanted = softmax(mlp(features, weights, "top", 3, relu_last=False), 1)
    np.testing.assert_allclose(onnx_scorer(path)(inputs)["probabilities"], wanted, atol=1e-5)


def test_ncf_multiplies_two_vectors_beside_an_mlp_over_two_others(exported: dict[str, Exported]) -> None:
    path = exported["ncf"].path / "model.onnx"
    weights = weights_of(path)
    inputs = random_candidates(spec_for("ncf", "tiny"), 8, np.random.default_rng(7))
    rows = inputs["ids"] + np.array([0, 300, 600, 660])
    mf_user, mf_item, mlp_user, mlp_item = (weights["tables.ids.weights.0"][rows[:, c]] for c in range(4))
    deep = mlp(np.concatenate([mlp_user, mlp_item], axis=1), weights, "mlp", 3, relu_last=True)
    both = np.concatenate([mf_user * mf_item, deep], axis=1)
    wanted = sigmoid(both @ weights["final.weight"].T + weights["final.bias"])
    np.testing.assert_allclose(onnx_scorer(path)(inputs)["score"], wanted, atol=1e-5)


@pytest.mark.slow
def test_dien_runs_a_gru_and_then_one_gated_by_attention(exported: dict[str, Exported]) -> None:
    import torch

    from services.models.build import build

    spec = spec_for("dien", "tiny")
    weights = {k: v.double().numpy() for k, v in build(spec, 3).state_dict().items()}
    inputs = random_candidates(spec, 6, np.random.default_rng(8))
    sequence = [
        weights["tables.behaviours.weights.0"][200 * t + inputs["behaviours"][:, t]] for t in range(3)
    ]
    ad = weights["tables.ad.weights.0"][inputs["ad"][:, 0]]
    state, interests = np.zeros((6, 64)), []
    for e in sequence:
        x = e @ weights["extractor.weight_ih_l0"].T + weights["extractor.bias_ih_l0"]
        h = state @ weights["extractor.weight_hh_l0"].T + weights["extractor.bias_hh_l0"]
        reset, keep = sigmoid(x[:, :64] + h[:, :64]), sigmoid(x[:, 64:128] + h[:, 64:128])
        state = (1 - keep) * np.tanh(x[:, 128:] + reset * h[:, 128:]) + keep * state
        interests.append(state)
    relevance = np.stack([(h * (ad @ weights["relevance"])).sum(1) for h in interests], axis=1)
    attention, state = softmax(relevance, 1), np.zeros((6, 64))
    for step, h in enumerate(interests):
        gates = sigmoid(h @ weights["evolution.input_gates"] + state @ weights["evolution.state_gates"])
        update = attention[:, step : step + 1] * gates[:, 64:]
        proposal = (
            h @ weights["evolution.input_proposal"]
            + (gates[:, :64] * state) @ weights["evolution.state_proposal"]
        )
        state = (1 - update) * state + update * np.tanh(proposal)
    one = {name: weights[f"tables.{name}.weights.0"][inputs[name][:, 0]] for name in ("profile", "context")}
    features = np.concatenate([state, one["profile"], ad, one["context"]], axis=1)
    wanted = softmax(mlp(features, weights, "top", 3, relu_last=False), 1)
    found = onnx_scorer(exported["dien"].path / "model.onnx")(inputs)["probabilities"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert torch.get_default_dtype() == torch.float32
