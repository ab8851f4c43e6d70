"""endpoint: a worker's metrics and health over HTTP: /metrics, /live, /ready."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from x2gofleet.errors import WorkerExhausted
from x2gofleet_workers.health import one_line, url_place
from x2gofleet_workers.http_server import HttpServer, Receive, Scope, Send
from x2gofleet_workers.metrics import Format, MetricsError, PrometheusMetrics

SERVER_NAME = "x2gofleet-worker"
# Of the time of one processor.
MAX_SHARE = 0.1
_METHODS = ("GET", "HEAD")
_TEXT = "text/plain; charset=utf-8"

log = logging.getLogger(__name__)

_Check = tuple[Callable[[], str], Callable[[], Sequence[str]]]
_Asked = tuple[str, Format]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client gets."""

    status: HTTPStatus
    body: bytes
    content_type: str = _TEXT


class Endpoint:
    """Serves until it is stopped; ``live`` and ``ready`` return what is wrong, "" where nothing is.

    ``warnings`` returns what /ready adds, a line each, without effect on its status. Port 0 takes a free one.
    ``out_of_resources`` is called when a client can't be taken in for lack of file descriptors. Raises MetricsError
    where it can't listen.
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
        out_of_resources: Callable[[WorkerExhausted], None] = lambda lack: None,
    ) -> None:
        self._metrics = metrics
        self._checks: dict[str, _Check] = {"/live": (live, tuple), "/ready": (ready, warnings)}
        self._answers = SharedAnswers(self._answer)
        self._address = address
        try:
            self._server = HttpServer(
                self._serve,
                address=address,
                port=port,
                server_name=SERVER_NAME,
                out_of_resources=out_of_resources,
            )
        except OSError as exc:
            raise MetricsError(f"metrics can't be served on {url_place(address, port)}: {exc.strerror or exc}") from exc

    @property
    def url(self) -> str:
        """Where it listens, without a path: ``http://127.0.0.1:9464``."""
        return f"http://{url_place(self._address, self._server.port)}"

    def start(self) -> None:
        """Begin to serve in a thread."""
        self._server.start()

    def stop(self) -> None:
        """Serve no more."""
        self._server.stop()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        path = scope["path"]
        allow = []
        if scope["method"] not in _METHODS:
            answer = Answer(HTTPStatus.METHOD_NOT_ALLOWED, _lines(f"there are {' and '.join(_METHODS)}"))
            allow = [(b"allow", b", ".join(method.encode() for method in _METHODS))]
        elif path != "/metrics" and path not in self._checks:
            answer = Answer(HTTPStatus.NOT_FOUND, _lines("there are /metrics, /live and /ready"))
        else:
            accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
            answer = await self._answers.get((path, Format.of(accept.decode("latin-1"))))
        headers = [
            (b"content-type", answer.content_type.encode()),
            (b"content-length", str(len(answer.body)).encode()),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
            *allow,
        ]
        await send({"type": "http.response.start", "status": int(answer.status), "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    def _answer(self, asked: _Asked) -> Answer:
        path, form = asked
        try:
            if path == "/metrics":
                return Answer(HTTPStatus.OK, *self._metrics.exposition(form))
            check, warnings = self._checks[path]
            problem = check()
            status = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
            return Answer(status, _lines(problem or "ok", *(f"warning: {each}" for each in warnings())))
        except Exception as exc:
            log.exception("%s could not be answered", path)
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, _lines(f"the worker failed: {type(exc).__name__}"))


class SharedAnswers:
    """Makes answers for any number of requests in a bounded share of the processor's time. For one event loop.

    A request gets an answer that was begun after the request came, as all others do that wait for the same.
    """

    def __init__(self, make: Callable[[_Asked], Answer], *, max_share: float = MAX_SHARE) -> None:
        self._make, self._idle_factor = make, 1 / max_share - 1
        self._waiting: dict[_Asked, asyncio.Task[Answer]] = {}
        self._turn = asyncio.Lock()
        self._next_at = 0.0

    async def get(self, asked: _Asked) -> Answer:
        """Return an answer."""
        task = self._waiting.get(asked)
        if task is None:
            task = self._waiting[asked] = asyncio.create_task(self._made(asked))
        return await asyncio.shield(task)

    async def _made(self, asked: _Asked) -> Answer:
        loop = asyncio.get_running_loop()
        async with self._turn:
            await asyncio.sleep(max(0.0, self._next_at - loop.time()))
            # Requests that come from here on get one that is newer.
            del self._waiting[asked]
            began = time.thread_time()
            answer = self._make(asked)
            self._next_at = loop.time() + (time.thread_time() - began) * self._idle_factor
        return answer


def _lines(*texts: str) -> bytes:
    return "".join(f"{one_line(text)}\n" for text in texts).encode("utf-8", "replace")
