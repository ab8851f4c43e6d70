"""However Redis fails, a lookup ends within a second: each kind of outage, blocking and in asyncio, with figures.

The promise is 1 s; a busy machine is given half a second more.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from x2gofleet.connection import resolving
from x2gofleet.errors import CacheUnavailable, Unavailable

sys.path.insert(0, str(Path(__file__).parents[1]))
from links import dripping, full_backlog, listening, silent

from .conftest import DIRECT

PROMISED_SECONDS = 1.0
ASSERTED_SECONDS = 1.5


@contextmanager
def nobody() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield int(free.getsockname()[1])


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


Outage = tuple[Callable[[], AbstractContextManager[int]], str, set[Unavailable]]

NO_ANSWER = {Unavailable.TIMEOUT}
GONE = {Unavailable.UNREACHABLE}
OUTAGES: dict[str, Outage] = {
    "refused": (nobody, "redis://127.0.0.1:{port}/0", GONE),
    "blackhole": (lambda: listening(silent), "redis://127.0.0.1:{port}/0", NO_ANSWER),
    "blackhole at login": (lambda: listening(silent), "redis://:p@127.0.0.1:{port}/1", NO_ANSWER),
    "blackhole at the TLS handshake": (lambda: listening(silent), "rediss://127.0.0.1:{port}/0", NO_ANSWER),
    "full backlog": (full_backlog, "redis://127.0.0.1:{port}/0", NO_ANSWER),
    "one byte per 0.4 s": (
        lambda: listening(dripping(b"$100000\r\n" + b"x" * 100, every_seconds=0.4)),
        "redis://127.0.0.1:{port}/0",
        NO_ANSWER,
    ),
    "one byte per 0.4 s at login": (
        lambda: listening(dripping(b"+" + b"x" * 100, every_seconds=0.4)),
        "redis://:p@127.0.0.1:{port}/0",
        NO_ANSWER,
    ),
    "one byte per 0.4 s in the TLS handshake": (
        lambda: listening(dripping(b"\x16\x03\x03\x40\x00" + b"\x02" * 100, every_seconds=0.4)),
        "rediss://127.0.0.1:{port}/0",
        NO_ANSWER | {Unavailable.TLS},
    ),
    "half of a reply": (lambda: listening(half_a_reply_then_silence), "redis://127.0.0.1:{port}/0", NO_ANSWER),
    "ends the connection": (lambda: listening(closing), "redis://127.0.0.1:{port}/0", GONE),
    "resets the connection": (lambda: listening(resetting), "redis://127.0.0.1:{port}/0", GONE),
}

CALLS: dict[str, Callable[[Any], Any]] = {
    "list_sessions": lambda cache: cache.list_sessions(profile_name="mate", username="alice"),
    "find_sessions": lambda cache: cache.find_sessions(username="alice"),
}


@pytest.fixture(params=DIRECT)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def lasts(cache: Any, call: Callable[[Any], Any]) -> tuple[float, CacheUnavailable]:
    started = time.monotonic()
    with pytest.raises(CacheUnavailable) as caught:
        call(cache)
    return time.monotonic() - started, caught.value


def check(what: str, kind: str, cache: Any, call: Callable[[Any], Any], reasons: set[Unavailable]) -> None:
    seconds, told = lasts(cache, call)
    print(f"{what:42} {kind:16} {seconds:6.3f} s  {told.reason}: {told}")
    assert told.reason in reasons, told
    assert seconds <= ASSERTED_SECONDS, f"{what}: {seconds:.3f} s where {PROMISED_SECONDS:g} s are promised"
    at_once = []
    for _ in range(5):
        seconds, told = lasts(cache, call)
        assert told.reason is Unavailable.BREAKER
        at_once.append(seconds)
    assert min(at_once) < 0.05, "nobody waits while the breaker is open"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("outage", OUTAGES)
def test_an_outage(outage: str, call: Callable[[Any], Any], kind: str) -> None:
    begin, url, reasons = OUTAGES[outage]
    with begin() as port:
        cache = DIRECT[kind](url.format(port=port), "test")
        try:
            check(outage, kind, cache, call, reasons)
        finally:
            cache.close()


def test_a_name_that_is_never_resolved(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()

    def hang(*_: Any, **__: Any) -> list[Any]:
        let_go.wait(20)
        raise OSError("let go")

    monkeypatch.setattr(resolving.socket, "getaddrinfo", hang)
    cache = DIRECT[kind]("redis://redis.never-resolved.example/0", "test")
    try:
        check("a name that is never resolved", kind, cache, CALLS["list_sessions"], {Unavailable.NAME})
    finally:
        let_go.set()
        cache.close()


def test_a_name_that_does_not_exist(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(resolving.socket, "getaddrinfo", unknown)
    cache = DIRECT[kind]("redis://redis.unknown.example/0", "test")
    try:
        check("a name that does not exist", kind, cache, CALLS["list_sessions"], {Unavailable.NAME})
    finally:
        cache.close()
