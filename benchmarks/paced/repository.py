"""A repository of PACED models, from exported configurations and a modelled accelerator."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from scheduler.latency import BackendProfile
from services.models.triton_config import CONFIG_FILE

MODEL = Path(__file__).with_name("model.py")
PACE_FILE = "pace.json"
HEADER = (
    "# PACED: waits as long as a modelled accelerator would take and scores nothing. For benchmarks only.\n"
)


def write_paced(exported: Path, place: Path, accelerator: BackendProfile) -> None:
    """Write ``place/<name>``: the same inputs, outputs and versions as the exported model directory, but waiting.

    ``accelerator`` gives the seconds; it must be modelled, since what was measured needs no stand-in. Raises ValueError
    for one that is not, and for a configuration whose outputs have a free axis or are not named.
    """
    if not accelerator.modelled:
        raise ValueError(
            f"{accelerator.name} was measured: a paced model stands in for a modelled accelerator"
        )
    config = text_format.Parse((exported / CONFIG_FILE).read_text(encoding="utf-8"), pb.ModelConfig())
    named = config.input and config.output
    if not named or any(size < 1 for output in config.output for size in output.dims):
        raise ValueError(f"{exported}/{CONFIG_FILE} must name inputs and outputs, these with fixed axes")
    target = place / exported.name
    target.mkdir(parents=True)
    (target / CONFIG_FILE).write_text(HEADER + text_format.MessageToString(paced_config(config)), "utf-8")
    pace = json.dumps(pace_table(accelerator, max(1, config.max_batch_size)))
    for version in (each for each in exported.iterdir() if each.name.isdigit()):
        (target / version.name).mkdir()
        shutil.copy(MODEL, target / version.name)
        (target / version.name / PACE_FILE).write_text(pace, encoding="utf-8")


def paced_config(config: pb.ModelConfig) -> pb.ModelConfig:
    """Return the configuration of the paced model: same tensors and batching, one instance, labelled."""
    paced = pb.ModelConfig()
    paced.CopyFrom(config)
    for field in ("platform", "default_model_filename", "optimization", "instance_group", "model_warmup"):
        paced.ClearField(field)
    paced.backend = "python"
    paced.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    paced.parameters["paced"].string_value = "true"
    return paced


def pace_table(accelerator: BackendProfile, largest: int) -> dict[str, list[float]]:
    """Return ``batch_sizes`` and ``seconds``; straight lines between them are the accelerator's mean seconds.

    The outer line goes on up to ``largest``, the largest batch that Triton may form.
    """
    points = {point.batch_size for point in accelerator.alone.points}
    sizes = sorted({n for n in points if n <= largest} | {1, largest})
    return {"batch_sizes": [*sizes], "seconds": [accelerator.alone.mean_s(n) for n in sizes]}
