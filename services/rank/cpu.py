"""The CPU engine: one ONNX Runtime session per model, shared by every worker thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from deeprecsys.errors import RepositoryError
from deeprecsys.tensors import Array
from services.rank.engine import EngineError
from services.rank.repository import Port, Ports

_DTYPES: Mapping[str, np.dtype[np.generic]] = {
    "tensor(bool)": np.dtype("?"),
    "tensor(uint8)": np.dtype("u1"),
    "tensor(uint16)": np.dtype("<u2"),
    "tensor(uint32)": np.dtype("<u4"),
    "tensor(uint64)": np.dtype("<u8"),
    "tensor(int8)": np.dtype("i1"),
    "tensor(int16)": np.dtype("<i2"),
    "tensor(int32)": np.dtype("<i4"),
    "tensor(int64)": np.dtype("<i8"),
    "tensor(float16)": np.dtype("<f2"),
    "tensor(float)": np.dtype("<f4"),
    "tensor(double)": np.dtype("<f8"),
}
FAULTS = (
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.ModelLoaded,
    ort_errors.ModelRequiresCompilation,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotFound,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,  # what ONNX Runtime raises where it has no class of its own
)
"""What ONNX Runtime raises: its classes have no common one."""


def session_options() -> ort.SessionOptions:
    """Return the options of every session here: one thread that never spins, one node after another."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4
    return options


class CpuEngine:
    """Runs one model on ONNX Runtime; RepositoryError when the file cannot be opened.

    One intra-op thread: parallelism is across batches (paper: request-level parallelism), and several pools would
    steal each other's cores. Opened by path, so that external data is mapped and held once.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise RepositoryError(f"{path.parent.name}/{path.name} is missing; run `deeprecsys export`")
        try:
            self._session = ort.InferenceSession(path, session_options(), providers=["CPUExecutionProvider"])
        except FAULTS as error:
            # The text may go to clients: it names the file, not where the repository lies.
            reason = _first_line(error).replace(f"{path.parent.parent}/", "").replace(str(path), path.name)
            raise RepositoryError(f"{path.parent.name}/{path.name} cannot be opened: {reason}") from error

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Score one batch; see :class:`~services.rank.engine.Engine`."""
        try:
            return self._session.run(outputs, inputs)  # type: ignore[no-any-return]
        except FAULTS as error:
            raise EngineError(str(error)) from error

    def ports(self) -> Ports:
        """Return the inputs and outputs of the file."""
        return Ports(
            tuple(_port("input", node) for node in self._session.get_inputs()),
            tuple(_port("output", node) for node in self._session.get_outputs()),
        )


def _port(kind: str, node: ort.NodeArg) -> Port:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise RepositoryError(f'{kind} "{node.name}" of the ONNX file is {node.type}, which is not served')
    shape = tuple(axis if isinstance(axis, int) and axis >= 0 else -1 for axis in node.shape)
    return Port(node.name, dtype, shape)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
