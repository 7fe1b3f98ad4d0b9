"""A client that knows only the protos: argv is the folder of stubs that it generated itself, and host:port.

It lists the models, builds a query for each from GetModel alone, and prints one line of JSON per ranking.
"""

import json
import math
import random
import struct
import sys

sys.path.insert(0, sys.argv[1])

import grpc

from deeprecsys.v1 import rank_pb2, rank_pb2_grpc

N = 11
FORMATS = {rank_pb2.DATA_TYPE_INT32: "i", rank_pb2.DATA_TYPE_INT64: "q", rank_pb2.DATA_TYPE_FLOAT32: "f"}


def tensor(spec: rank_pb2.Input) -> rank_pb2.Tensor:
    rows = 1 if spec.user_side else N
    inner = [max(1, axis) for axis in spec.shape[1:]]
    per_column = math.prod(inner[1:]) if inner else 1
    values = []
    for position in range(rows * math.prod(inner)):
        if spec.id_rows:
            column = position // per_column % inner[0] if len(spec.id_rows) > 1 else 0
            values.append(random.randrange(spec.id_rows[column]))
        else:
            values.append(random.random())
    data = struct.pack(f"<{len(values)}{FORMATS[spec.data_type]}", *values)
    return rank_pb2.Tensor(name=spec.name, data_type=spec.data_type, shape=[rows, *inner], data=data)


with grpc.insecure_channel(sys.argv[2]) as channel:
    stub = rank_pb2_grpc.RankServiceStub(channel)
    for listed in stub.ListModels(rank_pb2.ListModelsRequest()).models:
        model = stub.GetModel(rank_pb2.GetModelRequest(name=listed.name)).model
        request = rank_pb2.RankRequest(model=model.name, inputs=[tensor(i) for i in model.inputs], top_k=3)
        answer = stub.Rank(request)
        ranking = struct.unpack("<3q", answer.ranking.data)
        scores = struct.unpack(f"<{math.prod(answer.scores.shape)}f", answer.scores.data)
        print(
            json.dumps(
                {"model": model.name, "ranking": ranking, "scores": scores, "tasks": list(model.tasks)}
            )
        )
