"""connection: the SSH connection of one target, which both of its lanes use and one of them opens."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from x2gofleet.errors import ConnectionLost
from x2gofleet_workers.polling.context import NotOwnerError, PollContext
from x2gofleet_workers.ssh import Deadline, Endpoint, SshConnection

RECYCLE_SECONDS = 3600.0
# The longest deadline of a slow poll.
LONGEST_HELD_SECONDS = 900.0


class Connector(Protocol):
    """Opens connections; SshClient is one."""

    def open(self, endpoint: Endpoint, deadline: Deadline) -> SshConnection:
        """Connect, verify the host key, log in. Raises a PollError."""


class TargetConnection:
    """Holds at most one connection, opened when first needed and again when it is lost or old. Thread-safe."""

    def __init__(self, context: PollContext, connector: Connector) -> None:
        self._context, self._connector = context, connector
        self._lock = threading.Lock()
        self._current: SshConnection | None = None
        self._recycle_at = 0.0
        self._slow_polls = 0
        self._closed = False

    @property
    def is_usable(self) -> bool:
        """Whether a poll can be made without connecting first."""
        current = self._current
        if current is None or not current.alive:
            return False
        # An old one is not closed under a slow poll that has begun on it, unless they never end.
        late = self._context.monotonic() - self._recycle_at
        return late <= 0 or (self._slow_polls > 0 and late <= LONGEST_HELD_SECONDS)

    @property
    def is_closed(self) -> bool:
        """Whether ``refuse`` was called."""
        return self._closed

    def check_open(self) -> None:
        """Raise NotOwnerError after ``refuse``."""
        if self._closed:
            raise NotOwnerError(self._context.target.id)

    def current(self) -> SshConnection:
        """Return the connection as it is; raises ConnectionLost where there is none."""
        current = self._current
        if current is None:
            raise ConnectionLost(f"there is no connection to {self._context.target.server} now")
        return current

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the connection for one poll of the lane that does not open it, however old it becomes."""
        with self._lock:
            self._slow_polls += 1
        try:
            yield
        finally:
            with self._lock:
                self._slow_polls -= 1

    def opened(self, deadline: Deadline) -> SshConnection:
        """Return the connection, a new one where there is none that is usable. Raises a PollError.

        One caller at a time.
        """
        if not self.is_usable:
            self.drop()
        current = self._current
        return current if current is not None else self._open(deadline)

    def _open(self, deadline: Deadline) -> SshConnection:
        context = self._context
        connection = self._connector.open(context.target.endpoint, deadline)
        with self._lock:
            if self._closed:
                connection.close()
                raise ConnectionLost("this worker is stopping")
            self._current = connection
            self._recycle_at = context.monotonic() + RECYCLE_SECONDS * random.uniform(0.75, 1.0)
        context.counters.connections += 1
        context.metrics.connected()
        return connection

    def drop(self) -> None:
        """Close the connection; the next poll opens a new one."""
        with self._lock:
            current, self._current = self._current, None
        if current is not None:
            current.close()

    def refuse(self) -> None:
        """Open no connection any more, and let no poll begin; the present one stays until ``drop``."""
        self._closed = True
