"""A model's ``config.pbtxt``, in Triton's own message and written by protobuf's own text format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from services.models.spec import DENSE_INPUT, SCORE_OUTPUT, ModelSpec, TableGroup

CONFIG_FILE = "config.pbtxt"
HEADER = "# Written by `deeprecsys export`. See parameters for what the server reads beside Triton.\n"


@dataclass(frozen=True)
class GpuSettings:
    """What a configuration for one kind of GPU adds: instances on each GPU, and how ONNX Runtime uses it.

    ``tensorrt`` builds engines when the model is loaded, in FP32 as everywhere; ``cuda_graphs`` works within it.
    """

    instances: int = 1
    tensorrt: bool = False
    cuda_graphs: bool = False


def config_text(spec: ModelSpec, gpu: GpuSettings | None = None) -> str:
    """Return the text of ``spec``'s ``config.pbtxt``; the same arguments give the same bytes.

    dims have no axis of candidates. Without ``gpu`` no kind of instance is asked for, so that the model loads with a
    GPU and without one.

    Requests share batches, but there is no queue policy: with any (a size, a timeout, or leave to override it) Triton
    2.51 forgets to wake its batcher, and requests wait for the next one or for half a second. Two clients that ask in
    turn get a tenth of the throughput. So who offloads bounds what is in flight and cancels what is late.
    """
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
        dynamic_batching=pb.ModelDynamicBatching(),
        instance_group=[_instances(gpu)],
        model_warmup=[_warmup(spec)],
        parameters={name: pb.ModelParameter(string_value=value) for name, value in parameters(spec).items()},
    )
    if gpu is not None and gpu.tensorrt:
        config.optimization.execution_accelerators.gpu_execution_accelerator.append(_tensorrt(gpu))
    return HEADER + text_format.MessageToString(config)


def _instances(gpu: GpuSettings | None) -> pb.ModelInstanceGroup:
    if gpu is None:
        return pb.ModelInstanceGroup(count=1)
    return pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_GPU, count=gpu.instances)


def _tensorrt(gpu: GpuSettings) -> pb.ModelOptimizationPolicy.ExecutionAccelerators.Accelerator:
    settings = {"precision_mode": "FP32"}
    if gpu.cuda_graphs:
        settings["trt_cuda_graph_enable"] = "1"
    return pb.ModelOptimizationPolicy.ExecutionAccelerators.Accelerator(name="tensorrt", parameters=settings)


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
