"""live_agent: calls of x2gobroker's own agents, which have no time limit of their own, within one.

The broker has one thread for all logins. A call runs in a thread of its own; one that does not end in time is left
behind, and its host is not asked again until it has ended, nor for a while: a hung server costs one login the limit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

QUIET_SECONDS = 30.0


class Unanswered(Exception):
    """A live agent did not answer in time, or is not asked because it lately did not."""


class _Call:
    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self.value: Any = None
        self.error: BaseException | None = None
        self.quiet_until = 0.0
        self.thread = threading.Thread(target=self._run, name="x2gofleet-live-agent", daemon=True)

    def _run(self) -> None:
        try:
            self.value = self._function()
        # The exceptions of x2gobroker derive from BaseException.
        except BaseException as exc:
            self.error = exc


class LiveAgents:
    """Runs calls of live agents within ``limit_seconds`` each; for one thread that asks, as x2gobroker has."""

    def __init__(self, limit_seconds: float, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.limit_seconds = limit_seconds
        self._monotonic = monotonic
        self._hung: dict[Hashable, _Call] = {}

    def call(self, host: Hashable, function: Callable[[], T]) -> T:
        """Return what ``function`` returns, or raise what it raises.

        Raises Unanswered where it takes longer than the limit, and at once where ``host`` did so lately.
        """
        hung = self._hung.get(host)
        if hung is not None:
            if hung.thread.is_alive() or self._monotonic() < hung.quiet_until:
                raise Unanswered(f"{host} is not asked: it did not answer lately within {self.limit_seconds:g} s")
            del self._hung[host]
        call = _Call(function)
        call.thread.start()
        call.thread.join(self.limit_seconds)
        if call.thread.is_alive():
            call.quiet_until = self._monotonic() + QUIET_SECONDS
            self._hung[host] = call
            raise Unanswered(f"{host} did not answer within {self.limit_seconds:g} s")
        if call.error is not None:
            raise call.error
        value: T = call.value
        return value
