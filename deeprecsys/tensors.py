"""Numpy arrays to Tensor messages and back: raw little-endian bytes, no object per number."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from deeprecsys.v1 import rank_pb2

Array = NDArray[np.generic]

DTYPES: Mapping[rank_pb2.DataType.ValueType, np.dtype[np.generic]] = {
    rank_pb2.DATA_TYPE_BOOL: np.dtype("?"),
    rank_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
    rank_pb2.DATA_TYPE_UINT16: np.dtype("<u2"),
    rank_pb2.DATA_TYPE_UINT32: np.dtype("<u4"),
    rank_pb2.DATA_TYPE_UINT64: np.dtype("<u8"),
    rank_pb2.DATA_TYPE_INT8: np.dtype("i1"),
    rank_pb2.DATA_TYPE_INT16: np.dtype("<i2"),
    rank_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    rank_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    rank_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    rank_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    rank_pb2.DATA_TYPE_FLOAT64: np.dtype("<f8"),
}
"""The numpy dtype of each DataType that a tensor may have."""

DATA_TYPES: Mapping[np.dtype[np.generic], rank_pb2.DataType.ValueType] = {
    dtype: rank_pb2.DataType.Value(rank_pb2.DataType.Name(data_type)) for data_type, dtype in DTYPES.items()
}
"""The DataType of each numpy dtype."""


def data_type_name(data_type: rank_pb2.DataType.ValueType) -> str:
    """Return the short name that people read, such as ``FLOAT32``; the number itself when it is unknown."""
    if data_type not in DTYPES:
        return str(data_type)
    return rank_pb2.DataType.Name(data_type).removeprefix("DATA_TYPE_")


def to_tensor(name: str, array: Array) -> rank_pb2.Tensor:
    """Return the message that holds the array; TypeError for an element type that the API does not have."""
    tensor = rank_pb2.Tensor()
    fill_tensor(tensor, name, array)
    return tensor


def fill_tensor(tensor: rank_pb2.Tensor, name: str, array: Array) -> None:
    """Put the array into an empty message; TypeError for an element type that the API does not have."""
    data_type = DATA_TYPES.get(array.dtype)
    if data_type is None:
        little = array.dtype.newbyteorder("<")
        data_type = DATA_TYPES.get(little)
        if data_type is None:
            known = ", ".join(str(dtype) for dtype in DATA_TYPES)
            raise TypeError(f"{name}: a tensor cannot hold {array.dtype}; it can hold {known}")
        array = array.astype(little)
    tensor.name = name
    tensor.data_type = data_type
    tensor.shape.extend(array.shape)
    tensor.data = array.tobytes()


def to_array(tensor: rank_pb2.Tensor) -> Array:
    """Return a read-only view of the message's bytes in its shape; ValueError when they do not fit."""
    return np.frombuffer(tensor.data, dtype=DTYPES[tensor.data_type]).reshape(tuple(tensor.shape))
