"""shortages: what a worker says while it is short of file descriptors, threads or memory: one line and a count."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from x2gofleet.errors import WorkerExhausted
from x2gofleet_workers.metrics import NO_METRICS, Metrics

OVER_AFTER_SECONDS = 15.0

log = logging.getLogger(__name__)


class Shortages:
    """Counts each failure that a lack of the worker's own resources caused, and logs the first of each shortage.

    A shortage is over once none was reported for 15 s, which is longer than anything waits to try again. Thread-safe.
    """

    def __init__(self, metrics: Metrics = NO_METRICS, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._metrics, self._monotonic = metrics, monotonic
        self._lock = threading.Lock()
        self._count = 0
        self._last = 0.0

    def occurred(self, lack: WorkerExhausted, failed: str) -> None:
        """Report that something could not be done; ``failed`` says what, as "ts01 can't be polled"."""
        self._metrics.worker_exhausted()
        with self._lock:
            self._count += 1
            self._last = self._monotonic()
            is_first = self._count == 1
        if is_first:
            log.error("%s: %s. Retrying until there are enough again; no server is to blame", failed, lack)

    def look(self) -> None:
        """Log that a shortage is over, where that is so; to be called now and then."""
        with self._lock:
            if not self._count or self._monotonic() - self._last < OVER_AFTER_SECONDS:
                return
            count, self._count = self._count, 0
        log.info("the worker has the file descriptors, threads and memory it needs again; %d attempt(s) failed", count)
