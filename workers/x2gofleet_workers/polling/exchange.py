"""exchange: one request and its answer: what is requested, when on the clock of Redis, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from x2gofleet.errors import PollError
from x2gofleet.kinds import Kind
from x2gofleet.store import Lease
from x2gofleet_workers.polling.answers import AnswerResults
from x2gofleet_workers.polling.connection import TargetConnection
from x2gofleet_workers.polling.context import PollContext, PollMoment
from x2gofleet_workers.polling.reports import PollReport
from x2gofleet_workers.polling.sections import exchange, request_for
from x2gofleet_workers.polling.writer import SnapshotWriter
from x2gofleet_workers.probe.protocol import Section
from x2gofleet_workers.probe.requests import NO_SIGNATURE
from x2gofleet_workers.ssh import Deadline, ProbeChannel

RELIST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class PollOrder:
    """What a poll is to bring.

    ``force``: in full, whatever is stored. ``extra``: beside the polls at their interval, which stay where they are.
    ``users``: whose desktops, on a server that is polled for all users.
    """

    kinds: tuple[Kind, ...]
    force: bool = False
    extra: bool = False
    users: tuple[str, ...] = ()


class Exchanges:
    """Makes requests for one lane. ``as_a_whole``: its sections are believed together with the end of their answer."""

    def __init__(
        self, context: PollContext, connection: TargetConnection, writer: SnapshotWriter, *, as_a_whole: bool
    ) -> None:
        self._context, self._connection, self._writer = context, connection, writer
        self._as_a_whole = as_a_whole

    def make(
        self, channel: ProbeChannel, order: PollOrder, lease: Lease, deadline: Deadline, report: PollReport
    ) -> AnswerResults:
        """Make one request and take in its answer; where that breaks off, the results say why."""
        context = self._context
        signature = self._signature(force=order.force or channel.decoder is None)
        request = request_for(context.target, order.kinds, deadline, signature=signature, users=order.users)
        polled_at_ms = 0 if request is None else self._polled_at_ms(force=order.force)
        moment = PollMoment(lease, context.monotonic(), polled_at_ms)
        results = AnswerResults(context, self._writer, moment, report, users=order.users)
        if request is None:
            return results
        try:
            sections: Iterable[Section] = exchange(channel, request, deadline)
            for section in list(sections) if self._as_a_whole else sections:
                self._connection.check_open()
                results.take(section, channel)
        except PollError as exc:
            results.broken = exc
        return results

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
