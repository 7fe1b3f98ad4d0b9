"""The main job on real input: a client on a real socket, eight real ONNX models, heavy-tailed sizes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deeprecsys import AsyncRankClient
from services.loadgen.request_pool import random_inputs
from services.models.spec import SLUGS
from services.rank.cpu import CpuEngine

pytestmark = pytest.mark.slow
TIE = 2e-6


async def test_every_model_answers_concurrent_queries_with_the_scores_of_the_file_itself(
    eight, running
) -> None:
    """Whatever the batch size, the split and the neighbours, each query gets what one lone inference gives."""
    rng = np.random.default_rng(3)
    sizes = (1, 2, 9, 40, 130, 300)
    for batch_size in (3, 64):
        async with running(eight, batch_size=batch_size) as address, AsyncRankClient(address) as client:
            models = await client.models()
            assert sorted(m.name for m in models if m.ready) == sorted(SLUGS)
            queries = [(m, random_inputs(m, n, rng)) for n in sizes for m in models]
            answers = await asyncio.gather(*(client.rank(m.name, inputs) for m, inputs in queries))
        for (model, inputs), answer in zip(queries, answers, strict=True):
            size = len(answer.scores)
            (alone,) = CpuEngine(eight / model.name / "1" / "model.onnx").run(inputs, [model.score_output])
            np.testing.assert_allclose(answer.scores.reshape(size, -1), alone, atol=1e-6, err_msg=model.name)
            assert_same_ranking(answer.ranking, alone[:, 0])


def assert_same_ranking(ranking: np.ndarray, scores: np.ndarray) -> None:
    """The ranking is a permutation, and descending except among scores closer than rounding."""
    assert sorted(ranking.tolist()) == list(range(len(scores)))
    assert (np.diff(scores[ranking]) <= TIE).all()


async def test_the_users_side_sent_once_gives_the_scores_of_sending_it_per_candidate(eight, running) -> None:
    rng = np.random.default_rng(4)
    async with running(eight, batch_size=16) as address, AsyncRankClient(address) as client:
        for name in ("din", "dien"):
            model = await client.model(name)
            assert {i.name for i in model.inputs if i.user_side} == {"profile", "behaviours"}
            once = random_inputs(model, 50, rng, "shared")
            each = {k: np.repeat(v, 50, axis=0) if len(v) == 1 else v for k, v in once.items()}
            answers = [await client.rank(name, inputs) for inputs in (once, each)]
            np.testing.assert_allclose(answers[0].scores, answers[1].scores, atol=1e-6)


async def test_din_scores_are_class_1_of_its_softmax_and_mt_wnd_has_five_tasks(eight, running) -> None:
    rng = np.random.default_rng(5)
    async with running(eight) as address, AsyncRankClient(address) as client:
        for name in ("din", "dien"):
            inputs = random_inputs(await client.model(name), 8, rng)
            answer = await client.rank(name, inputs, outputs=["probabilities"])
            assert answer.outputs["probabilities"][:, 1].tolist() == answer.scores.tolist()
            np.testing.assert_allclose(answer.outputs["probabilities"].sum(axis=1), 1.0, atol=1e-5)
        model = await client.model("mt_wnd")
        inputs = random_inputs(model, 20, rng)
        by_task = [await client.rank("mt_wnd", inputs, task=task) for task in model.tasks]
    assert len(by_task) == 5
    for column, answer in enumerate(by_task):
        assert answer.scores.shape == (20, 5)
        assert answer.ranking.tolist() == np.argsort(-answer.scores[:, column], kind="stable").tolist()
    assert len({tuple(answer.ranking.tolist()) for answer in by_task}) == 5


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 70),
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    seed=st.integers(0, 2**31),
)
def test_scores_depend_on_nothing_but_the_candidate(eight: Path, running, batch_size, sizes, seed) -> None:
    rng = np.random.default_rng(seed)
    directory = eight.with_name("one_of_eight")
    directory.mkdir(exist_ok=True)
    link = directory / "wnd"
    if not link.exists():
        link.symlink_to(eight / "wnd")

    async def ask() -> None:
        async with running(directory, batch_size=batch_size) as address, AsyncRankClient(address) as client:
            model = await client.model("wnd")
            queries = [random_inputs(model, n, rng) for n in sizes]
            together = await asyncio.gather(*(client.rank("wnd", q) for q in queries))
            for query, answer in zip(queries, together, strict=True):
                order = rng.permutation(len(answer.scores))
                shuffled = await client.rank("wnd", {name: array[order] for name, array in query.items()})
                np.testing.assert_allclose(shuffled.scores, answer.scores[order], atol=1e-6)

    asyncio.run(ask())
