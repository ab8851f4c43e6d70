"""backoff: how long to wait after a failure, by its class and by how many there were in a row."""

from __future__ import annotations

import random
from collections.abc import Callable

from x2gofleet.errors import OutageError, PollError, SetupError

MAX_OUTAGE_BACKOFF_SECONDS = 30.0
MAX_SETUP_BACKOFF_SECONDS = 600.0
_FIRST_SETUP_BACKOFF_SECONDS = 10.0
_MAX_DOUBLINGS = 10


def _jitter() -> float:
    return random.uniform(0.8, 1.2)


class Backoff:
    """The delays of one target. ``interval_seconds`` is that of its sessions."""

    def __init__(self, *, interval_seconds: float, jitter: Callable[[], float] = _jitter) -> None:
        self._interval_seconds = max(0.5, interval_seconds)
        self._jitter = jitter

    def seconds(self, exc: PollError, failures: int) -> float:
        """Return how many seconds to wait after the ``failures``-th failure in a row."""
        doublings = min(failures - 1, _MAX_DOUBLINGS)
        if isinstance(exc, SetupError):
            delay = min(MAX_SETUP_BACKOFF_SECONDS, _FIRST_SETUP_BACKOFF_SECONDS * 2.0**doublings)
        elif isinstance(exc, OutageError):
            delay = min(MAX_OUTAGE_BACKOFF_SECONDS, self._interval_seconds * 2.0**doublings)
        else:
            delay = min(MAX_OUTAGE_BACKOFF_SECONDS, self._interval_seconds * failures)
        return delay * self._jitter()
