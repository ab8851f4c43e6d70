"""A wire to a Redis that a test can cut, heal, and plug into another one."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.waiting import HANG_SECONDS


@dataclass(eq=False)
class Link:
    """One connection through the proxy, and what is held back in each direction."""

    client: socket.socket
    server: socket.socket
    held: dict[socket.socket, bytearray] = field(default_factory=dict)
    ended: set[socket.socket] = field(default_factory=set)

    def other(self, side: socket.socket) -> socket.socket:
        return self.server if side is self.client else self.client


class Wire:
    """A TCP proxy to a unix socket that can be cut in three ways.

    ``held``: as a network that is cut: nothing passes, and what was sent comes through after the heal. ``swallowed``:
    what is sent is lost for good, with its connection. ``refused``: connections are reset and new ones refused.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        # Bound and never listening: keeps the port while nothing listens on it.
        self._reserved = self._bound()
        self._listener: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._links: dict[socket.socket, Link] = {}
        self._lost: set[Link] = set()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="test-wire", daemon=True)
        self._mode = self._wanted = ""
        self._changed = threading.Event()
        self.held_writes = 0
        """Writes of snapshots that were sent while held, and delivered after the heal."""

    def _bound(self) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(self._reserved.getsockname() if hasattr(self, "_reserved") else ("127.0.0.1", 0))
        return sock

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._reserved.getsockname()[1]}/0"

    def set(self, mode: str) -> None:
        """Cut the wire (``held``, ``swallowed``, ``refused``) or heal it (empty); returns when it is so."""
        self._wanted = mode
        self._changed.clear()
        self._wake.send(b"x")
        assert self._changed.wait(10)

    def __enter__(self) -> Self:
        self._listen()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wanted = "over"
        self._wake.send(b"x")
        self._thread.join(HANG_SECONDS)
        for each in (self._reserved, self._wake, self._woken):
            each.close()

    def _listen(self) -> None:
        self._listener = self._bound()
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def _refuse(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _run(self) -> None:
        while self._mode != "over":
            for key, _ in self._selector.select():
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if ready is self._woken:
                    self._woken.recv(64)
                    self._become(self._wanted)
                elif ready is self._listener:
                    self._accept()
                elif ready in self._links:
                    self._pass(ready)
        self._refuse()
        for link in set(self._links.values()):
            self._end(link)
        self._selector.close()

    def _become(self, mode: str) -> None:
        if mode == "refused":
            self._refuse()
            for link in set(self._links.values()):
                self._end(link)
        elif self._listener is None and mode == "":
            self._listen()
        self._mode = mode
        if mode == "":
            for link in set(self._links.values()):
                self._deliver(link)
        self._changed.set()

    def _accept(self) -> None:
        assert self._listener is not None
        client, server = self._listener.accept()[0], socket.socket(socket.AF_UNIX)
        try:
            server.connect(str(self.target))
        except OSError:
            client.close()
            server.close()
            return
        link = Link(client, server, {client: bytearray(), server: bytearray()})
        for side in (client, server):
            self._links[side] = link
            self._selector.register(side, selectors.EVENT_READ)

    def _pass(self, ready: socket.socket) -> None:
        link = self._links[ready]
        try:
            data = ready.recv(1 << 20)
        except OSError:
            data = b""
        if self._mode == "swallowed":
            self._lost.add(link)
        if link in self._lost:
            if not data:
                self._end(link)
            return
        if self._mode == "held":
            self.held_writes += ready is link.client and b"polled_at" not in data and data.count(b"EVALSHA")
            link.held[ready] += data
            if not data:
                # Whoever sent it has gone; what it sent is still under way.
                link.ended.add(ready)
                self._selector.unregister(ready)
            return
        if not data or not self._send(link.other(ready), data):
            self._end(link)

    def _send(self, side: socket.socket, data: bytes) -> bool:
        try:
            side.sendall(data)
        except OSError:
            return False
        return True

    def _deliver(self, link: Link) -> None:
        for side, data in link.held.items():
            self._send(link.other(side), bytes(data))
            data.clear()
        if link.ended:
            self._end(link)

    def _end(self, link: Link) -> None:
        for side in (link.client, link.server):
            self._links.pop(side, None)
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(side)
            side.close()
