"""Ray Serve with @serve.batch on its gRPC ingress, which takes the stubs of RankService as they are.

    python ray_app.py ORDER_AS_JSON

The order: path, output, port, http_port (unused, but the ingress wants one), folder (for Ray's own files), replicas,
threads, at_once (batches of one replica), batch (queries at most), wait_s. Ends on SIGTERM,
and all that Ray started with it.
"""

import asyncio
import json
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray
from onnx_session import open_session
from ray import serve

from deeprecsys.tensors import to_array, to_tensor
from deeprecsys.v1 import rank_pb2

SERVICER = "deeprecsys.v1.rank_pb2_grpc.add_RankServiceServicer_to_server"


class Ranker:
    """One replica; each has the model open."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._session = open_session(Path(order["path"]), order["threads"])
        self._output = order["output"]
        self._pool = ThreadPoolExecutor(order["at_once"])
        self._batched.set_max_batch_size(order["batch"])
        self._batched.set_batch_wait_timeout_s(order["wait_s"])

    async def Rank(self, request: rank_pb2.RankRequest) -> rank_pb2.RankResponse:  # noqa: N802
        """Score the candidates of one query."""
        scores = await self._batched(request)
        return rank_pb2.RankResponse(model=request.model, scores=to_tensor("score", scores))

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.0, max_concurrent_batches=2)
    async def _batched(self, requests: list[rank_pb2.RankRequest]) -> list[Any]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._score, requests)

    def _score(self, requests: list[rank_pb2.RankRequest]) -> list[Any]:
        queries = [{tensor.name: to_array(tensor) for tensor in request.inputs} for request in requests]
        if len(queries) == 1:
            return [self._session.run([self._output], queries[0])[0]]
        joined = {name: np.concatenate([query[name] for query in queries]) for name in queries[0]}
        ends = np.cumsum([len(next(iter(query.values()))) for query in queries])
        return np.split(self._session.run([self._output], joined)[0], ends[:-1])


def main() -> None:
    order: dict[str, Any] = json.loads(sys.argv[1])
    stopped = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopped)
    ray.init(
        num_cpus=order["replicas"],
        include_dashboard=False,
        object_store_memory=256 << 20,
        _temp_dir=order["folder"],
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    try:
        serve.start(
            http_options={"host": "127.0.0.1", "port": order["http_port"]},
            grpc_options={"port": order["port"], "grpc_servicer_functions": [SERVICER]},
        )
        deployment = serve.deployment(
            Ranker,
            num_replicas=order["replicas"],
            max_ongoing_requests=1000,
            ray_actor_options={"num_cpus": 0},
        )
        serve.run(deployment.bind(order), name="rank")
        signal.sigwait(stopped)
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
