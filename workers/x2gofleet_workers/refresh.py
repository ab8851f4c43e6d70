"""refresh: answers readers' requests: poll now, delete, check; single-flight over all readers.

A request that comes before a poll began shares it; one that comes during it starts exactly one more. As each request
goes to the one worker that owns its target, that holds for the whole fleet. However many requests come, and whatever
they differ in, a target is polled for them ten times a second at most.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from x2gofleet.errors import CacheUnavailable, SnapshotCorrupt
from x2gofleet.kinds import Kind
from x2gofleet.requests import Answer, AnswerCode, Operation, Request, RequestRefused
from x2gofleet.store import Store
from x2gofleet_workers.metrics import NO_METRICS, Metrics, Pulse
from x2gofleet_workers.polling import NotOwnerError, PollReport, TargetPoller
from x2gofleet_workers.shortages import Shortages
from x2gofleet_workers.ssh.faults import exhausted

THREADS = 256
SPACING_SECONDS = 0.1
CHECK_SPACING_SECONDS = 1.0
# Of one target: desktops of so many users may be asked for at once, and so many requests wait for one poll.
QUESTIONS_PER_TARGET = 32
REQUESTS_PER_QUESTION = 1000
GATHER_SECONDS = 0.02
GATHER_MOST_SECONDS = 0.08
_WAIT_SECONDS = 1.0
_TRY_AGAIN_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of a target; equal questions share a poll."""

    target: str
    operation: Operation
    kinds: tuple[Kind, ...]
    username: str | None

    @classmethod
    def of(cls, request: Request) -> _Question:
        """Return what is asked, without what makes no difference to the poll."""
        if request.operation is not Operation.REFRESH:
            return cls(request.target, request.operation, (), None)
        username = request.username if Kind.DESKTOPS in request.kinds else None
        return cls(request.target, request.operation, request.kinds, username)


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
        *,
        shortages: Shortages | None = None,
    ) -> None:
        self._shortages = shortages or Shortages(metrics)
        self._needs_thread = False
        self._store, self._poller, self._known_targets = store, poller, known_targets
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="x2gofleet-request")
        self._metrics = metrics
        self.pulse = Pulse("requests")
        self._flights: dict[_Question, _Flight] = {}
        self._flights_of: Counter[str] = Counter()
        self._next_turn: dict[str, float] = {}
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
            if self._needs_thread:
                # The pool keeps what it could not start a thread for, and takes it up with the next.
                self._submit(_nothing)
            try:
                data = self._store.take_request(wait_seconds=_WAIT_SECONDS)
                if data is not None:
                    self._take(data)
            except CacheUnavailable:
                self._stopping.wait(_TRY_AGAIN_SECONDS)
            except Exception:
                # No request may end the requests of all.
                log.exception("a request failed")
                self._stopping.wait(_TRY_AGAIN_SECONDS)

    def _take(self, data: bytes) -> None:
        """Put a request to the others that ask the same, and see that a poll comes for them."""
        try:
            request = Request.decode(data)
        except RequestRefused as exc:
            log.debug("%s", exc)
            if exc.request_id:
                self._answer([exc.request_id], Answer(exc.target, AnswerCode.REFUSED, str(exc)))
            return
        question = _Question.of(request)
        if question.operation is Operation.REFRESH:
            self._metrics.refresh_asked()
        if question.operation is not Operation.CHECK and self._poller(question.target) is None:
            # Only owned targets are kept: a request may name any.
            self._answer_all(question, [request.id], Answer(question.target, AnswerCode.NOT_OWNED))
            return
        with self._lock:
            flight = self._flights.get(question)
            is_new = flight is None
            if flight is None and self._flights_of[question.target] < QUESTIONS_PER_TARGET:
                flight = self._flights[question] = _Flight()
                self._flights_of[question.target] += 1
            is_taken = flight is not None and len(flight.waiting) < REQUESTS_PER_QUESTION
            if flight is not None and is_taken:
                flight.waiting.append(request.id)
                flight.newest = time.monotonic()
        if flight is None or not is_taken:
            text = "too many requests of this server wait to be answered: ask again later"
            self._answer_all(question, [request.id], Answer(question.target, AnswerCode.BUSY, text))
        elif is_new:
            self._submit(lambda: self._fly(question, flight))

    def _submit(self, run: Callable[[], object]) -> None:
        try:
            self._pool.submit(run).add_done_callback(_log_failure)
            self._needs_thread = False
        except RuntimeError as exc:
            lack = exhausted(exc)
            if lack is None:
                log.debug("a request came while stopping")
                return
            self._needs_thread = True
            self._shortages.occurred(lack, "requests wait for a thread")

    def _fly(self, question: _Question, flight: _Flight) -> None:
        """Poll for all that wait, and once more for those that came meanwhile."""
        if question.operation is Operation.REFRESH:
            self._gather(flight)
        while True:
            with self._lock:
                if not flight.waiting or self._stopping.is_set():
                    self._land(question)
                    return
            started = self._wait_for_turn(question)
            with self._lock:
                waiting, flight.waiting = flight.waiting, []

            def join(waiting: list[str] = waiting) -> None:
                with self._lock:
                    waiting += flight.waiting
                    flight.waiting = []

            try:
                answer = self._do(question, join)
            except Exception as exc:
                answer = Answer(question.target, AnswerCode.FAILED, f"the worker failed: {type(exc).__name__}")
                log.exception("a request of %s failed", question.target)
            self._answer_all(question, waiting, answer)
            # Requests that trickle in share the next poll.
            self._stopping.wait(started + SPACING_SECONDS - time.monotonic())

    def _land(self, question: _Question) -> None:
        """Forget a question that nobody waits for; with the lock held."""
        self._flights.pop(question, None)
        self._flights_of[question.target] -= 1
        if self._flights_of[question.target] <= 0:
            del self._flights_of[question.target]
            now = time.monotonic()
            self._next_turn = {target: at for target, at in self._next_turn.items() if at > now}

    def _wait_for_turn(self, question: _Question) -> float:
        """Wait until the target may be polled again, behind the questions that came before; return when that was."""
        spacing = CHECK_SPACING_SECONDS if question.operation is Operation.CHECK else SPACING_SECONDS
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next_turn.get(question.target, now))
            self._next_turn[question.target] = turn + spacing
        self._stopping.wait(turn - now)
        return turn

    def _gather(self, flight: _Flight) -> None:
        """Wait until requests cease to come, for a moment: who asks at once shares the first poll, not a second."""
        most = time.monotonic() + GATHER_MOST_SECONDS
        while (left := min(most, flight.newest + GATHER_SECONDS) - time.monotonic()) > 0:
            if self._stopping.wait(left):
                return

    def _do(self, question: _Question, begins: Callable[[], None]) -> Answer:
        target = question.target
        if question.operation is Operation.CHECK:
            return Answer(target, dropped=self._store.drop_orphans(self._known_targets()))
        poller = self._poller(target)
        if poller is None:
            return Answer(target, AnswerCode.NOT_OWNED)
        report = PollReport()
        try:
            if question.operation is Operation.DELETE:
                poller.discard()
            else:
                self._metrics.refresh_polled()
                report = poller.refresh(question.kinds, question.username, begins=begins)
        except NotOwnerError:
            return Answer(target, AnswerCode.NOT_OWNED)
        except (CacheUnavailable, SnapshotCorrupt, ValueError) as exc:
            return Answer(target, AnswerCode.FAILED, str(exc))
        stored = tuple(report.stored)
        if report.not_owned:
            return Answer(target, AnswerCode.NOT_OWNED, stored=stored)
        text = "; ".join(dict.fromkeys(report.errors.values()))
        return Answer(target, AnswerCode.FAILED if text else AnswerCode.DONE, text, stored)

    def _answer_all(self, question: _Question, waiting: Sequence[str], answer: Answer) -> None:
        sent = self._answer(waiting, answer)
        if question.operation is Operation.REFRESH:
            self._metrics.refresh_answered(answer.code.value if sent else "unanswered", len(waiting))

    def _answer(self, waiting: Sequence[str], answer: Answer) -> bool:
        """Answer requests; return whether Redis took the answers."""
        try:
            self._store.answer_all(waiting, answer.encode())
        except CacheUnavailable as exc:
            log.warning("%d request(s) of %s could not be answered: %s", len(waiting), answer.target, exc)
            return False
        return True


def _nothing() -> None:
    """Do nothing, in a thread of the pool."""


def _log_failure(future: Future[object]) -> None:
    if not future.cancelled() and (failure := future.exception()) is not None:
        log.error("an unexpected error in a request's thread", exc_info=failure)
