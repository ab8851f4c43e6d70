"""endpoint: a worker's metrics and health over HTTP: /metrics, /live, /ready."""

from __future__ import annotations

import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

from x2gofleet_workers.health import one_line, url_place
from x2gofleet_workers.metrics import MetricsError, PrometheusMetrics

_CLIENT_SECONDS = 5.0
_SHUTDOWN_SECONDS = 0.25
_TEXT = "text/plain; charset=utf-8"

log = logging.getLogger(__name__)


class Endpoint:
    """Serves until it is stopped; ``live`` and ``ready`` return what is wrong, "" where nothing is.

    ``warnings`` returns what /ready adds, a line each, without effect on its status. Port 0 takes a free one. Raises
    MetricsError where it can't listen.
    """

    def __init__(
        self,
        metrics: PrometheusMetrics,
        live: Callable[[], str],
        ready: Callable[[], str],
        warnings: Callable[[], Sequence[str]] = tuple,
        *,
        address: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        try:
            self._server = _Server(metrics, {"/live": (live, tuple), "/ready": (ready, warnings)}, address, port)
        except OSError as exc:
            raise MetricsError(f"metrics can't be served on {url_place(address, port)}: {exc.strerror or exc}") from exc
        self._address = address
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_SHUTDOWN_SECONDS,), name="x2gofleet-metrics", daemon=True
        )

    @property
    def url(self) -> str:
        """Where it listens, without a path: ``http://127.0.0.1:9464``."""
        return f"http://{url_place(self._address, self._server.server_address[1])}"

    def start(self) -> None:
        """Begin to serve in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Serve no more."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


_Check = tuple[Callable[[], str], Callable[[], Sequence[str]]]


class _Server(ThreadingHTTPServer):
    # With the usual five, a few clients at once wait a second or three for their connections.
    request_queue_size = 128

    def __init__(self, metrics: PrometheusMetrics, checks: dict[str, _Check], address: str, port: int) -> None:
        self.metrics, self.checks = metrics, checks
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _Handler)

    def server_bind(self) -> None:
        """Bind, and look up no name: HTTPServer would ask the DNS for the address's."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log a client that went away, instead of printing a traceback."""
        log.debug("a request of %s was not answered: %s", client_address, sys.exception())


class _Handler(BaseHTTPRequestHandler):
    timeout = _CLIENT_SECONDS

    def version_string(self) -> str:
        """Return what the Server header says."""
        return "x2gofleet-worker"

    def do_GET(self) -> None:
        """Answer one of the three paths."""
        server = cast(_Server, self.server)
        path = self.path.partition("?")[0]
        try:
            if path == "/metrics":
                body, content_type = server.metrics.exposition(self.headers.get("Accept", ""))
                self._send(HTTPStatus.OK, body, content_type)
            elif path in server.checks:
                check, warnings = server.checks[path]
                problem = check()
                status = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
                self._send(status, _lines(problem or "ok", *(f"warning: {each}" for each in warnings())), _TEXT)
            else:
                self._send(HTTPStatus.NOT_FOUND, _lines("there are /metrics, /live and /ready"), _TEXT)
        except OSError:
            raise
        except Exception as exc:
            log.exception("%s could not be answered", path)
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, _lines(f"the worker failed: {type(exc).__name__}"), _TEXT)

    do_HEAD = do_GET  # noqa: N815

    def _send(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log requests for those who want to see them."""
        log.debug("%s %s", self.address_string(), format % args)


def _lines(*texts: str) -> bytes:
    return "".join(f"{one_line(text)}\n" for text in texts).encode("utf-8", "replace")
