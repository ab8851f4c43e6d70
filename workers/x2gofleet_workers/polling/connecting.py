"""connecting: polls of targets without a connection, in threads of their own: servers that are down delay no other."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from x2gofleet_workers.polling.attempts import Address, AttemptQueue
from x2gofleet_workers.polling.poller import TargetPoller
from x2gofleet_workers.shortages import Shortages
from x2gofleet_workers.ssh.faults import exhausted
from x2gofleet_workers.ssh.limits import ATTEMPTS_PER_ADDRESS

ATTEMPTS_AT_ONCE = 32
SLOW_SECONDS = 1.0
_TRY_AGAIN_SECONDS = 2.0
_JOB = "x2gofleet/connecting"

log = logging.getLogger(__name__)


class OneRuns(Protocol):
    """Runs something once, later; Schedule is one."""

    def once(self, name: str, delay_seconds: float, run: Callable[[], None]) -> None:
        """Run ``run`` after a delay; replaces one of that name."""


class Connecting:
    """Connects and polls targets, a bounded number at a time. Thread-safe."""

    def __init__(
        self,
        schedule: OneRuns,
        *,
        max_threads: int,
        at_once: int = ATTEMPTS_AT_ONCE,
        slow_seconds: float = SLOW_SECONDS,
        shortages: Shortages | None = None,
    ) -> None:
        self._shortages = shortages or Shortages()
        self._schedule = schedule
        self._pool = ThreadPoolExecutor(max_threads, thread_name_prefix="x2gofleet-connecting")
        self._queue: AttemptQueue[TargetPoller] = AttemptQueue(
            per_address=ATTEMPTS_PER_ADDRESS, at_once=at_once, slow_seconds=slow_seconds, monotonic=time.monotonic
        )
        self._lock = threading.Lock()
        self._stopped = False

    def submit(self, poller: TargetPoller) -> None:
        """Have a target connected and polled soon; nothing where it waits or runs already."""
        with self._lock:
            self._queue.add(poller, _address(poller))
        self._start()

    def forget(self, poller: TargetPoller) -> None:
        """Make no attempt for a target that is polled here no more; one that runs ends by itself."""
        with self._lock:
            self._queue.withdraw(poller)

    def stop(self) -> None:
        """Begin no more attempts; running ones are not waited for."""
        with self._lock:
            self._stopped = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        """Begin what may begin now, and see to it that the rest does later."""
        with self._lock:
            while not self._stopped and (poller := self._queue.start_next()) is not None:
                try:
                    self._pool.submit(self._attempt, poller).add_done_callback(_log_failure)
                except RuntimeError as exc:
                    # No thread can be started now. Where there is one, it may still take what was submitted.
                    lack = exhausted(exc)
                    if lack is None:
                        log.error("a connection can't be tried: %s", exc)
                    else:
                        self._shortages.occurred(lack, "{} port {} can't be connected to".format(*_address(poller)))
                    self._queue.finish(poller)
                    wait_seconds: float | None = _TRY_AGAIN_SECONDS
                    self._queue.add(poller, _address(poller))
                    break
            else:
                wait_seconds = None if self._stopped else self._queue.seconds_to_wait()
        if wait_seconds is not None:
            self._schedule.once(_JOB, wait_seconds, self._start)

    def _attempt(self, poller: TargetPoller) -> None:
        try:
            poller.poll_quick()
            poller.poll_slow()
        finally:
            with self._lock:
                self._queue.finish(poller)
            self._start()


def _address(poller: TargetPoller) -> Address:
    return poller.target.endpoint.host, poller.target.endpoint.port


def _log_failure(future: Future[None]) -> None:
    if not future.cancelled() and (failure := future.exception()) is not None:
        log.error("an unexpected error in a worker thread", exc_info=failure)
