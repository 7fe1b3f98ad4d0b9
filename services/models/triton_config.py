"""A model's ``config.pbtxt``, in Triton's own message and written by protobuf's own text format."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from services.models.spec import DENSE_INPUT, SCORE_OUTPUT, ModelSpec, TableGroup

CONFIG_FILE = "config.pbtxt"
MAX_QUEUED_REQUESTS = 128  # bounded: a full queue is an answer, not a delay
HEADER = "# Written by `deeprecsys export`. See parameters for what the server reads beside Triton.\n"


def config_text(spec: ModelSpec) -> str:
    """Return the text of ``spec``'s ``config.pbtxt``; the same spec gives the same bytes.

    dims have no axis of candidates. No kind of instance is asked for, so that the model loads with a GPU and
    without one. A request waits in Triton's queue for as long as the SLA and is then rejected; the client's
    own timeout overrides that.
    """
    dynamic_batching = pb.ModelDynamicBatching(
        default_queue_policy=pb.ModelQueuePolicy(
            timeout_action=pb.ModelQueuePolicy.REJECT,
            default_timeout_microseconds=round(spec.sla_ms * 1000),
            allow_timeout_override=True,
            max_queue_size=MAX_QUEUED_REQUESTS,
        )
    )
    config = pb.ModelConfig(
        name=spec.slug,
        platform="onnxruntime_onnx",
        max_batch_size=spec.max_batch_size,
        input=[
            pb.ModelInput(name=name, data_type=_data_type(name), dims=dims)
            for name, dims in spec.inputs.items()
        ],
        output=[
            pb.ModelOutput(name=name, data_type=pb.TYPE_FP32, dims=dims)
            for name, dims in spec.outputs.items()
        ],
        dynamic_batching=dynamic_batching,
        instance_group=[pb.ModelInstanceGroup(count=1)],
        model_warmup=[_warmup(spec)],
        parameters={name: pb.ModelParameter(string_value=value) for name, value in parameters(spec).items()},
    )
    return HEADER + text_format.MessageToString(config)


def parameters(spec: ModelSpec) -> Mapping[str, str]:
    """Return the config's parameters: what the server reads beside Triton's own fields.

    ``id_rows.<input>`` is how many rows an id may name: one number, or one for each index of the input's
    second axis.
    """
    found = {
        "sla_percentile": str(spec.sla_percentile).removesuffix(".0"),
        "sla_ms": str(spec.sla_ms).removesuffix(".0"),
        "score_output": SCORE_OUTPUT,
        "intra_op_thread_count": "1",
    }
    found |= {f"id_rows.{group.input}": _id_rows(group) for group in spec.groups}
    if spec.user_inputs:
        found["user_inputs"] = ",".join(spec.user_inputs)
    if spec.tasks:
        found["tasks"] = ",".join(spec.tasks)
    return dict(sorted(found.items()))


def _id_rows(group: TableGroup) -> str:
    rows = group.rows if len(set(group.rows)) > 1 else group.rows[:1]
    return ",".join(str(count) for count in rows)


def _data_type(name: str) -> int:
    return int(pb.TYPE_FP32 if name == DENSE_INPUT else pb.TYPE_INT32)


def _warmup(spec: ModelSpec) -> pb.ModelWarmup:
    inputs = {
        name: pb.ModelWarmup.Input(data_type=_data_type(name), dims=dims, zero_data=True)
        for name, dims in spec.inputs.items()
    }
    return pb.ModelWarmup(name="one_candidate", batch_size=1, inputs=inputs)
