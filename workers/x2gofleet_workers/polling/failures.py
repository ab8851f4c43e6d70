"""failures: which kinds of one lane fail, how often in a row, and when each is tried again."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence

from x2gofleet.errors import PollError, WorkerExhausted
from x2gofleet.kinds import Kind
from x2gofleet_workers.polling.backoff import Backoff

log = logging.getLogger(__name__)


class KindFailures:
    """The failures of one lane of a target; times are monotonic."""

    def __init__(self, target: str, backoff: Backoff) -> None:
        self._target, self._backoff = target, backoff
        self._failures: dict[Kind, int] = {}
        self._retry_at: dict[Kind, float] = {}
        self._outage: set[Kind] = set()
        self._shortage: dict[Kind, WorkerExhausted] = {}
        self._last_error: dict[Kind, PollError] = {}
        self._last_logged: dict[Kind, str] = {}

    def is_failing(self, kind: Kind) -> bool:
        """Whether the last poll of a kind failed."""
        return kind in self._failures

    def retry_at(self, kind: Kind) -> float | None:
        """Return when a kind is tried again that fails or was postponed, None for others."""
        return self._retry_at.get(kind)

    def error(self, kind: Kind) -> PollError | None:
        """Return the last failure of a failing kind, None for one that does not fail."""
        return self._last_error.get(kind)

    def shortage(self, kind: Kind) -> WorkerExhausted | None:
        """Return what the worker lacked for the last poll of a kind, None where that could be made."""
        return self._shortage.get(kind)

    def postpone(self, kinds: Sequence[Kind], exc: WorkerExhausted, now: float) -> float:
        """Note that a poll could not be made; return the seconds to wait before the next try.

        It counts as no failure of the server: neither the next delay nor what is known of the server changes.
        """
        delay_seconds = self._backoff.seconds(exc, 1)
        for kind in kinds:
            self._shortage[kind] = exc
            self._retry_at[kind] = max(now + delay_seconds, self._retry_at.get(kind, now))
        return delay_seconds

    def outage(self, kinds: Iterable[Kind]) -> None:
        """Note that these kinds fail as the server can't be reached: any success ends that for all of them."""
        self._outage.update(kinds)

    def record(self, kinds: Sequence[Kind], exc: PollError, now: float) -> float:
        """Record one more failure of these kinds; return the seconds to wait before the next try."""
        self._end_shortage()
        self._last_error.update(dict.fromkeys(kinds, exc))
        failures = 1 + max(self._failures.get(kind, 0) for kind in kinds)
        delay_seconds = self._backoff.seconds(exc, failures)
        self._failures.update(dict.fromkeys(kinds, failures))
        self._retry_at.update(dict.fromkeys(kinds, now + delay_seconds))
        self._log(kinds, f"{type(exc).__name__}: {exc}")
        return delay_seconds

    def _log(self, kinds: Sequence[Kind], text: str) -> None:
        if any(self._last_logged.get(kind) != text for kind in kinds):
            log.warning("%s: %s", self._target, text)
            self._last_logged.update(dict.fromkeys(kinds, text))

    def no_outage(self, kind: Kind) -> None:
        """Note that a kind fails by itself: the server was reached."""
        self._outage.discard(kind)

    def succeeded(self, kinds: Collection[Kind]) -> None:
        """Forget failures of these kinds, and of all that failed as the server could not be reached."""
        if kinds:
            self._end_shortage()
        over = [kind for kind in self._failures if kind in kinds or kind in self._outage]
        if not kinds or not over:
            return
        self._outage.clear()
        for kind in over:
            for by_kind in (self._failures, self._retry_at, self._last_error, self._last_logged):
                by_kind.pop(kind, None)
        if not self._failures:
            log.info("%s: answers again", self._target)

    def _end_shortage(self) -> None:
        """Forget what was postponed: the worker could make a poll."""
        for kind in self._shortage:
            if kind not in self._failures:
                self._retry_at.pop(kind, None)
        self._shortage.clear()
