"""PACED models: what is written for Triton, without a server."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from benchmarks.offload.accelerators import modelled_gpu
from benchmarks.paced.repository import pace_table, write_paced
from benchmarks.simulated_case import DATA, load_profile
from services.models.spec import SLUGS

EXPORTED = Path(__file__).parents[2] / "model_repository"


def config(directory: Path) -> pb.ModelConfig:
    return text_format.Parse((directory / "config.pbtxt").read_text(), pb.ModelConfig())


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A model directory as an export leaves it, its ONNX file empty: nothing here reads it."""
    directory = tmp_path / "exported" / "wnd"
    (directory / "3").mkdir(parents=True)
    (directory / "3" / "model.onnx").touch()
    (directory / "config.pbtxt").write_text((EXPORTED / "wnd" / "config.pbtxt").read_text())
    return directory


def test_a_paced_model_differs_from_the_exported_one_in_what_runs_it_and_says_so(
    exported: Path, tmp_path: Path
) -> None:
    write_paced(exported, tmp_path / "paced", modelled_gpu("wnd"))
    paced, before = config(tmp_path / "paced" / "wnd"), config(exported)
    for field in ("name", "max_batch_size", "input", "output", "dynamic_batching"):
        assert getattr(paced, field) == getattr(before, field), field
    assert (paced.backend, paced.platform) == ("python", "")
    assert [(group.count, group.kind) for group in paced.instance_group] == [
        (1, pb.ModelInstanceGroup.KIND_CPU)
    ]
    assert paced.parameters["paced"].string_value == "true"
    assert "PACED" in (tmp_path / "paced" / "wnd" / "config.pbtxt").read_text().splitlines()[0]
    assert {file.name for file in (tmp_path / "paced" / "wnd" / "3").iterdir()} == {"model.py", "pace.json"}
    table = json.loads((tmp_path / "paced" / "wnd" / "3" / "pace.json").read_text())
    assert table == pace_table(modelled_gpu("wnd"), before.max_batch_size)


@pytest.mark.parametrize("model", SLUGS)
def test_between_its_entries_and_beyond_the_profile_the_table_is_the_modelled_accelerator(model: str) -> None:
    device = modelled_gpu(model)
    table = pace_table(device, 4096)
    sizes = [1, 3, 100, 700, 1024, 2000, 4096]
    waits_s = np.interp(sizes, table["batch_sizes"], table["seconds"])
    np.testing.assert_allclose(waits_s, [device.alone.mean_s(n) for n in sizes])
    assert (table["batch_sizes"][0], table["batch_sizes"][-1]) == (1, 4096)
    assert np.all(np.diff(table["seconds"]) >= 0)


def test_the_table_ends_at_the_largest_batch_that_the_model_takes() -> None:
    assert pace_table(modelled_gpu("wnd"), 100)["batch_sizes"][-2:] == [64, 100]


def test_what_was_measured_gets_no_stand_in(exported: Path, tmp_path: Path) -> None:
    measured = load_profile(DATA / "profiles", "wnd").backend("cpu")
    with pytest.raises(ValueError, match="cpu was measured"):
        write_paced(exported, tmp_path / "paced", measured)
    write_paced(exported, tmp_path / "paced", dataclasses.replace(measured, modelled=True))


@pytest.mark.parametrize("output", ["", 'output { name: "score" data_type: TYPE_FP32 dims: -1 }'])
def test_a_configuration_that_does_not_say_what_zeros_to_answer_is_refused(
    exported: Path, tmp_path: Path, output: str
) -> None:
    dense = 'input { name: "dense" data_type: TYPE_FP32 dims: 512 }'
    (exported / "config.pbtxt").write_text(f"max_batch_size: 8 {dense} {output}")
    with pytest.raises(ValueError, match="must name inputs and outputs"):
        write_paced(exported, tmp_path / "paced", modelled_gpu("wnd"))
