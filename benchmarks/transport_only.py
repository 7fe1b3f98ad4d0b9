"""A RankService that receives and parses the messages, runs nothing, and answers with as many zero scores.

Labelled for what it is: the floor under any server of these messages in this stack. Prints its address.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
import numpy as np

from deeprecsys.tensors import to_tensor
from deeprecsys.v1 import rank_pb2, rank_pb2_grpc


class TransportOnly(rank_pb2_grpc.RankServiceServicer):
    """Answers Rank at once and describes the models as the real server did."""

    def __init__(self, models: dict[str, rank_pb2.Model]) -> None:
        self._models = models

    async def Rank(self, request: rank_pb2.RankRequest, context: Any) -> rank_pb2.RankResponse:  # noqa: ARG002, N802
        """Touch every tensor's bytes and answer with zeros."""
        rows = max(tensor.shape[0] for tensor in request.inputs if tensor.data)
        return rank_pb2.RankResponse(
            model=request.model,
            version="1",
            scores=to_tensor("score", np.zeros(rows, np.float32)),
            ranking=to_tensor("ranking", np.zeros(rows, np.int64)),
        )

    async def GetModel(self, request: rank_pb2.GetModelRequest, context: Any) -> rank_pb2.GetModelResponse:  # noqa: ARG002, N802
        """Describe a model."""
        return rank_pb2.GetModelResponse(model=self._models[request.name])


async def main() -> None:
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        listed = await rank_pb2_grpc.RankServiceStub(channel).ListModels(rank_pb2.ListModelsRequest())
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])
    rank_pb2_grpc.add_RankServiceServicer_to_server(TransportOnly({m.name: m for m in listed.models}), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"address": f"127.0.0.1:{port}"}), flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, stop.set)
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(main())
