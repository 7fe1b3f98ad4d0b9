"""The shape of every value of an ONNX model at one number of candidates, as ONNX itself infers it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from deeprecsys.errors import RepositoryError


class Shapes:
    """What is known of the values of an ``onnx.ModelProto`` whose first axis has so many ``candidates``.

    Any other free axis of an input counts as 1, as it does where the model is timed. Raises RepositoryError for a
    model whose shapes contradict each other.
    """

    def __init__(self, model: Any, candidates: int) -> None:
        self._graph = model.graph
        self._values = _inferred(model, candidates)

    def value(self, name: str) -> Any:
        """Return the ``onnx.ValueInfoProto`` of a value; RepositoryError for one that nothing is known of."""
        if name not in self._values:
            raise RepositoryError(
                f'the work of the model cannot be computed: the shape of "{name}" is unknown'
            )
        return self._values[name]

    def of(self, name: str) -> tuple[int, ...]:
        """Return the shape of a value; RepositoryError where an axis is unknown."""
        axes = self.value(name).type.tensor_type.shape.dim
        if not all(axis.HasField("dim_value") for axis in axes):
            raise RepositoryError(
                f'the work of the model cannot be computed: the shape of "{name}" is unknown'
            )
        return tuple(axis.dim_value for axis in axes)

    def bytes_of(self, name: str) -> int:
        """Return the bytes of a value."""
        from onnx import helper  # noqa: PLC0415 (an extra: a serving image has none)

        element = self.value(name).type.tensor_type.elem_type
        return math.prod(self.of(name)) * int(helper.tensor_dtype_to_np_dtype(element).itemsize)

    def constant(self, name: str) -> int | None:
        """Return the one number that a constant inside the file holds; None for anything else."""
        from onnx import numpy_helper  # noqa: PLC0415

        for constant in self._graph.initializer:
            if constant.name == name and not constant.external_data:
                return int(numpy_helper.to_array(constant).reshape(-1)[0])
        return None


def _inferred(model: Any, candidates: int) -> dict[str, Any]:
    """Return what is known of each value, by name, with the candidates' axis set."""
    import onnx  # noqa: PLC0415

    sized = type(model)()
    sized.CopyFrom(model)
    del sized.graph.value_info[:]  # shapes that the exporter noted have names where numbers are wanted
    constants = {constant.name for constant in sized.graph.initializer}
    for port in sized.graph.input:
        if port.name not in constants:
            _size(port, candidates, other_axes=1)
    for port in sized.graph.output:
        _size(port, candidates, other_axes=None)
    try:
        known = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise RepositoryError(
            f"the shapes of the model contradict each other: {str(error).splitlines()[0][:300]}"
        ) from error
    values = {value.name: value for value in (*known.input, *known.value_info, *known.output)}
    for constant in known.initializer:
        value = onnx.ValueInfoProto(name=constant.name)
        value.type.tensor_type.elem_type = constant.data_type
        set_shape(value.type.tensor_type, tuple(constant.dims))
        values[constant.name] = value
    return values


def _size(port: Any, candidates: int, *, other_axes: int | None) -> None:
    """Give the free axes of an input or output a size: the first is the candidates; None leaves it to inference."""
    for index, axis in enumerate(port.type.tensor_type.shape.dim):
        if not axis.HasField("dim_value"):
            axis.Clear()
            if index == 0:
                axis.dim_value = candidates
            elif other_axes is not None:
                axis.dim_value = other_axes


def set_shape(tensor_type: Any, shape: Sequence[int]) -> None:
    """Give an ``onnx.TypeProto.Tensor`` a shape of numbers."""
    tensor_type.ClearField("shape")
    tensor_type.shape.SetInParent()
    for axis in shape:
        tensor_type.shape.dim.add().dim_value = axis
