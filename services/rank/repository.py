"""The model repository: Triton's layout, read into ModelSpec.

``<repository>/<model>/config.pbtxt`` beside ``<version>/model.onnx``. The configuration is Triton's own message; what
it leaves out is read from the ONNX file, and what it says must agree with that file. The ``parameters`` that this
server adds: ``sla_percentile``, ``sla_ms``, ``id_rows.<input>``, ``user_inputs``, ``score_output``, ``tasks``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deeprecsys.errors import RepositoryError
from scheduler.measure import Sla
from services.rank.model import InputSpec, ModelSpec, OutputSpec

CONFIG_FILE = "config.pbtxt"
DEFAULT_SLA = Sla(percentile=95.0, seconds=0.1)
"""The target of a model whose configuration names none."""

_ONNX_BACKENDS = ("onnxruntime", "onnxruntime_onnx")
_DTYPES: Mapping[int, np.dtype[np.generic]] = {
    model_config_pb2.TYPE_BOOL: np.dtype("?"),
    model_config_pb2.TYPE_UINT8: np.dtype("u1"),
    model_config_pb2.TYPE_UINT16: np.dtype("<u2"),
    model_config_pb2.TYPE_UINT32: np.dtype("<u4"),
    model_config_pb2.TYPE_UINT64: np.dtype("<u8"),
    model_config_pb2.TYPE_INT8: np.dtype("i1"),
    model_config_pb2.TYPE_INT16: np.dtype("<i2"),
    model_config_pb2.TYPE_INT32: np.dtype("<i4"),
    model_config_pb2.TYPE_INT64: np.dtype("<i8"),
    model_config_pb2.TYPE_FP16: np.dtype("<f2"),
    model_config_pb2.TYPE_FP32: np.dtype("<f4"),
    model_config_pb2.TYPE_FP64: np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output as the ONNX file has it; ``shape`` includes axis 0, -1 is any length."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ports:
    """All inputs and outputs of an ONNX file."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """The versions of one model directory that should be served, best first."""

    name: str
    config: Any
    versions: tuple[str, ...]
    directory: Path

    def model_file(self, version: str) -> Path:
        """Return the path of one version's ONNX file."""
        return self.directory / version / (self.config.default_model_filename or "model.onnx")


def model_directories(repository: Path) -> list[Path]:
    """Return the model directories by name; RepositoryError when the repository itself cannot be read."""
    try:
        entries = sorted(repository.iterdir())
    except OSError as error:
        raise RepositoryError(f"model repository {repository}: {error.strerror}") from error
    return [entry for entry in entries if entry.is_dir() and _is_servable_name(entry.name)]


def _is_servable_name(name: str) -> bool:
    """Leave out hidden folders, and names that no message can carry."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not name.startswith(".")


def read_listing(directory: Path) -> Listing:
    """Read one model directory's configuration and choose its versions; RepositoryError says what is wrong."""
    config = _read_config(directory / CONFIG_FILE)
    if config.name and config.name != directory.name:
        raise RepositoryError(
            f'{CONFIG_FILE}: name "{config.name}" differs from the directory "{directory.name}"'
        )
    backend = config.backend or config.platform
    if backend and backend not in _ONNX_BACKENDS:
        raise RepositoryError(f'{CONFIG_FILE}: backend "{backend}" is not served here; use "onnxruntime"')
    present = sorted(
        (int(d.name) for d in directory.iterdir() if d.is_dir() and _is_number(d.name)), reverse=True
    )
    versions = _chosen_versions(config, [v for v in present if v > 0])
    if not versions:
        raise RepositoryError("no version directory such as 1/ with a model.onnx; run `deeprecsys export`")
    return Listing(directory.name, config, tuple(str(v) for v in versions), directory)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20 and str(int(text)) == text


def _read_config(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise RepositoryError(f"{CONFIG_FILE}: {reason}") from error
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(f"{CONFIG_FILE}: line {error}") from error


def _chosen_versions(config: Any, present: Sequence[int]) -> list[int]:
    """Apply Triton's version_policy to the versions present, newest first; the default is the newest one."""
    choice = config.version_policy.WhichOneof("policy_choice")
    if choice == "all":
        return list(present)
    if choice == "specific":
        return [v for v in present if v in set(config.version_policy.specific.versions)]
    return list(present[: config.version_policy.latest.num_versions or 1])


def build_spec(listing: Listing, version: str, ports: Ports) -> ModelSpec:
    """Join the configuration with what the ONNX file has; RepositoryError where they disagree or make no sense."""
    config = listing.config
    parameters = _Parameters({key: value.string_value for key, value in config.parameters.items()})
    batched = config.max_batch_size > 0
    user_inputs = parameters.names("user_inputs")
    inputs = tuple(
        InputSpec(p.name, p.dtype, p.shape[1:], p.name in user_inputs, parameters.id_rows(p))
        for p in _join("input", config.input, ports.inputs, batched)
    )
    outputs = tuple(
        OutputSpec(p.name, p.dtype, p.shape[1:])
        for p in _join("output", config.output, ports.outputs, batched)
    )
    parameters.check_names("user_inputs", user_inputs, [i.name for i in inputs])
    parameters.check_id_inputs([i.name for i in inputs])
    score_output, tasks = _scores(parameters, outputs)
    largest_batch, whole = _batching(listing, ports)
    # Rows of different shapes cannot share a batch.
    whole = whole or any(-1 in declared.shape for declared in inputs)
    sla = parameters.sla()
    return ModelSpec(
        listing.name,
        version,
        listing.model_file(version),
        inputs,
        outputs,
        score_output,
        tasks,
        sla,
        largest_batch,
        whole,
    )


def _join(kind: str, declared: Sequence[Any], ports: Sequence[Port], batched: bool) -> list[Port]:
    """Check the declared inputs or outputs against the file's; the file's order and the stricter shape hold."""
    by_name = {entry.name: entry for entry in declared}
    known = ", ".join(port.name for port in ports)
    for name in by_name:
        if name not in {port.name for port in ports}:
            raise RepositoryError(
                f'{CONFIG_FILE}: {kind} "{name}" is not in the ONNX file, which has {known}'
            )
    return [_join_port(kind, by_name.get(port.name), port, batched) for port in ports]


def _join_port(kind: str, entry: Any, port: Port, batched: bool) -> Port:
    if not port.shape:
        raise RepositoryError(
            f'the ONNX file\'s {kind} "{port.name}" is a scalar: axis 0 must be the candidates'
        )
    if entry is None:
        return port
    dtype = _DTYPES.get(entry.data_type)
    if dtype is None:
        raise RepositoryError(f'{CONFIG_FILE}: {kind} "{port.name}" has a data_type that is not served')
    if dtype != port.dtype:
        raise RepositoryError(
            f'{CONFIG_FILE}: {kind} "{port.name}" is {dtype}, but the ONNX file has {port.dtype}'
        )
    dims = tuple(entry.dims)
    declared = (-1, *dims) if batched else dims
    agree = len(declared) == len(port.shape) and all(
        -1 in (a, b) or a == b for a, b in zip(declared, port.shape, strict=True)
    )
    if not agree:
        raise RepositoryError(
            f'{CONFIG_FILE}: {kind} "{port.name}" has the shape {list(declared)}, '
            f"but the ONNX file has {list(port.shape)}"
        )
    return Port(port.name, port.dtype, tuple(max(a, b) for a, b in zip(declared, port.shape, strict=True)))


def _scores(parameters: _Parameters, outputs: Sequence[OutputSpec]) -> tuple[str, tuple[str, ...]]:
    """Return the score output's name and the names of its tasks."""
    name = parameters.text("score_output") or outputs[0].name
    parameters.check_names("score_output", [name], [o.name for o in outputs])
    output = next(o for o in outputs if o.name == name)
    if len(output.shape) > 1 or output.dtype.kind != "f":
        raise RepositoryError(
            f'output "{name}" cannot be the score: it must be a float of shape [N], [N, 1] or [N, tasks]; '
            f"choose another with the parameter score_output"
        )
    columns = output.shape[0] if output.shape else 1
    tasks = tuple(parameters.names("tasks"))
    if tasks and len(tasks) != columns:
        raise RepositoryError(
            f'parameter tasks names {len(tasks)} tasks, but output "{name}" has {columns} columns'
        )
    if len(set(tasks)) != len(tasks):
        raise RepositoryError("parameter tasks names a task twice")
    if columns > 1 and not tasks:
        tasks = tuple(f"task_{column}" for column in range(columns))
    return name, tasks


def _batching(listing: Listing, ports: Ports) -> tuple[int, bool]:
    """Return the largest batch and whether each query must be one inference."""
    limit = listing.config.max_batch_size
    fixed = {port.shape[0] for port in ports.inputs if port.shape[0] > 0}
    if not ports.inputs:
        raise RepositoryError("the ONNX file has no inputs: nothing can be ranked with it")
    if not fixed:
        return (limit, False) if limit > 0 else (1 << 30, True)
    if fixed == {1}:
        return 1, False
    raise RepositoryError(
        f"the ONNX file accepts batches of exactly {sorted(fixed)} only: export it with a dynamic first axis"
    )


class _Parameters:
    """The ``parameters`` of a configuration, read with errors that name the parameter."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def text(self, key: str) -> str:
        return self._values.get(key, "").strip()

    def names(self, key: str) -> list[str]:
        return [name.strip() for name in self.text(key).split(",") if name.strip()]

    def sla(self) -> Sla:
        percentile = self._number(
            "sla_percentile", DEFAULT_SLA.percentile, lambda p: 0 < p < 100, "between 0 and 100"
        )
        ms = self._number("sla_ms", DEFAULT_SLA.seconds * 1e3, lambda m: 0 < m < 1e7, "milliseconds above 0")
        return Sla(percentile, ms / 1e3)

    def _number(self, key: str, default: float, valid: Callable[[float], bool], rule: str) -> float:
        text = self.text(key)
        try:
            value = float(text) if text else default
        except ValueError:
            value = float("nan")
        if not valid(value):
            raise RepositoryError(f'{CONFIG_FILE}: parameter {key} is "{text}"; it must be {rule}')
        return value

    def id_rows(self, port: Port) -> tuple[int, ...] | None:
        texts = self.names(f"id_rows.{port.name}")
        if not texts:
            return None
        key = f"{CONFIG_FILE}: parameter id_rows.{port.name}"
        if port.dtype.kind not in "iu":
            raise RepositoryError(f"{key}: the input holds {port.dtype}, not ids")
        most = 1 << (8 * port.dtype.itemsize - (port.dtype.kind == "i"))
        if not all(_is_number(text) and 0 < int(text) <= most for text in texts):
            raise RepositoryError(
                f"{key} must be one whole number from 1 to {most} ({port.dtype} ids), or several separated by commas"
            )
        columns = port.shape[1] if len(port.shape) > 1 else 1
        if len(texts) not in (1, columns):
            raise RepositoryError(f"{key} has {len(texts)} numbers; the input has {columns} columns")
        return tuple(int(text) for text in texts)

    def check_names(self, key: str, names: Sequence[str], known: Sequence[str]) -> None:
        for name in names:
            if name not in known:
                raise RepositoryError(
                    f'{CONFIG_FILE}: parameter {key}: "{name}" is none of {", ".join(known)}'
                )

    def check_id_inputs(self, inputs: Sequence[str]) -> None:
        prefix = "id_rows."
        named = [key.removeprefix(prefix) for key in self._values if key.startswith(prefix)]
        self.check_names("id_rows", named, inputs)
