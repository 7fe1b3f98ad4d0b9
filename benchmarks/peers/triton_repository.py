"""A repository of one model for Triton at a setting of the benchmark's choice; its versions are links."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2


@contextmanager
def triton_repository(model: Path, setting: Mapping[str, float]) -> Iterator[Path]:
    """Yield the repository; see ``contestants`` for the setting's keys."""
    config = text_format.Parse(
        (model / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig()
    )
    config.instance_group[0].count = int(setting["instances"])
    config.parameters["intra_op_thread_count"].string_value = str(int(setting["threads"]))
    if not setting["batching"]:
        config.ClearField("dynamic_batching")
    elif setting["delay_us"]:
        config.dynamic_batching.max_queue_delay_microseconds = int(setting["delay_us"])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / model.name
        place.mkdir()
        (place / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
        for version in model.iterdir():
            if version.is_dir():
                (place / version.name).symlink_to(version.resolve())
        yield Path(folder)
