"""However Redis fails, a lookup ends within 0.95 s: each kind of outage, blocking and in asyncio.

The time is what a lookup lets itself wait; ``make bench`` measures it with a stopwatch.
"""

from __future__ import annotations

import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from x2gofleet.connection import resolving
from x2gofleet.errors import CacheUnavailable, Unavailable

sys.path.insert(0, str(Path(__file__).parents[1]))
from links import answering, dripping, full_backlog, listening, refusing, silent

from tests.clocks import WaitedClock
from tests.waiting import HANG_SECONDS

from .conftest import DIRECT

LOOKUP_SECONDS = 0.95
# Connecting has 0.25 s, and what follows 0.5 s more.
CONNECT_SECONDS = 0.25
EXCHANGE_SECONDS = 0.75


def closing(peer: socket.socket) -> None:
    peer.recv(4096)
    peer.shutdown(socket.SHUT_RDWR)


def resetting(peer: socket.socket) -> None:
    peer.recv(4096)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    peer.close()


def half_a_reply_then_silence(peer: socket.socket) -> None:
    while peer.recv(4096):
        peer.sendall(b"*2\r\n$1\r\n1\r\n")


# How it begins, the URL, what is told, the seconds that are waited, and those that a byte takes.
Outage = tuple[Callable[[], AbstractContextManager[int]], str, set[Unavailable], float, float]

NO_ANSWER = {Unavailable.TIMEOUT}
GONE = {Unavailable.UNREACHABLE}
PLAIN, LOGIN, TLS = "redis://127.0.0.1:{port}/0", "redis://:p@127.0.0.1:{port}/1", "rediss://127.0.0.1:{port}/0"
OUTAGES: dict[str, Outage] = {
    "refused": (refusing, PLAIN, GONE, 0, 0),
    "blackhole": (lambda: listening(silent), PLAIN, NO_ANSWER, EXCHANGE_SECONDS, 0),
    "blackhole at login": (lambda: listening(silent), LOGIN, NO_ANSWER, EXCHANGE_SECONDS, 0),
    "blackhole at the TLS handshake": (lambda: listening(silent), TLS, NO_ANSWER, CONNECT_SECONDS, 0),
    "full backlog": (full_backlog, PLAIN, NO_ANSWER, CONNECT_SECONDS, 0),
    "one byte per 0.1 s": (
        lambda: listening(answering(b"$100000\r\n" + b"x" * 1000)),
        PLAIN,
        NO_ANSWER,
        EXCHANGE_SECONDS,
        0.1,
    ),
    "one byte per 0.1 s at login": (
        lambda: listening(answering(b"+" + b"x" * 1000)),
        LOGIN,
        NO_ANSWER,
        EXCHANGE_SECONDS,
        0.1,
    ),
    # TLS without asyncio reads below Python's sockets: these bytes take their time.
    "one byte per 0.1 s in the TLS handshake": (
        lambda: listening(dripping(b"\x16\x03\x03\x40\x00" + b"\x02" * 1000, every_seconds=0.1)),
        TLS,
        NO_ANSWER | {Unavailable.TLS},
        CONNECT_SECONDS,
        0.1,
    ),
    "half of a reply": (lambda: listening(half_a_reply_then_silence), PLAIN, NO_ANSWER, EXCHANGE_SECONDS, 0),
    "ends the connection": (lambda: listening(closing), PLAIN, GONE, 0, 0),
    "resets the connection": (lambda: listening(resetting), PLAIN, GONE, 0, 0),
}

CALLS: dict[str, Callable[[Any], Any]] = {
    "list_sessions": lambda cache: cache.list_sessions(profile_name="mate", username="alice"),
    "find_sessions": lambda cache: cache.find_sessions(username="alice"),
}


@pytest.fixture(params=DIRECT)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[WaitedClock]:
    with WaitedClock().installed(monkeypatch) as installed:
        yield installed


def told(cache: Any, call: Callable[[Any], Any]) -> CacheUnavailable:
    with pytest.raises(CacheUnavailable) as caught:
        call(cache)
    return caught.value


def check(
    clock: WaitedClock, cache: Any, call: Callable[[Any], Any], reasons: set[Unavailable], seconds: float
) -> None:
    assert seconds <= LOOKUP_SECONDS
    with clock.measured(seconds):
        assert told(cache, call).reason in reasons
    # Nobody waits while the breaker is open.
    with clock.measured(0):
        assert {told(cache, call).reason for _ in range(5)} == {Unavailable.BREAKER}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("outage", OUTAGES)
def test_an_outage(outage: str, call: Callable[[Any], Any], kind: str, clock: WaitedClock) -> None:
    begin, url, reasons, seconds, clock.seconds_per_byte = OUTAGES[outage]
    with begin() as port:
        cache = DIRECT[kind](url.format(port=port), "test")
        try:
            check(clock, cache, call, reasons, seconds)
        finally:
            cache.close()


def test_a_name_that_is_never_resolved(kind: str, clock: WaitedClock, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()

    def hang(*_: Any, **__: Any) -> list[Any]:
        let_go.wait(HANG_SECONDS)
        raise OSError("let go")

    monkeypatch.setattr(resolving.socket, "getaddrinfo", hang)
    # A name of this test's own: one that is being resolved already is not asked for again.
    cache = DIRECT[kind](f"redis://{uuid.uuid4().hex}.never-resolved.example/0", "test")
    try:
        check(clock, cache, CALLS["list_sessions"], {Unavailable.NAME}, CONNECT_SECONDS)
    finally:
        let_go.set()
        cache.close()


def test_a_name_that_does_not_exist(kind: str, clock: WaitedClock, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(resolving.socket, "getaddrinfo", unknown)
    cache = DIRECT[kind]("redis://redis.unknown.example/0", "test")
    try:
        check(clock, cache, CALLS["list_sessions"], {Unavailable.NAME}, 0)
    finally:
        cache.close()
