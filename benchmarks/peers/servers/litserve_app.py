"""LitServe with batching over raw bytes: a query is the body of one POST, and so is its answer.

    python litserve_app.py ORDER_AS_JSON

The order: path, output, port, workers, threads, batch, wait_s, and for each input, in the order of the body, its name,
numpy type, dims and bytes a candidate.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Body, Response
from onnx_session import open_session

ORDER: dict[str, Any] = json.loads(sys.argv[1])


class Ranker(litserve.LitAPI):
    """One process of LitServe's; each has the model open."""

    def setup(self, device: Any) -> None:  # noqa: ARG002
        """Open the file."""
        self.session = open_session(Path(ORDER["path"]), ORDER["threads"])

    # The annotation is what makes LitServe hand over the body as it is.
    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Any:
        """View the tensors, which lie in the body one after the other."""
        size = len(request) // sum(each["row_bytes"] for each in ORDER["inputs"])
        inputs, offset = {}, 0
        for each in ORDER["inputs"]:
            nbytes = size * each["row_bytes"]
            flat = np.frombuffer(request, each["dtype"], nbytes // np.dtype(each["dtype"]).itemsize, offset)
            inputs[each["name"]] = flat.reshape(size, *each["dims"])
            offset += nbytes
        return inputs

    def batch(self, inputs: list[Any]) -> Any:
        """Put the queries' rows together."""
        self.sizes = [len(next(iter(each.values()))) for each in inputs]
        if len(inputs) == 1:
            return inputs[0]
        return {name: np.concatenate([each[name] for each in inputs]) for name in inputs[0]}

    def predict(self, inputs: Any) -> Any:
        """Score all rows."""
        return self.session.run([ORDER["output"]], inputs)[0]

    def unbatch(self, output: Any) -> list[Any]:
        """Give each query its rows."""
        return np.split(output, np.cumsum(self.sizes)[:-1])

    def encode_response(self, output: Any) -> Response:
        """Answer with the scores as float32."""
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    batching = (
        {"max_batch_size": ORDER["batch"], "batch_timeout": ORDER["wait_s"]} if ORDER["batch"] > 1 else {}
    )
    server = litserve.LitServer(Ranker(**batching), accelerator="cpu", workers_per_device=ORDER["workers"])
    server.run(host="127.0.0.1", port=ORDER["port"], generate_client_file=False, log_level="warning")
