"""The repository for GPUs: the same files, other configurations, by a flag of `export`."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb
from typer.testing import CliRunner

from deeprecsys.errors import InvalidSettingError
from services.cli.app import app
from services.models.export import Exported
from services.models.gpu_repository import write_gpu_repository
from services.models.spec import spec_for
from services.models.triton_config import GpuSettings, config_text

NCF = spec_for("ncf", "tiny")


def parsed(text: str) -> pb.ModelConfig:
    return text_format.Parse(text, pb.ModelConfig())


def test_a_gpu_configuration_differs_in_its_instances_and_acceleration_only() -> None:
    plain, gpu = parsed(config_text(NCF)), parsed(config_text(NCF, GpuSettings(2, True, True)))
    (group,) = gpu.instance_group
    assert (group.kind, group.count) == (pb.ModelInstanceGroup.KIND_GPU, 2)
    (accelerator,) = gpu.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {"precision_mode": "FP32", "trt_cuda_graph_enable": "1"}
    for config in (plain, gpu):
        config.ClearField("instance_group")
        config.ClearField("optimization")
    assert plain == gpu


def test_without_tensorrt_nothing_is_said_of_acceleration() -> None:
    assert not parsed(config_text(NCF, GpuSettings(3))).HasField("optimization")


def test_the_files_are_linked_the_version_is_left_alone_and_the_configuration_follows_the_flags(
    exported: Mapping[str, Exported], tmp_path: Path
) -> None:
    repository, place = exported["ncf"].path.parents[1], tmp_path / "gpu"
    for instances in (1, 4):
        write_gpu_repository([NCF], 1, repository, place, GpuSettings(instances))
        assert parsed((place / "ncf" / "config.pbtxt").read_text()).instance_group[0].count == instances
    assert (place / "ncf" / "1" / "model.onnx").samefile(exported["ncf"].path / "model.onnx")
    assert sorted(path.name for path in place.rglob("*")) == ["1", "config.pbtxt", "model.onnx", "ncf"]


def test_files_of_another_file_system_are_copied(
    exported: Mapping[str, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_device(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_device)
    write_gpu_repository([NCF], 1, exported["ncf"].path.parents[1], tmp_path, GpuSettings())
    copied, original = tmp_path / "ncf" / "1" / "model.onnx", exported["ncf"].path / "model.onnx"
    assert copied.read_bytes() == original.read_bytes()
    assert not copied.samefile(original)


@pytest.mark.parametrize("gpu", [GpuSettings(0), GpuSettings(65), GpuSettings(cuda_graphs=True)])
def test_settings_that_cannot_work_write_nothing(gpu: GpuSettings, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError):
        write_gpu_repository([NCF], 1, tmp_path / "models", tmp_path / "gpu", gpu)
    assert not (tmp_path / "gpu").exists()


def test_the_ordinary_repository_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="another directory"):
        write_gpu_repository([NCF], 1, tmp_path, tmp_path / "." / "", GpuSettings())


def test_the_command_writes_both(exported: Mapping[str, Exported], tmp_path: Path) -> None:
    repository, place = exported["ncf"].path.parents[1], tmp_path / "gpu"
    source = ["export", "ncf", "--scale", "tiny", "--seed", "3", "--repository", str(repository)]
    outcome = CliRunner().invoke(
        app, [*source, "--gpu-repository", str(place), "--gpu-instances", "2", "--tensorrt"]
    )
    assert outcome.exit_code == 0, outcome.output
    assert parsed((place / "ncf" / "config.pbtxt").read_text()) == parsed(
        config_text(NCF, GpuSettings(2, True))
    )


def test_the_command_refuses_gpu_settings_without_a_place_for_them() -> None:
    outcome = CliRunner().invoke(app, ["export", "ncf", "--tensorrt"])
    assert isinstance(outcome.exception, InvalidSettingError)
    assert "--gpu-repository" in str(outcome.exception)
