"""The HTTP port of a worker under clients that are odd, slow or many: answers, bounds, and nothing odd in the log."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http import HTTPStatus
from urllib.parse import urlsplit

import psutil
import pytest
from x2gofleet_workers.endpoint import Answer, Endpoint, SharedAnswers
from x2gofleet_workers.http_server import (
    MAX_CONNECTIONS,
    MAX_HEADER_BYTES,
    Connections,
    HttpServer,
    Receive,
    Scope,
    Send,
)
from x2gofleet_workers.metrics import Format, PrometheusMetrics

from tests.waiting import HANG_SECONDS, wait_until

GOOD = b"GET /live HTTP/1.1\r\nHost: worker\r\n\r\n"
LARGER_THAN_ONE_READ = b"x" * (1024 * 1024)

ODD: dict[str, tuple[bytes, int]] = {
    "a header of 1 MiB": (b"GET /live HTTP/1.1\r\nHost: w\r\nX: " + LARGER_THAN_ONE_READ + b"\r\n\r\n", 400),
    "a path of 1 MiB": (b"GET /" + LARGER_THAN_ONE_READ + b" HTTP/1.1\r\nHost: w\r\n\r\n", 400),
    "no end of line": (b"GET " + b"/" * (2 * MAX_HEADER_BYTES), 400),
    "10 000 headers": (
        b"GET /live HTTP/1.1\r\nHost: w\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(10_000)) + b"\r\n",
        200,
    ),
    "100 000 headers": (
        b"GET /live HTTP/1.1\r\nHost: w\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(100_000)) + b"\r\n",
        400,
    ),
    "a non-ASCII header": ("GET /live HTTP/1.1\r\nHost: w\r\nX: häder ☃\r\n\r\n".encode(), 200),
    "a non-ASCII header name": ("GET /live HTTP/1.1\r\nHost: w\r\nhäder: x\r\n\r\n".encode(), 400),
    "a non-ASCII path": ("GET /lïve HTTP/1.1\r\nHost: w\r\n\r\n".encode(), 400),
    "a path that is not UTF-8": (b"GET /%ff%fe HTTP/1.1\r\nHost: w\r\n\r\n", 404),
    "NUL in a header": (b"GET /live HTTP/1.1\r\nHost: w\r\nX: a\0b\r\n\r\n", 400),
    "NUL in the path": (b"GET /li\0ve HTTP/1.1\r\nHost: w\r\n\r\n", 400),
    "an escaped NUL": (b"GET /live%00 HTTP/1.1\r\nHost: w\r\n\r\n", 404),
    "no host": (b"GET /live HTTP/1.1\r\n\r\n", 400),
    "no host, HTTP/1.0": (b"GET /live HTTP/1.0\r\n\r\n", 200),
    "two hosts": (b"GET /live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "an unknown method": (b"FOO /live HTTP/1.1\r\nHost: w\r\n\r\n", 405),
    "a method that is none": (b"G<T /live HTTP/1.1\r\nHost: w\r\n\r\n", 400),
    "CONNECT": (b"CONNECT w:1 HTTP/1.1\r\nHost: w\r\n\r\n", 405),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: w\r\n\r\n", 405),
    "an absolute path": (b"GET http://w/live HTTP/1.1\r\nHost: w\r\n\r\n", 404),
    "HTTP/0.9": (b"GET /live\r\n\r\n", 400),
    "HTTP/9.9": (b"GET /live HTTP/9.9\r\nHost: w\r\n\r\n", 200),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) + b"\r\n\r\n", 400),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400),
    "two lengths": (b"POST /live HTTP/1.1\r\nHost: w\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "an endless length": (b"POST /live HTTP/1.1\r\nHost: w\r\nContent-Length: " + b"9" * 400 + b"\r\n\r\n", 400),
    "a length below zero": (b"GET /live HTTP/1.1\r\nHost: w\r\nContent-Length: -1\r\n\r\n", 400),
    "a body that never comes": (b"POST /live HTTP/1.1\r\nHost: w\r\nContent-Length: 1000\r\n\r\n", 405),
    "a bad chunk": (b"POST /live HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "a wait for 100": (b"GET /live HTTP/1.1\r\nHost: w\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", 200),
    "an upgrade": (b"GET /live HTTP/1.1\r\nHost: w\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405),
    "an upgrade to HTTP/2": (b"GET /live HTTP/1.1\r\nHost: w\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 200),
    "formats that are none": (b"GET /metrics HTTP/1.1\r\nHost: w\r\nAccept: ,;;=,a/b;q=x;version=\r\n\r\n", 200),
    "a version that is none": (
        b"GET /metrics HTTP/1.1\r\nHost: w\r\nAccept: application/openmetrics-text;version=x\r\n\r\n",
        200,
    ),
    "a non-ASCII format": ("GET /metrics HTTP/1.1\r\nHost: w\r\nAccept: ☃;version=☃\r\n\r\n".encode(), 200),
    "two requests at once": (GOOD + GOOD, 200),
    "a request and garbage": (GOOD + b"\0\xff\r\n\r\n", 200),
}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint(PrometheusMetrics(), str, str)
    made.start()
    yield made
    made.stop()


def connect(url: str) -> socket.socket:
    place = urlsplit(url)
    return socket.create_connection((place.hostname or "", place.port or 0), timeout=HANG_SECONDS)


def rest_of(client: socket.socket) -> bytes:
    """Return all that comes until the connection ends, or is reset."""
    said = bytearray()
    try:
        while data := client.recv(65536):
            said += data
    except ConnectionError:
        pass
    return bytes(said)


def peer_is_gone(client: socket.socket) -> bool:
    """Whether this process has closed its end of a client's connection."""
    mine = client.getsockname()
    return not any(each.raddr == mine for each in psutil.Process().net_connections("tcp4"))


def status_of(url: str, request: bytes) -> int:
    """Return the status of the answer to raw bytes, 0 where the connection ends without one."""
    with connect(url) as client:
        try:
            client.sendall(request)
        except ConnectionError:
            # It has answered already.
            pass
        said = rest_of(client)
    found = re.match(rb"HTTP/1\.1 ([0-9]{3}) ", said)
    return int(found[1]) if found else 0


@pytest.mark.parametrize("name", ODD)
def test_odd_requests_have_an_answer_and_nothing_is_logged(
    name: str, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    request, status = ODD[name]
    with caplog.at_level(logging.INFO):
        # Where more is sent than is read, the reset may overtake the answer.
        assert status_of(endpoint.url, request) in ({status, 0} if len(request) > MAX_HEADER_BYTES else {status})
        assert status_of(endpoint.url, GOOD) == 200
    assert caplog.records == []


@pytest.mark.parametrize("sent", [b"", b"G", GOOD[:-2], GOOD, b"POST /live HTTP/1.1\r\nContent-Length: 9\r\n\r\nx"])
def test_clients_that_go_away_leave_nothing_in_the_log(
    sent: bytes, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(20):
            with connect(endpoint.url) as client:
                client.sendall(sent)
        assert status_of(endpoint.url, GOOD) == 200
    assert caplog.records == []


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", Format.TEXT),
        ("*/*", Format.TEXT),
        ("text/plain;version=0.0.4", Format.TEXT),
        ("application/openmetrics-text", Format.OPENMETRICS),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", Format.OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1;q=0.75", Format.TEXT),
        ("application/openmetrics-text;version=0.0.1,application/openmetrics-text;version=1.0.0", Format.OPENMETRICS),
        ("application/openmetrics-text;version=x", Format.TEXT),
    ],
)
def test_formats(accept: str, expected: Format) -> None:
    assert Format.of(accept) is expected


# Slow and many clients


@pytest.fixture
def bounded() -> Iterator[Callable[..., str]]:
    """Starts a server with bounds of its own; returns its URL."""
    with ExitStack() as stack:

        async def hello(scope: Scope, receive: Receive, send: Send) -> None:
            body = b"x" * int(scope["path"][1:] or 0)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
            await send({"type": "http.response.body", "body": body})

        def start(*, most: int = MAX_CONNECTIONS, seconds: float = HANG_SECONDS) -> str:
            server = HttpServer(
                hello,
                address="127.0.0.1",
                port=0,
                server_name="test",
                out_of_resources=lambda lack: None,
                most=most,
                seconds=seconds,
            )
            server.start()
            stack.callback(server.stop)
            return f"http://127.0.0.1:{server.port}"

        yield start


def test_a_client_that_sends_a_byte_now_and_then_is_cut_all_the_same(bounded: Callable[..., str]) -> None:
    url = bounded(seconds=1.0)
    over = threading.Event()
    with connect(url) as client, ThreadPoolExecutor(1) as pool:

        def trickle() -> None:
            try:
                client.sendall(b"GET /0 HTTP/1.1\r\nX: ")
                while not over.wait(0.05):
                    client.sendall(b"x")
            except ConnectionError:
                pass

        trickling = pool.submit(trickle)
        assert rest_of(client) == b""
        over.set()
        trickling.result()


def test_a_client_that_does_not_read_its_answer_is_cut(bounded: Callable[..., str]) -> None:
    url = bounded(seconds=1.0)
    with connect(url) as client:
        client.sendall(b"GET /100000000 HTTP/1.1\r\nHost: w\r\n\r\n")
        assert client.recv(1), "the answer begins"
        wait_until(lambda: peer_is_gone(client), "the server has closed its end")
        assert len(rest_of(client)) < 100_000_000
    assert status_of(url, b"GET /0 HTTP/1.1\r\nHost: w\r\n\r\n") == 200


class Transport(asyncio.Transport):
    """A connection that is only looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.is_cut = False

    def abort(self) -> None:
        self.is_cut = True


def test_clients_that_wait_for_an_answer_are_cut_after_those_that_have_not_asked() -> None:
    connections, clients = Connections(3), [Transport() for _ in range(7)]

    def cut_by(newcomer: int) -> list[int]:
        before = [client.is_cut for client in clients]
        connections.add(clients[newcomer])
        return [number for number, client in enumerate(clients) if client.is_cut and not before[number]]

    assert [cut_by(number) for number in range(3)] == [[], [], []]
    connections.asks(clients[0])
    assert cut_by(3) == [1]
    connections.asks(clients[1])
    connections.discard(clients[2])
    assert cut_by(4) == []
    for number in (3, 4):
        connections.asks(clients[number])
    assert cut_by(5) == [0], "all wait for answers"
    assert cut_by(6) == [5]


def test_one_client_too_many_ends_the_oldest(bounded: Callable[..., str]) -> None:
    url = bounded(most=4)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(url)) for _ in range(6)]
        assert [rest_of(client) for client in clients[:2]] == [b"", b""]
        assert status_of(url, b"GET /0 HTTP/1.1\r\nHost: w\r\n\r\n") == 200
        assert rest_of(clients[2]) == b""
        for client in clients[3:]:
            client.sendall(b"GET /0 HTTP/1.1\r\nHost: w\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_any_number_of_clients_costs_one_thread_and_a_bounded_number_of_descriptors(
    bounded: Callable[..., str],
) -> None:
    url = bounded(most=8)
    before = threading.active_count()
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(url)) for _ in range(100)]
        for client in clients[:-8]:
            assert rest_of(client) == b""
        assert threading.active_count() == before
        assert status_of(url, b"GET /0 HTTP/1.1\r\nHost: w\r\n\r\n") == 200


# Answers that are shared


def test_requests_that_wait_share_an_answer_and_later_ones_get_a_newer() -> None:
    made: list[str] = []

    def make(asked: tuple[str, Format]) -> Answer:
        made.append(asked[0])
        return Answer(HTTPStatus.OK, str(len(made)).encode())

    async def ask() -> tuple[set[bytes], bytes, bytes]:
        answers = SharedAnswers(make)
        key = ("/metrics", Format.TEXT)
        first = {answer.body for answer in await asyncio.gather(*(answers.get(key) for _ in range(100)))}
        other = (await answers.get(("/live", Format.TEXT))).body
        return first, other, (await answers.get(key)).body

    assert asyncio.run(ask()) == ({b"1"}, b"2", b"3")
    assert made == ["/metrics", "/live", "/metrics"]


def test_answers_that_cost_much_are_made_the_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    times = iter([0.0, 0.02, 5.0, 5.01])
    monkeypatch.setattr("x2gofleet_workers.endpoint.time.thread_time", lambda: next(times))

    async def ask() -> None:
        answers = SharedAnswers(lambda asked: Answer(HTTPStatus.OK, b""), max_share=0.1)
        sleep = asyncio.sleep

        async def noted(seconds: float) -> None:
            slept.append(seconds)
            await sleep(0)

        monkeypatch.setattr("x2gofleet_workers.endpoint.asyncio.sleep", noted)
        loop = asyncio.get_running_loop()
        now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: now)
        for _ in range(2):
            await answers.get(("/metrics", Format.TEXT))

    asyncio.run(ask())
    assert slept == [0.0, pytest.approx(0.18)]


def test_a_client_that_goes_away_takes_the_answer_from_nobody() -> None:
    async def ask() -> bytes:
        answers = SharedAnswers(lambda asked: Answer(HTTPStatus.OK, b"here"))
        key = ("/metrics", Format.TEXT)
        gone, stays = asyncio.create_task(answers.get(key)), asyncio.create_task(answers.get(key))
        await asyncio.sleep(0)
        gone.cancel()
        return (await stays).body

    assert asyncio.run(ask()) == b"here"
