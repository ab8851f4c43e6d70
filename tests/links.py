"""What the tests of links share: both kinds of links behind one blocking method, and servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio

from tests.waiting import HANG_SECONDS, PATIENT
from x2gofleet.connection import Command, async_link_from_url, async_link_of, link_from_url, link_of, node

KINDS = ("Link", "AsyncLink")
_MAKE: dict[str, Callable[..., Any]] = {
    "Link": link_from_url,
    "AsyncLink": async_link_from_url,
    "redis.Redis": lambda url, **options: link_of(redis.Redis.from_url(url, **options)),
    "redis.asyncio.Redis": lambda url, **options: async_link_of(redis.asyncio.Redis.from_url(url, **options)),
}


class AnyLink:
    """A Link, or an AsyncLink run in an event loop of its own in the calling thread, from a URL or over a client.

    One from a URL that is not ``patient`` has the timeouts that links have by themselves.
    """

    def __init__(self, kind: str, url: str, *, patient: bool = True, **settings: Any) -> None:
        if patient and kind in KINDS:
            settings = {**PATIENT, **settings}
        # As asyncio has it now: a clock may have its own installed.
        is_async = kind in ("AsyncLink", "redis.asyncio.Redis")
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop) if is_async else None
        self.link: Any = _MAKE[kind](url, **settings)

    def exchange(self, commands: Sequence[Command], *, seconds: float | None = None) -> list[Any]:
        """Exchange, within ``seconds`` from now."""
        deadline = None if seconds is None else node.time.monotonic() + seconds
        replies: list[Any] = self.run(self.link.exchange(commands, deadline=deadline))
        return replies

    def run(self, result: Any) -> Any:
        """Return a result, awaited where that is needed."""
        return self._runner.run(_awaited(result)) if self._runner else result

    def keys(self, match: str) -> set[bytes]:
        """Return what SCAN finds."""
        return set(self._runner.run(_listed(self.link.scan(match))) if self._runner else self.link.scan(match))

    def close(self) -> None:
        """Close the link and its event loop."""
        if self._runner:
            self._runner.run(self.link.aclose())
            self._runner.close()
        else:
            self.link.close()

    def __enter__(self) -> AnyLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _awaited(result: Any) -> Any:
    return await result


async def _listed(found: Any) -> list[bytes]:
    return [key async for key in found]


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server on loopback that gives each connection to ``serve`` in a thread; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    peers: list[socket.socket] = []

    def run(peer: socket.socket) -> None:
        with contextlib.suppress(OSError):
            serve(peer)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                peers.append(peer)
                threading.Thread(target=run, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(HANG_SECONDS)
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            peer.close()


@contextmanager
def refusing() -> Iterator[int]:
    """A TCP port of loopback that refuses connections, and that nobody else can listen on meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


def silent(peer: socket.socket) -> None:
    """Read and never answer."""
    while peer.recv(4096):
        pass


def answering(reply: bytes) -> Callable[[socket.socket], None]:
    """Return a server that answers whatever it is sent by ``reply``, the first time, and then is silent."""

    def serve(peer: socket.socket) -> None:
        peer.recv(65_536)
        peer.sendall(reply)
        silent(peer)

    return serve


@contextmanager
def full_backlog() -> Iterator[int]:
    """A TCP port that lets no further connection in: its queue is full and nobody accepts."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    waiting: list[socket.socket] = []
    try:
        for _ in range(8):
            each = socket.socket()
            waiting.append(each)
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        yield int(listener.getsockname()[1])
    finally:
        for each in (*waiting, listener):
            each.close()


def dripping(reply: bytes, *, every_seconds: float) -> Callable[[socket.socket], None]:
    """Return a server that answers each request by one byte of ``reply`` at a time, over and over."""

    def serve(peer: socket.socket) -> None:
        peer.recv(65_536)
        while True:
            for byte in reply:
                peer.sendall(bytes([byte]))
                time.sleep(every_seconds)

    return serve
