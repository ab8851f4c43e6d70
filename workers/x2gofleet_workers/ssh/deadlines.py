"""deadlines: one point in time at which a whole poll ends, enforced from outside by shutting its socket down.

Some of paramiko's own waits have no timeout, so a thread watches the deadlines of all running polls.
"""

from __future__ import annotations

import heapq
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from x2gofleet.errors import DeadlineExceeded

_IDLE_SECONDS = 5.0


def shut(sock: socket.socket) -> None:
    """Shut a socket down, which wakes whoever waits for it; its descriptor stays."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class Deadline:
    """A point in monotonic time at which a poll ends, whatever it is doing."""

    def __init__(self, seconds: float, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._monotonic = monotonic
        self._at = monotonic() + seconds
        self._cancelled = False
        self._sock: socket.socket | None = None

    def watch(self, sock: socket.socket) -> None:
        """Have ``cancel`` shut this socket down."""
        self._sock = sock
        if self._cancelled:
            shut(sock)

    def cancel(self) -> None:
        """Let the deadline pass now, and wake whoever waits for the socket."""
        self._cancelled, self._at = True, self._monotonic()
        if self._sock is not None:
            shut(self._sock)

    @property
    def at(self) -> float:
        """Monotonic time of the deadline."""
        return self._at

    @property
    def is_watching(self) -> bool:
        """Whether there is a socket that ``cancel`` would shut down."""
        return self._sock is not None

    def left(self) -> float:
        """Seconds left; raises DeadlineExceeded when there are none."""
        left = self._at - self._monotonic()
        if left <= 0:
            raise self.exceeded()
        return left

    def passed(self) -> bool:
        """Whether the deadline has passed."""
        return self._monotonic() >= self._at

    def exceeded(self) -> DeadlineExceeded:
        """Return the error to raise when the deadline has passed."""
        return DeadlineExceeded(f"no complete answer within {self.seconds:g} s")


class _Guard:
    """The deadline of one poll on one socket; released when the poll ends in time."""

    __slots__ = ("at", "sock")

    def __init__(self, at: float, sock: socket.socket) -> None:
        self.at = at
        self.sock: socket.socket | None = sock

    def cut(self) -> None:
        sock, self.sock = self.sock, None
        if sock is not None:
            shut(sock)


class DeadlineWatch:
    """Shuts sockets down whose deadline has passed, in one thread that ends when there is nothing to watch."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._condition = threading.Condition()
        self._heap: list[tuple[float, int, _Guard]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None

    @contextmanager
    def guarded(self, sock: socket.socket, deadline: Deadline, *, grace_seconds: float = 0.0) -> Iterator[None]:
        """Shut ``sock`` down if the block still runs ``grace_seconds`` after the deadline."""
        guard = _Guard(deadline.at + grace_seconds, sock)
        self._add(guard)
        try:
            yield
        finally:
            guard.sock = None

    def _add(self, guard: _Guard) -> None:
        with self._condition:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="x2gofleet-deadlines", daemon=True)
                thread.start()
                self._thread = thread
            heapq.heappush(self._heap, (guard.at, next(self._order), guard))
            if self._heap[0][2] is guard:
                self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                wait_seconds = self.cut_passed()
                if wait_seconds is not None:
                    self._condition.wait(wait_seconds)
                elif not self._condition.wait(_IDLE_SECONDS) and not self._heap:
                    self._thread = None
                    return

    def cut_passed(self) -> float | None:
        """Shut down what is due; return the seconds until the next deadline, None where there is none."""
        with self._condition:
            while self._heap:
                at, _, guard = self._heap[0]
                if guard.sock is not None and (left := at - self._monotonic()) > 0:
                    return left
                heapq.heappop(self._heap)
                guard.cut()
        return None
