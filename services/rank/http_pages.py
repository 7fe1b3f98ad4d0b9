"""The HTTP port beside gRPC: a few pages for those who watch the server, on threads of their own."""

from __future__ import annotations

import asyncio
import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from deeprecsys.errors import InvalidSettingError

_log = logging.getLogger(__name__)

TEXT = "text/plain; charset=utf-8"
CLIENT_LIMIT_S = 10.0
MOST_CLIENTS = 16
"""More at once are hung up on: a page is for a scraper or two and a few people."""


class Page(NamedTuple):
    """What a path answers."""

    status: HTTPStatus
    content_type: str
    body: bytes


Render = Callable[[str], Page]
"""Takes the request's Accept header. It is called on a thread that is not the loop's."""


class Readiness:
    """Whether the server takes queries; ``reason`` says why it does not, "" when it does."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def pages(registry: CollectorRegistry, readiness: Readiness) -> dict[str, Render]:
    """Return the one table of what is served, by path."""

    def metrics(accept: str) -> Page:
        render, content_type = choose_encoder(accept)
        return Page(HTTPStatus.OK, content_type, render(registry))

    def ready(_: str) -> Page:
        reason = readiness.reason
        status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
        return Page(status, TEXT, f"{reason or 'ready'}\n".encode())

    return {
        "/metrics": metrics,
        "/healthz": lambda _: Page(HTTPStatus.OK, TEXT, b"alive\n"),
        "/readyz": ready,
    }


class _Handler(BaseHTTPRequestHandler):
    """Answers GET; http.server itself refuses all else with 501."""

    server: _Server
    timeout = CLIENT_LIMIT_S

    def do_GET(self) -> None:
        page = self._page(self.path.partition("?")[0])
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        self.wfile.write(page.body)

    def _page(self, path: str) -> Page:
        render = self.server.pages.get(path)
        if render is None:
            known = ", ".join(self.server.pages)
            return Page(HTTPStatus.NOT_FOUND, TEXT, f"no such page; known: {known}\n".encode())
        try:
            return render(self.headers.get("Accept", ""))
        except Exception as error:  # noqa: BLE001 - the boundary: the trace goes to the log, 500 to the client
            _log.exception("page failed", extra={"path": path})
            return Page(HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, f"{type(error).__name__}\n".encode())

    def log_message(self, *_: object) -> None:
        """Nothing: a scrape every few seconds is no news."""


class _Server(ThreadingHTTPServer):
    def __init__(self, host: str, port: int, served: Mapping[str, Render]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.pages = served
        self._slots = threading.BoundedSemaphore(MOST_CLIENTS)
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a thread, unless as many as there may be are busy."""
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the library's signature
        """Log in a line what http.server would print: clients that hang up, such as TCP health checks, mostly."""
        _log.debug("page not delivered", extra={"client": client_address[0], "reason": repr(sys.exception())})

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's would ask the DNS for this machine's name


class HttpPort:
    """Listens and serves pages until it is closed; InvalidSettingError for an address that cannot be had.

    ``address``: host:port.
    """

    def __init__(self, host: str, port: int, served: Mapping[str, Render]) -> None:
        host = host.strip("[]")
        try:
            self._server = _Server(host, port, served)
        except OSError as error:
            raise InvalidSettingError(
                f"cannot serve metrics on {host}:{port}: the port is in use or the address is not this machine's; "
                f"choose another with --metrics-port (0 takes a free one) or --metrics-host"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="rank-http", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Serve no more; within half a second, which is how often the thread looks."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        self._thread.join()
