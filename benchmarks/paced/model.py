"""PACED: computes nothing. Waits what a table says that a batch takes, and answers zeros of the right shape.

For benchmarks of scheduling only. Runs inside tritonserver, in the server's own Python: nothing of the project can be
imported here. Triton gives an instance one batch at a time; with one instance this is an accelerator with one slot.
The wait sleeps, so it leaves the cores to others; it never ends early, and late by the timer's slack of 50 us and by
what a busy machine takes to wake it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

PACE = "pace.json"


class TritonPythonModel:
    """One instance of one model; Triton calls its methods."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the table beside this file; a model that is not labelled as paced is refused."""
        config = json.loads(args["model_config"])
        if config["parameters"].get("paced", {}).get("string_value") != "true":
            raise ValueError('a paced model has the parameter paced: "true"')
        pace = json.loads(Path(args["model_repository"], args["model_version"], PACE).read_text("utf-8"))
        self._batch_sizes, self._seconds = pace["batch_sizes"], pace["seconds"]
        self._input = config["input"][0]["name"]
        self._outputs = {
            each["name"]: (each["dims"], pb_utils.triton_string_to_numpy(each["data_type"]))
            for each in config["output"]
        }

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Wait once for all requests, as one batch on an accelerator would, and answer zeros."""
        begun_s = time.monotonic()
        sizes = [
            len(pb_utils.get_input_tensor_by_name(request, self._input).as_numpy()) for request in requests
        ]
        until_s = begun_s + float(np.interp(sum(sizes), self._batch_sizes, self._seconds))
        responses = [self._zeros(request, size) for request, size in zip(requests, sizes, strict=True)]
        while (left_s := until_s - time.monotonic()) > 0:
            time.sleep(left_s)
        return responses

    def _zeros(self, request: Any, size: int) -> Any:
        asked = {name: self._outputs[name] for name in request.requested_output_names()}
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(name, np.zeros((size, *dims), dtype))
                for name, (dims, dtype) in sorted(asked.items())
            ]
        )
