"""http_server: uvicorn in one thread, with bounds: no client can take more of a worker than its place in a short queue.

uvicorn and h11 bound what a client may send. What they leave open is bounded here: how many connections there are at
once, and how long each may last.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from x2gofleet.errors import WorkerExhausted
from x2gofleet_workers.ssh.faults import describe, exhausted

MAX_CONNECTIONS = 256
CONNECTION_SECONDS = 10.0
MAX_HEADER_BYTES = 16 * 1024
_BACKLOG = 512
# asyncio takes in so many connections before it looks at any of them: by a few times as many there may be too many.
_ACCEPTED_AT_ONCE = 8
_STOP_SECONDS = 1

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger(__name__)


class Connections:
    """The open connections; where there are too many, one is cut: the oldest that has not sent a whole request yet.

    A client that means it sends its request at once, and is gone as soon as it has its answer.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._silent: dict[asyncio.Transport, None] = {}
        self._asking: dict[asyncio.Transport, None] = {}

    def add(self, transport: asyncio.Transport) -> None:
        """Take a connection in."""
        while len(self._silent) + len(self._asking) >= self._most:
            oldest = next(iter(self._silent or self._asking))
            self.discard(oldest)
            oldest.abort()
        self._silent[transport] = None

    def asks(self, transport: asyncio.Transport) -> None:
        """Note that a whole request came over a connection."""
        if transport in self._silent:
            del self._silent[transport]
            self._asking[transport] = None

    def discard(self, transport: asyncio.Transport) -> None:
        """Forget a connection that ended."""
        self._silent.pop(transport, None)
        self._asking.pop(transport, None)


class _Config(uvicorn.Config):
    """uvicorn's settings, with what the connections of one server share."""

    def __init__(self, application: Application, server_name: str, *, most: int, seconds: float) -> None:
        super().__init__(
            application,
            http=_BoundedProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            # It warns of each request that is none; an application logs its own failures.
            log_level=logging.CRITICAL,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            headers=[("Server", server_name)],
            backlog=_ACCEPTED_AT_ONCE,
            timeout_graceful_shutdown=_STOP_SECONDS,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        self.connections = Connections(most)
        self.connection_seconds = seconds


class _BoundedProtocol(H11Protocol):
    """A connection that is cut when its time is over, whatever it is doing."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._bounds = cast(_Config, self.config)
        self._bounds.connections.add(transport)
        self._end = self.loop.call_later(self._bounds.connection_seconds, transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None:
            self._bounds.connections.asks(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.cancel()
        self._bounds.connections.discard(self.transport)
        super().connection_lost(exc)


class HttpServer:
    """Serves an ASGI application on one address, in one thread, until it is stopped. Raises OSError.

    Each connection is for one request, which the application's ``Connection: close`` sees to.

    Args:
        server_name: what the header ``Server`` says.
        out_of_resources: is called when a client can't be taken in as this process has no file descriptor left.
        most: connections at once, ``seconds``: how long each may last.
    """

    def __init__(
        self,
        application: Application,
        *,
        address: str,
        port: int,
        server_name: str,
        out_of_resources: Callable[[WorkerExhausted], None],
        most: int = MAX_CONNECTIONS,
        seconds: float = CONNECTION_SECONDS,
    ) -> None:
        self._out_of_resources = out_of_resources
        self._socket = _listening(address, port)
        try:
            self._server = uvicorn.Server(_Config(application, server_name, most=most, seconds=seconds))
            self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
            self._runner.get_loop().set_exception_handler(self._failed)
        except BaseException:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="x2gofleet-http", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Serve no more; answers that are on their way have a second."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        else:
            self._socket.close()
            self._runner.close()

    def _run(self) -> None:
        with self._runner as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        while not self._server.started and not serving.done():
            await asyncio.sleep(0)
        if not serving.done() and self._socket.fileno() >= 0:
            # uvicorn's one setting is for both: how many wait to be taken in, and how many are taken in at once.
            self._socket.listen(_BACKLOG)
        await serving

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        exc = context.get("exception")
        lack = exhausted(exc) if exc is not None else None
        if lack is not None:
            # asyncio leaves clients waiting for a second, and tries again.
            self._out_of_resources(lack)
        elif not self._server.should_exit:
            log.error("%s: %s", context["message"], describe(exc) if exc is not None else "")


def _listening(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
