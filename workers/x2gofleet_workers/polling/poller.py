"""poller: the polls of one target: two lanes over one connection, when they are due or when a reader requests them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from x2gofleet.kinds import Kind
from x2gofleet.store import Outcome, Store
from x2gofleet.usernames import check_username
from x2gofleet_workers.hints import NO_HINTS, Hints
from x2gofleet_workers.inventory import Target, polled_kinds
from x2gofleet_workers.metrics import NO_METRICS, Condition, Metrics, StaleReason
from x2gofleet_workers.ownership import Ownership
from x2gofleet_workers.polling.backoff import Backoff
from x2gofleet_workers.polling.connection import Connector, TargetConnection
from x2gofleet_workers.polling.context import NO_NOTICES, Notices, NotOwnerError, PollContext, Retries
from x2gofleet_workers.polling.exchange import PollOrder
from x2gofleet_workers.polling.host_names import HostNames
from x2gofleet_workers.polling.lanes import QUICK, SLOW, Lane, nothing
from x2gofleet_workers.polling.reference import ReferenceCheck
from x2gofleet_workers.polling.reports import Counters, PollReport
from x2gofleet_workers.polling.sections import fitting_users, is_of_users, quick_kinds, slow_kinds
from x2gofleet_workers.polling.writer import SnapshotWriter
from x2gofleet_workers.shortages import Shortages


class TargetPoller:
    """Polls one target. Thread-safe: one poll at a time per lane."""

    def __init__(
        self,
        target: Target,
        store: Store,
        ownership: Ownership,
        *,
        connector: Connector,
        retries: Retries,
        logins_at_address: int = 1,
        metrics: Metrics = NO_METRICS,
        shortages: Shortages | None = None,
        hints: Hints = NO_HINTS,
        notices: Notices = NO_NOTICES,
        monotonic: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
    ) -> None:
        self.target = target
        self._context = context = PollContext(
            target=target,
            store=store,
            ownership=ownership,
            retries=retries,
            logins_at_address=logins_at_address,
            metrics=metrics,
            shortages=shortages or Shortages(metrics),
            hints=hints,
            notices=notices,
            monotonic=monotonic,
            reference=ReferenceCheck(target, monotonic=monotonic),
            host_names=HostNames(target.id, store, monotonic, interval_seconds=target.intervals[Kind.SESSIONS]),
        )
        self._connection = TargetConnection(context, connector)
        self._writer = SnapshotWriter(context)
        if backoff is None:
            backoff = Backoff(interval_seconds=target.intervals[Kind.SESSIONS], scope=target.scope)
        self._quick, self._slow = (
            Lane(role, context, self._connection, self._writer, backoff) for role in (QUICK, SLOW)
        )
        self._since = monotonic()
        self._turn = 0

    @property
    def counters(self) -> Counters:
        """What the polls came to."""
        return self._context.counters

    @property
    def tried(self) -> bool:
        """Whether a poll was made, well or not."""
        return self._context.progress.tried

    @property
    def connected(self) -> bool:
        """Whether a poll can be made without connecting first."""
        return self._connection.is_usable

    @property
    def condition(self) -> Condition:
        """How the target stands, by its sessions."""
        if self._quick.failures.is_failing(Kind.SESSIONS):
            return "backing_off"
        return "up" if self.connected else "connecting"

    @property
    def worker_fault(self) -> str:
        """Why this worker itself can't poll the sessions now, "" where that is not so."""
        shortage = self._quick.failures.shortage(Kind.SESSIONS)
        return str(shortage) if shortage is not None else ""

    def ages(self) -> dict[Kind, float]:
        """Return the seconds since the last good answer of each kind, or since the target came to this worker."""
        now, good_at = self._context.monotonic(), self._context.progress.good_at
        own = (kind for kind in polled_kinds(self.target) if not is_of_users(self.target, kind))
        return {kind: now - good_at.get(kind, self._since) for kind in own}

    def stale(self) -> dict[Kind, StaleReason]:
        """Return the kinds without a good answer for longer than their ttl, and why: readers get none of them."""
        ttls = self.target.ttls
        return {kind: self._stale_reason(kind) for kind, seconds in self.ages().items() if seconds > ttls[kind]}

    def _stale_reason(self, kind: Kind) -> StaleReason:
        if self.condition == "backing_off":
            return "down"
        return "failing" if self._lane(kind).failures.is_failing(kind) else "late"

    def may_try(self) -> bool:
        """Whether the back-off after a failure is over."""
        return self._quick.may_try()

    def retry_at(self, kind: Kind) -> float | None:
        """Return when (monotonic time) a kind is tried again that fails or was postponed, None for others."""
        return self._lane(kind).failures.retry_at(kind)

    def _lane(self, kind: Kind) -> Lane:
        return self._quick if kind in quick_kinds(self.target) else self._slow

    def poll_quick(self) -> PollReport:
        """Poll the quick kinds that are due."""
        return self._quick.poll(PollOrder(tuple(self._quick.due())))

    def poll_noticed(self) -> PollReport:
        """Poll the sessions, which the probe says have changed."""
        return self._quick.poll(PollOrder((Kind.SESSIONS,), extra=True))

    def poll_slow(self) -> PollReport:
        """Poll the slow kinds that are due, where there is a connection."""
        kinds = self._slow.due() if self.connected else []
        users: tuple[str, ...] = ()
        if Kind.DESKTOPS in kinds and is_of_users(self.target, Kind.DESKTOPS):
            users = self._in_turn(self._writer.users)
            if not users:
                kinds.remove(Kind.DESKTOPS)
        return self._slow.poll(PollOrder(tuple(kinds), users=users))

    def _in_turn(self, users: tuple[str, ...]) -> tuple[str, ...]:
        """Return the users, another one first each time: where there is no time or room for all, each is served."""
        if not users:
            return ()
        first = self._turn % len(users)
        self._turn += 1
        return fitting_users(users[first:] + users[:first])

    def compare_with_reference(self) -> None:
        """Compare what the polls make of a server's records with X2Go's own query, where that is due."""
        if self.connected and self._context.reference.is_due():
            self._slow.compare_with_reference()

    def refresh(
        self, kinds: Sequence[Kind], username: str | None, *, begins: Callable[[], None] = nothing
    ) -> PollReport:
        """Poll ``kinds`` now, in full, whatever is due; desktops of ``username`` or of every user with a session.

        ``begins`` is called when the poll is about to begin: requests that came until then are answered by it.
        Raises ValueError for a ``username`` that may not be part of a request or key.
        """
        report = PollReport()
        if username is not None:
            check_username(username)
        quick = [kind for kind in kinds if kind in quick_kinds(self.target)]
        slow = [kind for kind in kinds if kind in slow_kinds(self.target)]
        of_users = Kind.DESKTOPS in slow and is_of_users(self.target, Kind.DESKTOPS)
        needs_listing = of_users and username is None and self._writer.stored_listing is None
        if quick or not self.connected or needs_listing:
            found = self._quick.poll(PollOrder(tuple(quick) or (Kind.SESSIONS,), force=True), begins=begins)
            begins = nothing
            report.stored += [item for item in found.stored if item[1] in kinds]
            report.errors.update(found.errors)
            report.not_owned |= found.not_owned
        if slow and not report.errors:
            users: tuple[str, ...] = ()
            if of_users:
                users = (username,) if username else self._in_turn(self._writer.users)
            found = self._slow.poll(PollOrder(tuple(slow), force=True, users=users), begins=begins)
            report.stored += found.stored
            report.errors.update(found.errors)
            report.not_owned |= found.not_owned
        return report

    def discard(self) -> None:
        """Drop what is cached of this target, and have the next poll list in full. Raises NotOwnerError."""
        if self._writer.discard() is Outcome.LOST:
            raise NotOwnerError(self.target.id)
        if self.target.scope == "server":
            for name in self._context.store.users_desktops(self.target.server):
                self._writer.discard_desktops(name)

    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._connection.is_closed

    def close(self) -> None:
        """Cut the connection, and with it any running poll."""
        self._connection.refuse()
        for lane in (self._quick, self._slow):
            lane.cancel()
        self._connection.drop()
