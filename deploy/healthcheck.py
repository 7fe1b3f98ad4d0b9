"""Exit with 0 if the server at argv[1] says SERVING, else with 1 and the reason: what the image's HEALTHCHECK runs."""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

with grpc.insecure_channel(sys.argv[1]) as channel:
    try:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3)
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
if answer.status != health_pb2.HealthCheckResponse.SERVING:
    sys.exit(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
