"""A small server that speaks Triton's protocol and does as it is told: for the tests that need no real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

UP = ""


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """One model `m`: input x and output y, FP32 [-1, 1]; y is x.

    ``fault``: what inferences of more than one candidate end with, a code and its details; None for scores. ``held``:
    while cleared they wait. ``down``: what every call ends with. ``bias``: what is added to every score.
    """

    server: grpc.aio.Server

    def __init__(self) -> None:
        self.held = asyncio.Event()
        self.held.set()
        self.fault: tuple[grpc.StatusCode, str] | None = None
        self.down: tuple[grpc.StatusCode, str] | None = None
        self.shape = [-1, 1]
        self.largest = 8
        self.loaded = True
        self.loads = 0
        self.sizes: list[int] = []
        self.cancelled = 0
        self.bias = 0.0
        self.address = ""

    async def _check(self, context: Any) -> None:
        if self.down is not None:
            await context.abort(*self.down)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._check(context)
        if not self.loaded:
            await context.abort(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'm' is not found")
        found = service_pb2.ModelMetadataResponse(name="m", versions=["1"])
        found.inputs.add(name="x", datatype="FP32", shape=self.shape)
        found.outputs.add(name="y", datatype="FP32", shape=[-1, 1])
        return found

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = service_pb2.ModelConfigResponse()
        response.config.max_batch_size = self.largest
        return response

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.loads += 1
        self.loaded = True
        return service_pb2.RepositoryModelLoadResponse()

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._check(context)
        x = np.frombuffer(request.raw_input_contents[0], "<f4").reshape(-1, 1)
        if x.max() >= 1:  # the warm-up query is drawn from 0 to 1
            self.sizes.append(len(x))
            try:
                await self.held.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            if self.fault is not None:
                await context.abort(*self.fault)
        response = service_pb2.ModelInferResponse(model_name="m")
        response.outputs.add(name="y", datatype="FP32", shape=x.shape)
        response.raw_output_contents.append((x + np.float32(self.bias)).tobytes())
        return response


@asynccontextmanager
async def fake_triton() -> AsyncIterator[FakeTriton]:
    """Start one on a free port of the loopback."""
    fake = FakeTriton()
    fake.server = server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield fake
    finally:
        fake.held.set()
        await server.stop(0)
