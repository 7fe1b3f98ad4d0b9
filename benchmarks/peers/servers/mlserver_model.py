"""A minimal custom runtime of MLServer: ONNX Runtime on whatever its adaptive batching has put together.

The tensors come as BYTES, one blob per request and input: of numeric types MLServer makes one Python object per number.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from onnx_session import open_session


class OnnxModel(MLModel):
    """``parameters.extra``: threads, at_once (inferences), output, and for each input its numpy type and dims."""

    async def load(self) -> bool:
        """Open the file."""
        extra: dict[str, Any] = self.settings.parameters.extra
        self._session = open_session(Path(self.settings.parameters.uri), extra["threads"])
        self._output = extra["output"]
        self._inputs = {name: (np.dtype(kind), dims) for name, (kind, dims) in extra["inputs"].items()}
        self._pool = ThreadPoolExecutor(extra["at_once"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Score a batch of requests."""
        scores = await asyncio.get_running_loop().run_in_executor(self._pool, self._score, payload)
        output = ResponseOutput(
            name=self._output, shape=list(scores.shape), datatype="FP32", data=scores.ravel().tolist()
        )
        return InferenceResponse(model_name=self.name, outputs=[output])

    def _score(self, payload: InferenceRequest) -> Any:
        inputs = {each.name: self._array(each) for each in payload.inputs}
        return self._session.run([self._output], inputs)[0]

    def _array(self, tensor: Any) -> Any:
        dtype, dims = self._inputs[tensor.name]
        blobs = getattr(tensor.data, "root", tensor.data)
        arrays = [np.frombuffer(blob, dtype).reshape(-1, *dims) for blob in blobs]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
