"""Triton's backend `onnxruntime`, on the CPU: what a Python-based backend of that name runs for each model.

It stands in for NVIDIA's backend of the same name, which the wheel has not, so that one config.pbtxt serves both.
Runs inside tritonserver, in the server's own Python: nothing of the project can be imported here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

_FAULTS: tuple[type[Exception], ...] = (
    RuntimeError,
    *(kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
"""What ONNX Runtime raises: its own classes have no common one."""


class TritonPythonModel:
    """One instance of one model; Triton calls its methods."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the version's ONNX file; what ONNX Runtime raises becomes the reason that the load failed."""
        config = json.loads(args["model_config"])
        file = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"], args["model_version"], file)
        self._session = ort.InferenceSession(str(path), _options(config), providers=["CPUExecutionProvider"])
        self._inputs = [port.name for port in self._session.get_inputs()]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests by one run; if that fails, each by a run of its own, so that only the guilty fails."""
        try:
            return self._answer(requests)
        except _FAULTS as fault:
            if len(requests) == 1:
                return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(fault)))]
            return [response for request in requests for response in self.execute([request])]

    def _answer(self, requests: Sequence[Any]) -> list[Any]:
        names = sorted({name for request in requests for name in request.requested_output_names()})
        parts = {name: [_array(request, name) for request in requests] for name in self._inputs}
        joined = {
            name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for name, arrays in parts.items()
        }
        outputs = dict(zip(names, self._session.run(names, joined), strict=True))
        ends = np.cumsum([len(array) for array in parts[self._inputs[0]]])
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, array[end - len(first) : end])
                    for name, array in outputs.items()
                    if name in request.requested_output_names()
                ]
            )
            for request, first, end in zip(requests, parts[self._inputs[0]], ends, strict=True)
        ]


def _array(request: Any, name: str) -> Any:
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()


def _options(config: Mapping[str, Any]) -> ort.SessionOptions:
    """Read the threads as NVIDIA's backend does; no spinning, since the project's own workers share the cores."""
    threads = config["parameters"].get("intra_op_thread_count", {"string_value": "0"})
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(threads["string_value"])
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
