"""live_agent: calls of x2gobroker's own agents, which have no time limit of their own, within two.

The broker has one thread for all logins. A call runs in a thread of its own. One that does not end in time is left
behind and its SSH connection closed, and its host is not asked again before it has ended, nor for a while: a hung
server costs one login the limit. All calls of one request of a client share a second limit.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

QUIET_SECONDS = 30.0
_SIGNAL_SECONDS = 0.5


class AgentError(Exception):
    """A call of a live agent failed: which agent, and how."""


class Unanswered(AgentError):
    """A live agent did not answer in time, or is not asked because it lately did not."""


def described(exc: BaseException) -> str:
    """Return the type and text of an exception, whose ``__str__`` may fail too; the text alone of an AgentError."""
    try:
        text = str(exc)
    except Exception:
        text = "(its text can't be read)"
    return text if isinstance(exc, AgentError) else f"{type(exc).__name__}: {text}"


class _Call(threading.Thread):
    """One call: what it returned or raised, and the connections that it opened."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(name="x2gofleet-live-agent", daemon=True)
        self._function = function
        self.value: Any = None
        self.error: BaseException | None = None
        self.quiet_until = 0.0
        self._lock = threading.Lock()
        self._abandoned = False
        self._connections: list[Any] = []

    def run(self) -> None:
        try:
            self.value = self._function()
        # The exceptions of x2gobroker derive from BaseException.
        except BaseException as exc:
            self.error = exc

    def opens(self, connection: Any) -> None:
        """Close a connection with the call; raises Unanswered where the call was left behind already."""
        with self._lock:
            if connection not in self._connections:
                self._connections.append(connection)
            abandoned = self._abandoned
        if abandoned:
            _close([connection])
            raise Unanswered("the call was left behind while it connected")

    def abandon(self) -> None:
        """Close what the call opened, so that it ends also where the server is gone without a word."""
        with self._lock:
            self._abandoned = True
            connections = list(self._connections)
        if connections:
            # Closing waits for the connection's own thread.
            threading.Thread(target=_close, args=(connections,), name="x2gofleet-close-agent", daemon=True).start()


def _wait(call: _Call, seconds: float) -> None:
    """Wait for the end of a call; a signal that comes just as a wait begins is noticed when that wait ends."""
    ends = time.monotonic() + seconds
    while call.is_alive() and (left := ends - time.monotonic()) > 0:
        call.join(min(left, _SIGNAL_SECONDS))


def _close(connections: list[Any]) -> None:
    for connection in connections:
        try:
            connection.close()
        except Exception:  # it is closed, or is about to be
            pass


@dataclass(frozen=True, slots=True)
class _Request:
    pid: int
    ends: float


class LiveAgents:
    """Runs calls of live agents within ``limit_seconds`` each; for one thread that asks, as x2gobroker has.

    ``request_seconds`` is the limit of all calls within one ``request()`` together: each call gets half of what is left
    of it at most, so that the last agent is asked too.
    """

    def __init__(
        self, limit_seconds: float, request_seconds: float, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit_seconds = limit_seconds
        self.request_seconds = request_seconds
        self._monotonic = monotonic
        self._request: ContextVar[_Request | None] = ContextVar("x2gofleet_broker_request", default=None)
        self._hung: dict[Hashable, _Call] = {}
        self._pid = os.getpid()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Let all calls until the end share ``request_seconds``; within another request those of that one."""
        outer = self._request.get()
        if outer is not None and outer.pid == os.getpid():
            yield
            return
        token = self._request.set(_Request(os.getpid(), self._monotonic() + self.request_seconds))
        try:
            yield
        finally:
            self._request.reset(token)

    def _limit(self) -> float:
        request = self._request.get()
        # x2gobroker forks to take a key back later: that is no part of the login.
        if request is None or request.pid != os.getpid():
            return self.limit_seconds
        return min(self.limit_seconds, max(0.0, request.ends - self._monotonic()) / 2)

    def call(self, host: Hashable, function: Callable[[], T]) -> T:
        """Return what ``function`` returns. Within another call it runs there, as part of that.

        Raises Unanswered where it takes longer than the limit, and at once where ``host`` did so lately; AgentError for
        whatever ``function`` raises, but KeyboardInterrupt, which ends the program.
        """
        if isinstance(threading.current_thread(), _Call):
            return function()
        self._refuse_hung(host)
        limit = self._limit()
        call = _Call(function)
        call.start()
        _wait(call, limit)
        if call.is_alive():
            # A call that the request's limit cut short by more than half says little of the host.
            call.quiet_until = self._monotonic() + QUIET_SECONDS if limit >= self.limit_seconds / 2 else 0.0
            self._hung[host] = call
            call.abandon()
            raise Unanswered(f"{host} did not answer within {limit:.3g} s")
        if isinstance(call.error, KeyboardInterrupt):
            raise call.error
        if call.error is not None:
            raise AgentError(f"{host} failed: {described(call.error)}") from call.error
        value: T = call.value
        return value

    def _refuse_hung(self, host: Hashable) -> None:
        if self._pid != os.getpid():
            self._pid, self._hung = os.getpid(), {}
        hung = self._hung.get(host)
        if hung is None:
            return
        if hung.is_alive() or self._monotonic() < hung.quiet_until:
            raise Unanswered(f"{host} is not asked: it did not answer lately within {self.limit_seconds:.3g} s")
        del self._hung[host]


def closed_with_its_call(original: Callable[..., Any]) -> Callable[..., Any]:
    """Stand in for ``paramiko.SSHClient.connect``: the connection of a call that is left behind is closed."""

    def connect(client: Any, *args: Any, **kwargs: Any) -> Any:
        call = threading.current_thread()
        if not isinstance(call, _Call):
            return original(client, *args, **kwargs)
        call.opens(client)
        connected = original(client, *args, **kwargs)
        # What was closed while it was being made may be open now.
        call.opens(client)
        return connected

    return connect
