from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from services.models.spec import SLUGS, spec_for
from services.models.triton_config import config_text

COMMITTED = Path(__file__).parents[3] / "model_repository"


def parsed(slug: str, **overrides: object) -> pb.ModelConfig:
    return text_format.Parse(config_text(spec_for(slug, **overrides)), pb.ModelConfig())


@pytest.mark.parametrize("slug", SLUGS)
def test_the_committed_config_is_what_the_laptop_spec_generates(slug: str) -> None:
    committed = (COMMITTED / slug / "config.pbtxt").read_text(encoding="utf-8")
    assert committed == config_text(spec_for(slug, "laptop"))


@pytest.mark.parametrize("slug", SLUGS)
def test_a_config_names_the_model_its_tensors_and_no_kind_of_device(slug: str) -> None:
    config, spec = parsed(slug), spec_for(slug)
    assert (config.name, config.platform, config.max_batch_size) == (slug, "onnxruntime_onnx", 4096)
    assert {i.name: tuple(i.dims) for i in config.input} == spec.inputs
    assert [o.name for o in config.output] == list(spec.outputs)
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_AUTO
    assert config.instance_group[0].count == 1


@pytest.mark.parametrize("slug", SLUGS)
def test_requests_share_batches_without_a_queue_policy(slug: str) -> None:
    """With a policy Triton holds requests back: tests/triton/test_eight_models.py has it on the real server."""
    config = parsed(slug)
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching == pb.ModelDynamicBatching()


@pytest.mark.parametrize("slug", SLUGS)
def test_the_warm_up_feeds_every_input(slug: str) -> None:
    config = parsed(slug)
    (sample,) = config.model_warmup
    assert {name: tuple(i.dims) for name, i in sample.inputs.items()} == {
        i.name: tuple(i.dims) for i in config.input
    }


def test_parameters_tell_the_server_rows_sides_and_tasks() -> None:
    ncf, din, mt_wnd = (
        {k: v.string_value for k, v in parsed(s).parameters.items()} for s in ("ncf", "din", "mt_wnd")
    )
    assert ncf == {
        "id_rows.ids": "140000,140000,28000,28000",
        "intra_op_thread_count": "1",
        "score_output": "score",
        "sla_ms": "5",
        "sla_percentile": "95",
    }
    assert din["id_rows.behaviours"] == "8192"
    assert din["user_inputs"] == "profile,behaviours"
    assert mt_wnd["tasks"] == "click,watch,like,share,follow"
    assert mt_wnd["id_rows.ids"] == ",".join(41 * ["32768"] + 2 * ["131072"])


@pytest.mark.parametrize(
    ("number", "text"), [(2.5, "2.5"), (25, "25"), (25.0, "25"), (99.99999, "99.99999"), (0.001, "0.001")]
)
def test_a_target_survives_to_its_last_digit(number: float, text: str) -> None:
    found = parsed("ncf", sla_ms=number, sla_percentile=number).parameters
    assert found["sla_ms"].string_value == found["sla_percentile"].string_value == text
