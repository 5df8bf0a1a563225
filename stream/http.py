"""`/metrics`, `/healthz` and `/readyz` on one small port.

`/healthz` says whether the worker's loop still turns, `/readyz` whether it serves its partitions.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from stream.config import Http
from stream.errors import PortInUse

Probe = Callable[[], tuple[bool, dict[str, object]]]
"""Whether all is well, and details for the reader."""


class Endpoint:
    """The HTTP server of a worker, in a thread of its own."""

    def __init__(
        self, settings: Http, registry: CollectorRegistry, healthy: Probe, ready: Probe
    ) -> None:
        """Raises `PortInUse`."""
        handler = _handler(registry, {"/healthz": healthy, "/readyz": ready})
        try:
            self._server = ThreadingHTTPServer((settings.host, settings.port), handler)
        except OSError as error:
            raise PortInUse(f"{settings.host}:{settings.port}: {error.strerror}") from None
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def free_port(host: str, port: int, flag: str) -> int:
    """The port, or any free one for 0, for a server that wants a number.

    Raises `PortInUse`; `flag` is the option that names another.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortInUse(
                f"{host}:{port}: {error.strerror}",
                remedy=f"Choose another with {flag}, or 0 for any free one.",
            ) from None
        return int(probe.getsockname()[1])


def _handler(registry: CollectorRegistry, probes: dict[str, Probe]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif path in probes:
                well, details = probes[path]()
                self._answer(200 if well else 503, "application/json", orjson.dumps(details))
            else:
                self._answer(404, "text/plain", b"/metrics, /healthz and /readyz are here\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Requests of probes are not worth a line."""

    return Handler
