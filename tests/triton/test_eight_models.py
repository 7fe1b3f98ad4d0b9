"""The committed repository is valid for Triton as it is: the real server scores the eight as ONNX Runtime does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient import grpc as triton_client
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from services.models.candidates import random_candidates
from services.models.export import Exported, export_one
from services.models.parity import onnx_scorer
from services.models.spec import SLUGS, ModelSpec, spec_for
from services.triton_server.process import TritonProcess

pytestmark = [pytest.mark.triton, pytest.mark.slow]
COMMITTED = Path(__file__).parents[2] / "model_repository"


def served_spec(slug: str) -> ModelSpec:
    """The model with few rows and the inputs of the committed configuration."""
    history = spec_for("dien", "laptop").group("behaviours").tables
    return spec_for(slug, "tiny", **({"behaviours_tables": history} if slug == "dien" else {}))


@pytest.fixture(scope="module")
def eight(exported: Mapping[str, Exported], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with few rows below the committed configurations."""
    place = tmp_path_factory.mktemp("committed")
    for slug in SLUGS:
        spec = served_spec(slug)
        folder = place / slug
        folder.mkdir()
        if spec == spec_for(slug, "tiny"):
            (folder / "1").symlink_to(exported[slug].path)
        else:
            export_one(spec, place)
        (folder / "config.pbtxt").write_bytes((COMMITTED / slug / "config.pbtxt").read_bytes())
    return place


@pytest.fixture(scope="module")
def server(launcher: Path, eight: Path):
    with TritonProcess(launcher, eight) as process:
        yield process


@pytest.fixture(scope="module")
def client(server: TritonProcess):
    with triton_client.InferenceServerClient(server.target) as client:
        yield client


def tensors(inputs: Mapping[str, np.ndarray]) -> list[triton_client.InferInput]:
    made = []
    for name, array in inputs.items():
        tensor = triton_client.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        made.append(tensor.set_data_from_numpy(array))
    return made


@pytest.mark.parametrize("slug", SLUGS)
def test_a_model_loads_in_explicit_mode_and_scores_as_onnx_runtime_does(client, eight, slug: str) -> None:
    client.load_model(slug, client_timeout=30)
    score = onnx_scorer(eight / slug / "1" / "model.onnx")
    for size in (1, 7, 300):
        inputs = random_candidates(served_spec(slug), size, np.random.default_rng(size))
        answer = client.infer(slug, tensors(inputs), client_timeout=30)
        for name, expected in score(inputs).items():
            found = answer.as_numpy(name)
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0, err_msg=name)
            # Wrong candidates would not pass: they differ by far more than the tolerance.
            assert size == 1 or np.abs(np.roll(found, 1, axis=0) - expected).max() > 1e-3


@pytest.mark.parametrize("slug", SLUGS)
def test_triton_takes_the_committed_configuration_as_it_is_written(client, server, slug: str) -> None:
    client.load_model(slug, client_timeout=30)
    served = client.get_model_config(slug, client_timeout=30).config
    written = text_format.Parse(
        (COMMITTED / slug / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig()
    )
    for field in ("name", "platform", "max_batch_size", "input", "output", "parameters", "model_warmup"):
        assert getattr(served, field) == getattr(written, field), field
    assert served.HasField("dynamic_batching")
    assert [(group.kind, group.count) for group in served.instance_group] == [
        (model_config_pb2.ModelInstanceGroup.KIND_CPU, written.instance_group[0].count)
    ]
    assert len(server.stub_pids(slug)) == written.instance_group[0].count


def test_more_candidates_than_a_batch_may_have_are_an_invalid_argument(client) -> None:
    client.load_model("ncf", client_timeout=30)
    inputs = random_candidates(spec_for("ncf", "tiny"), 4097, np.random.default_rng(0))
    with pytest.raises(InferenceServerException, match="batch-size must be <= 4096") as caught:
        client.infer("ncf", tensors(inputs), client_timeout=30)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_wrong_shape_and_an_unknown_model_are_told_apart(client) -> None:
    client.load_model("ncf", client_timeout=30)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("ncf", tensors({"ids": np.zeros((2, 5), np.int32)}), client_timeout=30)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException) as caught:
        client.infer("nobody", tensors({"ids": np.zeros((2, 4), np.int32)}), client_timeout=30)
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_no_request_is_held_back_for_half_a_second(client, server) -> None:
    """What Triton's batcher does where the configuration has a queue policy, within the first hundreds of requests."""
    client.load_model("ncf", client_timeout=30)
    inputs = tensors(random_candidates(spec_for("ncf", "tiny"), 3, np.random.default_rng(0)))

    def ask(_: int) -> float:
        with triton_client.InferenceServerClient(server.target) as own:
            return max(timed(lambda: own.infer("ncf", inputs, client_timeout=30)) for _ in range(1500))

    with ThreadPoolExecutor(3) as clients:
        assert max(clients.map(ask, range(3))) < 0.45


def timed(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started
