"""lanes: one sequence of polls of a target, over one probe."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from x2gofleet.errors import CacheUnavailable, PollError
from x2gofleet.kinds import Kind
from x2gofleet.lookup import NOT_OWNED
from x2gofleet.store import Lease
from x2gofleet_workers.inventory import PLAIN_SESSIONS_SECONDS, Target
from x2gofleet_workers.metrics import LaneName
from x2gofleet_workers.polling.answers import AnswerResults
from x2gofleet_workers.polling.backoff import Backoff
from x2gofleet_workers.polling.connection import TargetConnection
from x2gofleet_workers.polling.context import NotOwnerError, PollContext, PollMoment
from x2gofleet_workers.polling.failures import KindFailures
from x2gofleet_workers.polling.reports import PollReport
from x2gofleet_workers.polling.sections import (
    exchange,
    quick_kinds,
    reference_request,
    request_for,
    slow_kinds,
    start_probe,
)
from x2gofleet_workers.polling.writer import SnapshotWriter
from x2gofleet_workers.probe.protocol import Section
from x2gofleet_workers.probe.reference import compare_with_reference
from x2gofleet_workers.probe.requests import NO_SIGNATURE
from x2gofleet_workers.ssh import Deadline, ProbeChannel, SshConnection

RELIST_SECONDS = 60.0
SLOW_DEADLINE_FACTOR = 3
_EARLY = 0.25
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
        self.failures = KindFailures(context.target.id, backoff)

    def due(self) -> list[Kind]:
        """Return the kinds whose interval has passed, nearly: a tick may come a little early."""
        now = self._context.monotonic()
        return [
            kind
            for kind in self._kinds
            if self.failures.is_over(kind, now)
            and now - self._started.get(kind, -math.inf) >= self._interval(kind) * (1 - _EARLY)
        ]

    def _interval(self, kind: Kind) -> float:
        target, writer = self._context.target, self._writer
        interval = target.intervals[kind]
        if kind is Kind.SESSIONS and not writer.is_conditional and not target.sessions_interval_chosen:
            # The server can't tell what changed: each poll costs it a listing.
            return max(interval, PLAIN_SESSIONS_SECONDS) if writer.stored_listing else interval
        return interval

    def may_try(self) -> bool:
        """Whether the back-off of any kind is over."""
        return self.failures.may_try(self._kinds, self._context.monotonic())

    def cancel(self) -> None:
        """End the running poll, if there is one."""
        if self._deadline is not None:
            self._deadline.cancel()

    def poll(
        self,
        kinds: Sequence[Kind],
        *,
        force: bool = False,
        users: Sequence[str] = (),
        begins: Callable[[], None] = nothing,
    ) -> PollReport:
        """Poll ``kinds`` once; what can't be polled now is in the report's errors.

        ``force``: in full, whatever is stored. ``users``: whose desktops, on a server that is polled for all users.
        ``begins`` is called once no other poll of this lane runs any more.
        """
        report = PollReport()
        if not kinds:
            return report
        context = self._context
        with self._lock:
            begins()
            started = context.monotonic()
            self._started.update(dict.fromkeys(kinds, started))
            try:
                self._poll(list(kinds), report, force=force, users=users)
                context.progress.tried = True
                context.metrics.poll_ended(self._role.name, context.monotonic() - started)
            except NotOwnerError:
                report.errors.update(dict.fromkeys(kinds, NOT_OWNED))
            except CacheUnavailable as exc:
                report.errors.update(dict.fromkeys(kinds, str(exc)))
                log.debug("%s: %s", context.target.id, exc)
        return report

    def compare_with_reference(self) -> None:
        """Compare the records with X2Go's own query, over a probe of its own."""
        context = self._context
        with self._lock:
            self._deadline = deadline = Deadline(context.target.deadline_seconds * self._role.deadline_factor)
            try:
                self._check_open()
                channel = self._probe(deadline)
                for section in exchange(channel, reference_request(context.target, deadline), deadline):
                    comparison = compare_with_reference(section)
                    context.reference.compared(comparison)
                    context.metrics.compared(comparison.agreement)
                self._end_probe()
            except NotOwnerError:
                pass
            except PollError as exc:
                self._end_probe()
                context.reference.failed()
                log.debug("%s: X2Go's own query: %s", context.target.id, exc)

    def _poll(self, kinds: list[Kind], report: PollReport, *, force: bool, users: Sequence[str]) -> None:
        context = self._context
        lease = context.lease()
        context.counters.polls += 1
        self._deadline = deadline = Deadline(context.target.deadline_seconds * self._role.deadline_factor)
        self._check_open()
        try:
            channel = self._probe(deadline)
            for _ in range(_TRIES):
                again = self._exchange(channel, kinds, lease, deadline, report, force=force, users=users)
                if not again:
                    break
                # What is stored is not what this worker means (flushed, or another owner's): list in full at once.
                kinds, force = list(dict.fromkeys(again)), True
                lease = context.lease()
            if not self._role.owns_connection:
                self._end_probe()
        except PollError as exc:
            self._drop_broken()
            self._check_open()
            self._unanswered(lease, kinds, exc, report)
        except BaseException:
            if self._channel is not None and not self._channel.idle:
                self._drop_broken()
            raise

    def _check_open(self) -> None:
        if self._connection.is_closed:
            raise NotOwnerError(self._context.target.id)

    def _probe(self, deadline: Deadline) -> ProbeChannel:
        """Return the lane's probe on the present connection."""
        shared = self._connection
        connection = shared.opened(deadline) if self._role.owns_connection else shared.current()
        if self._channel is None or self._channel_of is not connection:
            self._channel = start_probe(self._context.target, connection, deadline)
            self._channel_of = connection
            if self._role.owns_connection:
                self._context.reference.new_probe()
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

    def _unanswered(self, lease: Lease, kinds: Sequence[Kind], exc: PollError, report: PollReport) -> None:
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
        self._failed(lease, sorted(failed), exc)

    def _failed(self, lease: Lease, kinds: Sequence[Kind], exc: PollError) -> None:
        delay_seconds = self.failures.record(kinds, exc, self._context.monotonic())
        self._writer.record_failure(lease, kinds, exc, retry_seconds=delay_seconds)

    def _exchange(
        self,
        channel: ProbeChannel,
        kinds: Sequence[Kind],
        lease: Lease,
        deadline: Deadline,
        report: PollReport,
        *,
        force: bool,
        users: Sequence[str],
    ) -> list[Kind]:
        """Make one request; return the kinds that must be polled again, in full, at once."""
        context = self._context
        signature = self._signature(force=force or channel.decoder is None)
        request = request_for(context.target, kinds, deadline, signature=signature, users=users)
        if request is None:
            return []
        polled_at_ms = self._polled_at_ms(force=force)
        moment = PollMoment(lease, context.monotonic(), polled_at_ms)
        results = AnswerResults(context, self._writer, moment, report, users=users)
        sections: Iterable[Section] = exchange(channel, request, deadline)
        if self._role.owns_connection:
            # Quick sections come at once: believed together with the end of their answer.
            sections = list(sections)
        for section in sections:
            self._check_open()
            results.take(section, channel)
        self._settle(kinds, lease, results, report)
        return results.again

    def _signature(self, *, force: bool) -> str:
        """Return the signature of the stored listing, while a "same" may be believed."""
        listing, context = self._writer.stored_listing, self._context
        if listing is None or force or listing.lease != context.lease():
            return NO_SIGNATURE
        age_at_next_poll = context.monotonic() - listing.listed + context.target.intervals[Kind.SESSIONS]
        return NO_SIGNATURE if age_at_next_poll > RELIST_SECONDS else listing.signature

    def _polled_at_ms(self, *, force: bool) -> int:
        # Whoever requested a poll gets a time that is not before the request: the usual bound may be a little low.
        store, target = self._context.store, self._context.target.id
        known_ms = None if force else store.now_ms(target)
        return store.sync_clock(target) if known_ms is None else known_ms

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
        self.failures.succeeded(set(kinds) - results.failures.keys())
