"""lanes: one sequence of polls of a target, over one probe."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from x2gofleet.errors import CacheUnavailable, PollError, WorkerExhausted
from x2gofleet.kinds import Kind
from x2gofleet.requests import NOT_OWNED
from x2gofleet.store import Lease
from x2gofleet_workers.inventory import Target
from x2gofleet_workers.metrics import LaneName
from x2gofleet_workers.polling.answers import AnswerResults
from x2gofleet_workers.polling.backoff import Backoff
from x2gofleet_workers.polling.connection import TargetConnection
from x2gofleet_workers.polling.context import NotOwnerError, PollContext
from x2gofleet_workers.polling.exchange import Exchanges, PollOrder
from x2gofleet_workers.polling.failures import KindFailures
from x2gofleet_workers.polling.reports import PollReport
from x2gofleet_workers.polling.sections import (
    exchange,
    is_of_users,
    quick_kinds,
    reference_request,
    slow_kinds,
    start_probe,
    watches,
)
from x2gofleet_workers.polling.writer import SnapshotWriter
from x2gofleet_workers.probe.reference import compare_with_reference
from x2gofleet_workers.ssh import Deadline, ProbeChannel, SshConnection
from x2gofleet_workers.ssh.faults import exhausted

SLOW_DEADLINE_FACTOR = 3
# A tick, or a retry, may come a little early.
_EARLY = 0.25
_RETRY_EARLY_SECONDS = 0.25
_TRIES = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LaneRole:
    """What a lane is for.

    The one that ``owns_connection`` opens it, drops it where a poll over it broke, and keeps its probe; the other one
    starts a probe for each poll, so that one process stays on a server, and a slow command never delays a quick poll.
    """

    name: LaneName
    kinds_of: Callable[[Target], tuple[Kind, ...]]
    deadline_factor: int
    owns_connection: bool


QUICK = LaneRole("quick", quick_kinds, 1, owns_connection=True)
SLOW = LaneRole("slow", slow_kinds, SLOW_DEADLINE_FACTOR, owns_connection=False)


def nothing() -> None:
    """Do nothing: for whoever need not know when a poll begins."""


class Lane:
    """One sequence of polls of a target. Thread-safe: one poll at a time."""

    def __init__(
        self,
        role: LaneRole,
        context: PollContext,
        connection: TargetConnection,
        writer: SnapshotWriter,
        backoff: Backoff,
    ) -> None:
        self._role, self._context, self._connection, self._writer = role, context, connection, writer
        self._kinds = tuple(kind for kind in role.kinds_of(context.target) if context.target.intervals[kind] > 0)
        self._lock = threading.Lock()
        self._deadline: Deadline | None = None
        self._channel: ProbeChannel | None = None
        self._channel_of: SshConnection | None = None
        self._started: dict[Kind, float] = {}
        self._exchanges = Exchanges(context, connection, writer, as_a_whole=role.owns_connection)
        self.failures = KindFailures(context.target.id, backoff)

    def due(self) -> list[Kind]:
        """Return the kinds whose interval has passed, and those that fail and whose back-off is over."""
        now = self._context.monotonic()
        return [kind for kind in self._kinds if self._due_at(kind) <= now]

    def _due_at(self, kind: Kind) -> float:
        retry_at = self.failures.retry_at(kind)
        if retry_at is not None:
            return retry_at - _RETRY_EARLY_SECONDS
        if kind in self._context.progress.overdue:
            return -math.inf
        return self._started.get(kind, -math.inf) + self._context.target.intervals[kind] * (1 - _EARLY)

    def may_try(self) -> bool:
        """Whether the back-off of any kind is over."""
        now = self._context.monotonic()
        retries = [self.failures.retry_at(kind) for kind in self._kinds]
        return any(at is None or at - _RETRY_EARLY_SECONDS <= now for at in retries)

    def cancel(self) -> None:
        """End the running poll, if there is one."""
        if self._deadline is not None:
            self._deadline.cancel()

    def poll(self, order: PollOrder, *, begins: Callable[[], None] = nothing) -> PollReport:
        """Poll once; what can't be polled now is in the report's errors.

        ``begins`` is called once no other poll of this lane runs any more.
        """
        report, context = PollReport(), self._context
        if not order.kinds:
            return report
        with self._lock:
            begins()
            started = context.monotonic()
            if not order.extra:
                self._started.update(dict.fromkeys(order.kinds, started))
            context.progress.overdue.difference_update(order.kinds)
            try:
                self._poll(order, report)
                context.progress.tried = True
                context.metrics.poll_ended(self._role.name, context.monotonic() - started)
            except NotOwnerError:
                report.not_owned = True
                report.errors.update(dict.fromkeys(order.kinds, NOT_OWNED))
            except CacheUnavailable as exc:
                report.errors.update(dict.fromkeys(order.kinds, str(exc)))
                log.debug("%s: %s", context.target.id, exc)
        return report

    def compare_with_reference(self) -> None:
        """Compare the records with X2Go's own query, over a probe of its own."""
        context = self._context
        with self._lock:
            self._deadline = deadline = Deadline(context.target.deadline_seconds * self._role.deadline_factor)
            try:
                self._connection.check_open()
                with self._connection.held():
                    self._compare(deadline)
            except NotOwnerError:
                pass
            except Exception as exc:
                context.reference.failed()
                if not isinstance(exc, PollError) and exhausted(exc) is None:
                    raise
                log.debug("%s: X2Go's own query: %s", context.target.id, exc)

    def _compare(self, deadline: Deadline) -> None:
        context = self._context
        try:
            channel = self._probe(deadline)
            for section in exchange(channel, reference_request(context.target, deadline), deadline):
                comparison = compare_with_reference(section)
                context.reference.compared(comparison)
                context.metrics.compared(comparison.agreement)
        finally:
            self._end_probe()

    def _poll(self, order: PollOrder, report: PollReport) -> None:
        context = self._context
        lease = context.lease()
        context.counters.polls += 1
        self._deadline = deadline = Deadline(context.target.deadline_seconds * self._role.deadline_factor)
        self._connection.check_open()
        missing: Collection[Kind] = order.kinds
        try:
            with nullcontext() if self._role.owns_connection else self._connection.held():
                channel = self._probe(deadline)
                for _ in range(_TRIES):
                    results = self._exchanges.make(channel, order, lease, deadline, report)
                    self._settle(order.kinds, lease, results, report)
                    if results.broken is not None:
                        missing = [kind for kind in order.kinds if kind not in results.answered]
                        raise results.broken
                    if not results.again:
                        break
                    # What is stored is not what this worker means (flushed, or another owner's): list in full at once.
                    order = replace(order, kinds=tuple(dict.fromkeys(results.again)), force=True)
                    lease, missing = context.lease(), order.kinds
                if not self._role.owns_connection:
                    self._end_probe()
        except Exception as exc:
            self._broken(lease, missing, exc, report)

    def _broken(self, lease: Lease, kinds: Collection[Kind], exc: Exception, report: PollReport) -> None:
        """Take the consequences of a poll that did not come to its end; raises what is no failure of it."""
        if isinstance(exc, PollError) or (self._channel is not None and not self._channel.idle):
            self._drop_broken()
        if isinstance(exc, NotOwnerError | CacheUnavailable):
            raise exc
        lack = exhausted(exc)
        if lack is not None:
            self._connection.check_open()
            self._not_polled(kinds, lack, report)
        elif isinstance(exc, PollError):
            self._connection.check_open()
            self._unanswered(lease, kinds, exc, report)
        else:
            raise exc

    def _probe(self, deadline: Deadline) -> ProbeChannel:
        """Return the lane's probe on the present connection."""
        shared = self._connection
        connection = shared.opened(deadline) if self._role.owns_connection else shared.current()
        if self._channel is None or self._channel_of is not connection:
            self._channel = start_probe(self._context.target, connection, deadline)
            self._channel_of = connection
            if self._role.owns_connection:
                self._context.reference.new_probe()
                if watches(self._context.target):
                    notices, name = self._context.notices, self._context.target.id
                    self._channel.on_unasked(lambda: notices.noticed(name))
        return self._channel

    def _end_probe(self) -> None:
        """End a probe that was started for one poll."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _drop_broken(self) -> None:
        """Give up what can't be used after a broken exchange."""
        channel, self._channel = self._channel, None
        if self._role.owns_connection:
            self._connection.drop()
        elif channel is not None:
            channel.close()

    def _unanswered(self, lease: Lease, kinds: Collection[Kind], exc: PollError, report: PollReport) -> None:
        """Record that a poll as a whole failed; without the connection, no kind can be polled."""
        context = self._context
        report.errors.update(dict.fromkeys(kinds, str(exc)))
        for kind in kinds:
            context.metrics.polled(kind, "failed")
        failed = set(kinds)
        if self._role.owns_connection:
            unreachable = [kind for kind in Kind if context.target.intervals[kind] > 0]
            self.failures.outage(unreachable)
            failed.update(unreachable)
            context.progress.overdue.update(
                kind for kind in failed.difference(self._kinds) if not is_of_users(context.target, kind)
            )
        if failed:
            self._failed(lease, sorted(failed), exc)

    def _not_polled(self, kinds: Collection[Kind], exc: WorkerExhausted, report: PollReport) -> None:
        """Note that this worker could not make a poll; nothing is recorded about the server."""
        report.errors.update(dict.fromkeys(kinds, str(exc)))
        context = self._context
        context.shortages.occurred(exc, f"{context.target.id} can't be polled")
        postponed = sorted({*kinds, *(self._kinds if self._role.owns_connection else ())})
        delay_seconds = self.failures.postpone(postponed, exc, context.monotonic())
        context.retries.retry(context.target.id, self._role.name, delay_seconds)

    def _failed(self, lease: Lease, kinds: Sequence[Kind], exc: PollError) -> None:
        delay_seconds = self._retry(kinds, exc)
        self._writer.record_failure(lease, kinds, exc, retry_seconds=delay_seconds)

    def _retry(self, kinds: Sequence[Kind], exc: PollError) -> float:
        """Have kinds that failed polled again; return in how many seconds."""
        context = self._context
        delay_seconds = self.failures.record(kinds, exc, context.monotonic())
        context.retries.retry(context.target.id, self._role.name, delay_seconds)
        return delay_seconds

    def _settle(self, kinds: Sequence[Kind], lease: Lease, results: AnswerResults, report: PollReport) -> None:
        """Take the consequences of an answer: for the lease, for kinds that failed, for kinds that are well again."""
        context = self._context
        if results.unwritten is not None:
            raise results.unwritten
        if results.lost:
            self._writer.stored_listing = None
            if context.ownership.reacquire(lease) is None:
                raise NotOwnerError(context.target.id)
        for kind, failure in results.failures.items():
            report.errors[kind] = str(failure)
            context.metrics.polled(kind, "failed")
            if kind is Kind.SESSIONS:
                self._writer.stored_listing = None
            self.failures.no_outage(kind)
            self._failed(lease, [kind], failure)
        answered = set(kinds) if results.broken is None else results.answered
        self.failures.succeeded(answered - results.failures.keys())
