"""Keeps gRPC servers on the loopback: Ray Serve's ingress listens on all addresses, and has no setting for that.

Python imports this by its name in every process that has the folder on its path.
"""

from typing import Any

from grpc.aio import _server

_add = _server.Server.add_insecure_port


def _add_on_loopback(self: Any, address: str) -> int:
    return _add(self, address.replace("[::]", "127.0.0.1"))


_server.Server.add_insecure_port = _add_on_loopback
