"""refresh: answers readers' requests: poll now, delete, check; single-flight over all readers.

A request that comes before a poll began shares it; one that comes during it starts exactly one more. As each request
goes to the one worker that owns its target, that holds for the whole fleet.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from x2gofleet.errors import CacheUnavailable, SnapshotCorrupt
from x2gofleet.kinds import Kind
from x2gofleet.lookup import NOT_OWNED
from x2gofleet.store import Store
from x2gofleet_workers.metrics import NO_METRICS, Metrics, Pulse, RefreshAnswer
from x2gofleet_workers.polling import NotOwnerError, PollReport, TargetPoller

THREADS = 256
SPACING_SECONDS = 0.1
GATHER_SECONDS = 0.02
GATHER_MOST_SECONDS = 0.08
_WAIT_SECONDS = 1.0
_TRY_AGAIN_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of a target; equal questions share a poll."""

    target: str
    operation: str
    kinds: tuple[Kind, ...]
    username: str | None


@dataclass(slots=True)
class _Flight:
    """The requests that wait for the next poll of one question, whether one is running, when the newest came."""

    waiting: list[str] = field(default_factory=list)
    running: bool = False
    newest: float = 0.0


class RefreshDesk:
    """Takes requests from this worker's queue and answers each."""

    def __init__(
        self,
        store: Store,
        poller: Callable[[str], TargetPoller | None],
        known_targets: Callable[[], set[str]],
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._store, self._poller, self._known_targets = store, poller, known_targets
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="x2gofleet-request")
        self._metrics = metrics
        self.pulse = Pulse("requests")
        self._flights: dict[_Question, _Flight] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="x2gofleet-requests", daemon=True)

    def start(self) -> None:
        """Begin to take requests in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests; running polls are not waited for."""
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.pulse.beat()
            try:
                request = self._store.take_request(wait_seconds=_WAIT_SECONDS)
            except CacheUnavailable:
                self._stopping.wait(_TRY_AGAIN_SECONDS)
                continue
            if request is not None:
                self._take(request)

    def _take(self, request: dict[str, Any]) -> None:
        """Put a request to the others that ask the same, and see that a poll comes for them."""
        request_id = str(request.get("id", ""))
        try:
            question = _question(request)
        except (ValueError, TypeError) as exc:
            problem = str(exc)
            self._submit(lambda: self._answer([request_id], str(request.get("target", "")), PollReport(), problem))
            return
        if question.operation == "refresh":
            self._metrics.refresh_asked()
        with self._lock:
            flight = self._flights.setdefault(question, _Flight())
            flight.waiting.append(request_id)
            flight.newest = time.monotonic()
            if flight.running:
                return
            flight.running = True
        self._submit(lambda: self._fly(question, flight))

    def _submit(self, run: Callable[[], object]) -> None:
        try:
            self._pool.submit(run).add_done_callback(_log_failure)
        except RuntimeError:
            log.debug("a request came while stopping")

    def _fly(self, question: _Question, flight: _Flight) -> None:
        """Poll for all that wait, and once more for those that came meanwhile."""
        started = -math.inf
        if question.operation == "refresh":
            self._gather(flight)
        while True:
            # Requests that trickle in must not have a server list back to back.
            self._stopping.wait(max(0.0, started + SPACING_SECONDS - time.monotonic()))
            started = time.monotonic()
            with self._lock:
                waiting, flight.waiting = flight.waiting, []
                if not waiting or self._stopping.is_set():
                    flight.running = False
                    self._flights.pop(question, None)
                    return
            report, problem = PollReport(), ""

            def join(waiting: list[str] = waiting) -> None:
                with self._lock:
                    waiting += flight.waiting
                    flight.waiting = []

            try:
                report, problem = self._do(question, join)
            except Exception as exc:
                problem = f"the worker failed: {type(exc).__name__}"
                log.exception("a request of %s failed", question.target)
            sent = self._answer(waiting, question.target, report, problem)
            if question.operation == "refresh":
                self._metrics.refresh_answered(_kind_of_answer(problem) if sent else "unanswered", len(waiting))

    def _gather(self, flight: _Flight) -> None:
        """Wait until requests cease to come, for a moment: who asks at once shares the first poll, not a second."""
        most = time.monotonic() + GATHER_MOST_SECONDS
        while (left := min(most, flight.newest + GATHER_SECONDS) - time.monotonic()) > 0:
            if self._stopping.wait(left):
                return

    def _do(self, question: _Question, begins: Callable[[], None]) -> tuple[PollReport, str]:
        report = PollReport()
        if question.operation == "check":
            report.dropped = self._store.drop_orphans(self._known_targets())
            return report, ""
        poller = self._poller(question.target)
        if poller is None:
            return report, NOT_OWNED
        try:
            if question.operation == "delete":
                poller.discard()
            else:
                self._metrics.refresh_polled()
                report = poller.refresh(question.kinds, question.username, begins=begins)
        except NotOwnerError:
            return report, NOT_OWNED
        except (CacheUnavailable, SnapshotCorrupt, ValueError) as exc:
            return report, str(exc)
        return report, "; ".join(dict.fromkeys(report.errors.values()))

    def _answer(self, waiting: Sequence[str], target: str, report: PollReport, problem: str) -> bool:
        """Answer requests; return whether Redis took the answers."""
        stored = [[name, kind.value] for name, kind in report.stored]
        answer = {"target": target, "stored": stored, "error": problem, "dropped": report.dropped}
        try:
            self._store.answer_all(waiting, answer)
        except CacheUnavailable as exc:
            log.warning("%d request(s) of %s could not be answered: %s", len(waiting), target, exc)
            return False
        return True


def _kind_of_answer(problem: str) -> RefreshAnswer:
    if problem == NOT_OWNED:
        return "not_owned"
    return "failed" if problem else "done"


def _question(request: dict[str, Any]) -> _Question:
    operation = str(request.get("operation", ""))
    if operation not in ("refresh", "delete", "check"):
        raise ValueError(f"unknown operation {operation!r}")
    kinds = tuple(sorted({Kind.parse(str(kind)) for kind in request.get("kinds", ())}))
    username = request.get("username")
    return _Question(str(request.get("target", "")), operation, kinds, str(username) if username else None)


def _log_failure(future: Future[object]) -> None:
    if not future.cancelled() and (failure := future.exception()) is not None:
        log.error("an unexpected error in a request's thread", exc_info=failure)
