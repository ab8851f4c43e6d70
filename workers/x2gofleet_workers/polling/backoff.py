"""backoff: how long to wait after a failure, by its class and by how many there were in a row.

The first delays don't depend on the interval, so that a fault that passes costs little of a long one.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from x2gofleet.errors import HostKeyMismatch, HostKeyUnknown, HostNameShared, OutageError, PollError, SetupError
from x2gofleet_workers.inventory import Scope

MAX_OUTAGE_BACKOFF_SECONDS = 30.0
MAX_USER_BACKOFF_SECONDS = 60.0
MAX_SETUP_BACKOFF_SECONDS = 600.0
_FIRST_OUTAGE_BACKOFF_SECONDS = 2.0
_FIRST_SETUP_BACKOFF_SECONDS = 10.0
_SHORTEST_SECONDS = 0.5
_MAX_DOUBLINGS = 10
# What the user of a login can't bring about.
_OF_ADMINISTRATORS = (HostKeyMismatch, HostKeyUnknown)


def _jitter() -> float:
    # Never more than 1, so that the longest delay is what is promised.
    return random.uniform(0.7, 1.0)


class Backoff:
    """The delays of one target. ``interval_seconds`` is that of its sessions."""

    def __init__(self, *, interval_seconds: float, scope: Scope, jitter: Callable[[], float] = _jitter) -> None:
        self._first_seconds = min(_FIRST_OUTAGE_BACKOFF_SECONDS, max(_SHORTEST_SECONDS, interval_seconds))
        self._scope, self._jitter = scope, jitter

    def seconds(self, exc: PollError, failures: int) -> float:
        """Return how many seconds to wait after the ``failures``-th failure in a row."""
        doubled = 2.0 ** min(failures - 1, _MAX_DOUBLINGS)
        if isinstance(exc, SetupError):
            delay = min(self._max_setup_seconds(exc), _FIRST_SETUP_BACKOFF_SECONDS * doubled)
        elif isinstance(exc, OutageError):
            delay = min(MAX_OUTAGE_BACKOFF_SECONDS, self._first_seconds * doubled)
        else:
            delay = min(MAX_OUTAGE_BACKOFF_SECONDS, self._first_seconds * failures)
        return delay * self._jitter()

    def _max_setup_seconds(self, exc: SetupError) -> float:
        """Return the longest delay of a fault of the setup.

        A login of scope ``user`` is that user's: its key, shell and commands are the user's to break and to fix.
        """
        if isinstance(exc, HostNameShared):
            # It ends when the other server is gone or renamed, of which this one is not told.
            return MAX_OUTAGE_BACKOFF_SECONDS
        if self._scope == "server" or type(exc) is SetupError or isinstance(exc, _OF_ADMINISTRATORS):
            return MAX_SETUP_BACKOFF_SECONDS
        return MAX_USER_BACKOFF_SECONDS
