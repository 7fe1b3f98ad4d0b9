"""What one writes in an afternoon: grpc.aio, one ONNX Runtime session, a thread pool; each query is one inference.

    python plain.py MODEL_FILE SCORE_OUTPUT PORT THREADS AT_ONCE

THREADS: intra-op threads, 0 for ONNX Runtime's default. AT_ONCE: inferences at once.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from onnx_session import open_session

from deeprecsys.tensors import to_array, to_tensor
from deeprecsys.v1 import rank_pb2, rank_pb2_grpc


class Plain(rank_pb2_grpc.RankServiceServicer):
    """Scores a whole query at a time."""

    def __init__(self, path: Path, output: str, threads: int, at_once: int) -> None:
        self._session = open_session(path, threads)
        self._output = output
        self._pool = ThreadPoolExecutor(at_once)

    async def Rank(self, request: rank_pb2.RankRequest, context: Any) -> rank_pb2.RankResponse:  # noqa: ARG002, N802
        """Score and rank the candidates."""
        loop = asyncio.get_running_loop()
        scores = await loop.run_in_executor(self._pool, self._score, request)
        ranking = np.argsort(-scores[:, 0])
        return rank_pb2.RankResponse(
            model=request.model,
            version="1",
            scores=to_tensor("score", scores),
            ranking=to_tensor("ranking", ranking),
        )

    def _score(self, request: rank_pb2.RankRequest) -> Any:
        inputs = {tensor.name: to_array(tensor) for tensor in request.inputs}
        return self._session.run([self._output], inputs)[0]


async def main() -> None:
    path, output, port, threads, at_once = sys.argv[1:]
    limits = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=limits)
    rank_pb2_grpc.add_RankServiceServicer_to_server(
        Plain(Path(path), output, int(threads), int(at_once)), server
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await server.start()
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(main())
