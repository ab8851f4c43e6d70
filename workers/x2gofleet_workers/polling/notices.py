"""notices: polls as soon as a server says that something changed, so many that no user can drive a server with them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from x2gofleet_workers.metrics import NO_METRICS, Metrics

# Starting a session writes half a dozen times. A poll after a change costs a server some 2 ms of processor time: a user
# who changes a session all the time costs it half a percent of one core.
BURST = 8
REFILL_SECONDS = 0.5

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Allowance:
    """A token bucket: ``tokens`` at monotonic time ``at``; below 0 where one that is still to come was given out."""

    tokens: float
    at: float

    def take(self, now: float) -> float:
        """Give a token out; return in how many seconds it may be used."""
        self.tokens = min(BURST, self.tokens + (now - self.at) / REFILL_SECONDS) - 1
        self.at = now
        return max(0.0, -self.tokens * REFILL_SECONDS)


class NoticePolls:
    """Polls targets on notice: at once, up to eight times in a row, then twice a second.

    At most one poll of a target waits or runs; notices that come while it runs share the next one. Thread-safe, and
    ``noticed`` does not wait.

    :param run: polls a target by its id.
    :param later: runs a call in so many seconds, under a name; another call of the same name replaces it.
    :param pool: where the polls run; shut down by ``stop``.
    """

    def __init__(
        self,
        run: Callable[[str], None],
        later: Callable[[str, float, Callable[[], None]], None],
        *,
        pool: Executor,
        metrics: Metrics = NO_METRICS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._later = run, later
        self._metrics, self._monotonic = metrics, monotonic
        self._pool = pool
        self._lock = threading.Lock()
        self._allowances: dict[str, _Allowance] = {}
        self._noticed_at: dict[str, float] = {}
        self._ordered: set[str] = set()

    def noticed(self, target: str) -> None:
        """Have a target polled as soon as its allowance permits."""
        self._metrics.noticed()
        with self._lock:
            self._noticed_at.setdefault(target, self._monotonic())
            if target in self._ordered:
                return
            self._ordered.add(target)
        self._order(target)

    def _order(self, target: str) -> None:
        now = self._monotonic()
        with self._lock:
            delay = self._allowances.setdefault(target, _Allowance(BURST, now)).take(now)
        if delay > 0:
            self._later(self.job(target), delay, partial(self._submit, target))
        else:
            self._submit(target)

    @staticmethod
    def job(target: str) -> str:
        """Return the name under which a poll of a target waits for its time."""
        return f"{target}/notice"

    def _submit(self, target: str) -> None:
        try:
            self._pool.submit(self._poll, target)
        except RuntimeError:
            # Stopped, or no thread could be started: the polls at intervals go on.
            log.debug("%s: not polled on notice", target)
            with self._lock:
                self._noticed_at.pop(target, None)
                self._ordered.discard(target)

    def _poll(self, target: str) -> None:
        with self._lock:
            noticed_at = self._noticed_at.pop(target, self._monotonic())
        try:
            self._run(target)
            self._metrics.polled_on_notice(self._monotonic() - noticed_at)
        except Exception:
            log.exception("%s: a poll on notice failed", target)
        with self._lock:
            again = target in self._noticed_at
            if not again:
                self._ordered.discard(target)
        if again:
            self._order(target)

    def forget(self, target: str) -> None:
        """Let go of what is known of a target that is not polled here any more."""
        with self._lock:
            self._allowances.pop(target, None)
            self._noticed_at.pop(target, None)
            self._ordered.discard(target)

    def stop(self) -> None:
        """Poll no more; running polls are not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
