"""endpoint: a worker's metrics and health over HTTP: /metrics, /live, /ready; and the command that asks for health."""

from __future__ import annotations

import http.client
import logging
import socket
import socketserver
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

from x2gofleet_workers.metrics import MetricsError, PrometheusMetrics

_CLIENT_SECONDS = 5.0
_SHUTDOWN_SECONDS = 0.25
_LONGEST_LINE = 400
_TEXT = "text/plain; charset=utf-8"

log = logging.getLogger(__name__)


class Endpoint:
    """Serves until it is stopped; ``live`` and ``ready`` return what is wrong, "" where nothing is.

    Port 0 takes a free one. Raises MetricsError where it can't listen.
    """

    def __init__(
        self,
        metrics: PrometheusMetrics,
        live: Callable[[], str],
        ready: Callable[[], str],
        *,
        address: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        try:
            self._server = _Server(metrics, {"/live": live, "/ready": ready}, address, port)
        except OSError as exc:
            raise MetricsError(f"metrics can't be served on {_place(address, port)}: {exc.strerror or exc}") from exc
        self._address = address
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_SHUTDOWN_SECONDS,), name="x2gofleet-metrics", daemon=True
        )

    @property
    def url(self) -> str:
        """Where it listens, without a path: ``http://127.0.0.1:9464``."""
        return f"http://{_place(self._address, self._server.server_address[1])}"

    def start(self) -> None:
        """Begin to serve in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Serve no more."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


def _place(address: str, port: int | str) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class _Server(ThreadingHTTPServer):
    # With the usual five, a few clients at once wait a second or three for their connections.
    request_queue_size = 128

    def __init__(
        self, metrics: PrometheusMetrics, checks: dict[str, Callable[[], str]], address: str, port: int
    ) -> None:
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
                problem = server.checks[path]()
                status = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
                self._send(status, _line(problem or "ok"), _TEXT)
            else:
                self._send(HTTPStatus.NOT_FOUND, _line("there are /metrics, /live and /ready"), _TEXT)
        except OSError:
            raise
        except Exception as exc:
            log.exception("%s could not be answered", path)
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, _line(f"the worker failed: {type(exc).__name__}"), _TEXT)

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


def _line(text: str) -> bytes:
    return f"{_plain(text)}\n".encode("utf-8", "replace")


def health_url(address: str, port: str) -> str:
    """Return the URL of /live at the address and port that a worker on this machine was told to listen on."""
    here = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"http://{_place(here, port)}/live"


def healthcheck(url: str) -> tuple[bool, str]:
    """Ask a worker how it is; return whether it is well, and its one line or why it gave none."""
    if not url.startswith(("http://", "https://")):
        return False, f"{url} is no http URL"
    # A proxy of the environment is not the way to a worker next door.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_CLIENT_SECONDS) as reply:
            return True, _plain(reply.read(_LONGEST_LINE).decode("utf-8", "replace"))
    except urllib.error.HTTPError as exc:
        with exc:
            return False, _plain(exc.read(_LONGEST_LINE).decode("utf-8", "replace")) or f"HTTP status {exc.code}"
    except (OSError, ValueError, http.client.HTTPException) as exc:
        reason = getattr(exc, "reason", None) or exc
        return False, _plain(f"{url} does not answer as a worker does: {reason}")


def _plain(text: str) -> str:
    """Return one line that is fit for a terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:_LONGEST_LINE]
