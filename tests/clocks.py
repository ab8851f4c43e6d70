"""A clock that counts what the code waits for in vain: the same on an idle machine and on one that does much else.

The reader's promises are about time: an answer, or CacheUnavailable, within 0.95 s. A stopwatch measures the machine,
too. This clock stands still while code runs and goes on by the timeout of each wait that ends in vain, and by what each
byte costs that a slow network brings: so it says how long a call would take that waits as long as it lets itself wait.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

from x2gofleet.connection import Breaker, aiolink, link, resolving


class WaitedClock:
    """What ``time.monotonic`` is for the library, while ``installed``.

    ``seconds_per_byte``: what a byte costs that the library receives, one at a time; 0 is a network of any speed.
    """

    def __init__(self) -> None:
        self._now = 1000.0
        self.seconds_per_byte = 0.0

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let so much time pass."""
        self._now += seconds

    def cost_of_a_byte(self, left: float | None) -> None:
        """Let the time pass that a byte takes. Raises TimeoutError where that is more than is ``left``."""
        if left is not None and left < self.seconds_per_byte:
            self.advance(left)
            raise TimeoutError("timed out")
        self.advance(self.seconds_per_byte)

    @contextmanager
    def measured(self, seconds: float) -> Iterator[None]:
        """Check that the block lets itself wait so many seconds in all; an event loop still takes in two bytes."""
        began = self._now
        yield
        waited = self._now - began
        assert waited == pytest.approx(seconds, abs=max(2 * self.seconds_per_byte, 1e-6)), f"waited {waited:.3f} s"

    def event_loop(self) -> asyncio.AbstractEventLoop:
        """Return an event loop whose time is this clock's."""
        return _Loop(self)

    @contextmanager
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[WaitedClock]:
        """Have the library use this clock, and sockets, events and event loops that move it."""
        with monkeypatch.context() as patch:
            for name, module in list(sys.modules.items()):
                if name.partition(".")[0] == "x2gofleet":
                    self._install_in(module, patch)
            patch.setattr(link, "_Socket", _counted(link._Socket, self))
            patch.setattr(link, "_TlsSocket", _counted(link._TlsSocket, self))
            patch.setattr(aiolink, "socket", _instead(socket, socket=_slow(self)))
            patch.setattr(resolving, "threading", _instead(threading, Event=lambda: _Event(self)))
            patch.setattr(asyncio, "new_event_loop", self.event_loop)
            patch.setitem(Breaker.__init__.__kwdefaults__, "clock", self)
            yield self

    def _install_in(self, module: ModuleType, patch: pytest.MonkeyPatch) -> None:
        if getattr(module, "monotonic", None) is time.monotonic:
            patch.setattr(module, "monotonic", self)
        if getattr(module, "time", None) is time:
            patch.setattr(module, "time", _instead(time, monotonic=self))


def _instead(module: ModuleType, **others: Any) -> Any:
    """Return a module with other things under some of its names."""
    changed = ModuleType(module.__name__)
    vars(changed).update(vars(module))
    vars(changed).update(others)
    return changed


def _counted(kind: Any, clock: WaitedClock) -> Any:
    class Counted(kind):  # type: ignore[misc]
        """A socket of the library that moves the clock by each timeout that passes."""

        def _count(self, call: Callable[..., Any], *args: Any) -> Any:
            try:
                return call(*args)
            except TimeoutError as exc:
                # One without a text is of the library: no time was left, and nothing was waited for.
                if exc.args:
                    clock.advance(self.gettimeout())
                raise

        def connect(self, *args: Any) -> None:
            self._count(super().connect, *args)

        def do_handshake(self, *args: Any) -> None:
            self._count(super().do_handshake, *args)

        def sendall(self, *args: Any) -> None:
            self._count(super().sendall, *args)

        def recv(self, *args: Any) -> bytes:
            if not clock.seconds_per_byte:
                return bytes(self._count(super().recv, *args))
            received = self._count(super().recv, 1)
            clock.cost_of_a_byte(self.gettimeout())
            return bytes(received)

        def recv_into(self, buffer: Any, *args: Any) -> int:
            if not clock.seconds_per_byte:
                return int(self._count(super().recv_into, buffer, *args))
            received = self._count(super().recv_into, buffer, 1)
            clock.cost_of_a_byte(self.gettimeout())
            return int(received)

    return Counted


def _slow(clock: WaitedClock) -> Any:
    class Slow(socket.socket):
        """A socket of an event loop, whose bytes cost what they cost."""

        def recv(self, size: int, *args: Any) -> bytes:
            received = super().recv(1 if clock.seconds_per_byte else size, *args)
            clock.cost_of_a_byte(None)
            return received

        def recv_into(self, buffer: Any, size: int = 0, *args: Any) -> int:
            received = super().recv_into(buffer, 1 if clock.seconds_per_byte else size, *args)
            clock.cost_of_a_byte(None)
            return received

    return Slow


class _Event(threading.Event):
    def __init__(self, clock: WaitedClock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        found = super().wait(timeout)
        if not found and timeout is not None:
            self._clock.advance(timeout)
        return found


class _Selector(selectors.DefaultSelector):
    clock: WaitedClock

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(timeout)
        if not found and timeout is not None and timeout > 0:
            self.clock.advance(timeout)
        return found


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: WaitedClock) -> None:
        selector = _Selector()
        selector.clock = clock
        self._waited = clock
        super().__init__(selector)

    def time(self) -> float:
        """Return the time of the clock."""
        return self._waited()
