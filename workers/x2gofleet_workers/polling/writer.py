"""writer: stores what a poll has proven, confirms what has not changed, records what failed."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from x2gofleet.errors import PollError
from x2gofleet.events import compare
from x2gofleet.hints import Hint
from x2gofleet.kinds import Kind
from x2gofleet.parsing import parse_sessions
from x2gofleet.snapshot import digest_of
from x2gofleet.store import Lease, Listing, Outcome
from x2gofleet.usernames import is_username
from x2gofleet_workers.polling.context import PollContext, PollMoment
from x2gofleet_workers.probe.proof import Proven
from x2gofleet_workers.probe.requests import NO_SIGNATURE
from x2gofleet_workers.ssh.limits import ATTEMPTS_PER_ADDRESS

GOOD_STATE_TTL_MS = 7 * 24 * 3600 * 1000
_COMPARISONS = 3
_STATE_GRACE_SECONDS = 60.0
_DEADLINES_OF_A_POLL = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredListing:
    """The last listing of sessions that this worker stored: by it, a later "same" is confirmed.

    ``listed`` is the monotonic time of its request, ``listed_at_ms`` the same on the clock of Redis; ``users`` have
    sessions in it.
    """

    signature: str
    digest: str
    lease: Lease
    listed: float
    listed_at_ms: int
    users: tuple[str, ...]


class SnapshotWriter:
    """Writes about one target. ``stored_listing`` is None until a listing was stored, and after doubt about it."""

    def __init__(self, context: PollContext) -> None:
        self._context = context
        self.stored_listing: StoredListing | None = None
        self._last_sessions: tuple[str, bytes] | None = None
        self._last_rejected: dict[Kind, frozenset[str]] = {}
        self._host_name: str | None = None

    @property
    def users(self) -> tuple[str, ...]:
        """Who has a session, by the stored listing."""
        return self.stored_listing.users if self.stored_listing else ()

    def recorded_host_name(self) -> str:
        """Return the host name under which the server last had its sessions, "" where none is known."""
        if self._host_name is None:
            self._host_name = self._context.store.recorded_host_name(self._context.target.id)
        return self._host_name

    def confirm(self, moment: PollMoment, signature: str) -> Outcome:
        """Confirm the stored listing of sessions, if it is the one with ``signature``."""
        context, kind, listing = self._context, Kind.SESSIONS, self.stored_listing
        if listing is None or signature != listing.signature:
            return Outcome.ABSENT
        ttl_ms = self._ttl_ms(kind)
        with context.metrics.redis_call("confirm"):
            outcome = context.store.confirm(
                moment.lease,
                context.store.next_seq(),
                kind,
                digest=listing.digest,
                polled_at_ms=moment.polled_at_ms,
                ttl_ms=ttl_ms,
                state_ttl_ms=GOOD_STATE_TTL_MS,
            )
        if outcome is Outcome.STORED:
            context.counters.confirmed += 1
            at_ms = moment.polled_at_ms
            context.hints.stored(
                context.target.id, kind, Hint(at_ms, listing.listed_at_ms, at_ms + ttl_ms, listing.digest)
            )
        return outcome

    def store(
        self,
        moment: PollMoment,
        name: str,
        kind: Kind,
        proven: Proven,
        *,
        duration_ms: int,
        signature: str = NO_SIGNATURE,
        host_name: str = "",
    ) -> Outcome:
        """Store a listing of ``name``: this target, or a user of it.

        ``host_name``: under which the server has its sessions, "" where the listing does not show it.
        """
        context = self._context
        self._report_rejected(name, kind, proven)
        at_ms, ttl_ms = self._polled_at_ms(moment, name), self._ttl_ms(kind)
        listing = Listing(
            kind,
            proven.stdout,
            digest_of(kind, proven.stdout),
            at_ms,
            at_ms,
            duration_ms,
            ttl_ms,
            GOOD_STATE_TTL_MS,
            proven.exit_status,
            proven.rejected_rows,
            proven.source,
            host_name if kind is Kind.SESSIONS else "",
        )
        if kind is Kind.SESSIONS:
            outcome = self._store_with_changes(moment.lease, listing)
        elif name == context.target.id:
            outcome = self._write(moment.lease, listing)
        else:
            outcome = self._store_of_user(name, listing)
        if outcome is Outcome.STORED:
            context.hints.stored(name, kind, Hint(at_ms, at_ms, at_ms + ttl_ms, listing.digest))
            if kind is Kind.SESSIONS:
                self._remember(moment, listing, signature)
                self._host_name = host_name or self._host_name
        return outcome

    def _ttl_ms(self, kind: Kind) -> int:
        return int(self._context.target.ttls[kind] * 1000)

    def _polled_at_ms(self, moment: PollMoment, name: str) -> int:
        """Return the time of the poll on the clock of the Redis node that has ``name``."""
        store = self._context.store
        if name == self._context.target.id or store.link.one_clock:
            return moment.polled_at_ms
        return store.at_ms(name, moment.started)

    def _remember(self, moment: PollMoment, listing: Listing, signature: str) -> None:
        rows = parse_sessions(listing.stdout)[0]
        users = tuple(sorted({row.username for row in rows if row.status != "F" and is_username(row.username)}))
        self.stored_listing = StoredListing(
            signature, listing.digest, moment.lease, moment.started, listing.polled_at_ms, users
        )

    def _report_rejected(self, name: str, kind: Kind, proven: Proven) -> None:
        """Count rows that were left out, and log them and other notes once for as long as they are the same."""
        reasons = frozenset((*proven.rejected, *proven.notes))
        if reasons and reasons != self._last_rejected.get(kind):
            if proven.rejected:
                log.warning("%s: %d row(s) of %s left out: %s", name, proven.rejected_rows, kind, proven.rejected[0])
            for note in proven.notes[:1]:
                log.warning("%s: %s", name, note)
        self._last_rejected[kind] = reasons
        if proven.rejected_rows:
            self._context.metrics.rows_rejected(kind, proven.rejected_rows)

    def _write(self, lease: Lease, listing: Listing) -> Outcome:
        store = self._context.store
        with self._context.metrics.redis_call("store"):
            return store.store(lease, store.next_seq(), listing)

    def _store_with_changes(self, lease: Lease, listing: Listing) -> Outcome:
        """Store a listing of sessions with what changed since the one that it replaces, whoever stored that."""
        store, outcome = self._context.store, Outcome.REPLACED
        for _ in range(_COMPARISONS):
            base = self._last_sessions or store.stored(lease.target, Kind.SESSIONS)
            changes = compare(base[1], listing.stdout) if base and base[0] != listing.digest else ()
            outcome = self._write(lease, replace(listing, replaces=base[0] if base else "", changes=changes))
            if outcome is Outcome.STORED:
                self._last_sessions = (listing.digest, listing.stdout)
            if outcome is not Outcome.REPLACED:
                break
            self._last_sessions = None
        return outcome

    def _store_of_user(self, name: str, listing: Listing) -> Outcome:
        # A user's desktops on a server polled as its administrator are a target of their own, leased for this write.
        context = self._context
        taken = context.store.acquire(name, ttl_ms=context.ownership.ttl_ms)
        if not isinstance(taken, Lease):
            return Outcome.OLDER
        try:
            return self._write(taken, listing)
        finally:
            context.store.release(taken)

    def record_failure(self, lease: Lease, kinds: Iterable[Kind], exc: PollError, *, retry_seconds: float) -> None:
        """Record a failure in Redis, for as long as the next try may take to come."""
        context = self._context
        context.counters.failed += 1
        if context.target.scope == "server":
            # Desktops are stored under user@server: no success would ever clear a failure of theirs recorded here.
            kinds = [kind for kind in kinds if kind is not Kind.DESKTOPS]
            if not kinds:
                return
        now_ms = context.store.now_ms(context.target.id) or context.store.sync_clock(context.target.id)
        # Other logins of the same address may be tried first, each up to its deadline.
        turns = math.ceil(context.logins_at_address / ATTEMPTS_PER_ADDRESS) - 1
        deadlines = _DEADLINES_OF_A_POLL + turns
        lasting_seconds = retry_seconds + context.target.deadline_seconds * deadlines + _STATE_GRACE_SECONDS
        outcome = context.store.fail(
            lease,
            kinds,
            failed_at_ms=now_ms,
            state_ttl_ms=int(lasting_seconds * 1000),
            error_class=type(exc).__name__,
            error_text=str(exc),
        )
        if outcome is not Outcome.STORED:
            context.metrics.write_refused(outcome)

    def discard(self) -> Outcome:
        """Drop what is cached of the target itself, and have the next poll list in full."""
        context = self._context
        lease = context.lease()
        self.stored_listing = None
        outcome = context.store.discard(lease, tuple(Kind))
        if outcome is not Outcome.LOST:
            context.hints.dropped(context.target.id, Kind)
        return outcome

    def discard_listings(self, lease: Lease) -> None:
        """Drop what is cached that was listed by the server's host name, where that is not its own alone."""
        context, kinds = self._context, (Kind.SESSIONS, Kind.MOUNTS)
        self.stored_listing = self._last_sessions = None
        if context.store.discard(lease, kinds) is not Outcome.LOST:
            context.hints.dropped(context.target.id, kinds)

    def discard_desktops(self, name: str) -> None:
        """Drop the desktops of one user of the server, ``user@server``."""
        context = self._context
        taken = context.store.acquire(name, ttl_ms=context.ownership.ttl_ms)
        if isinstance(taken, Lease):
            context.store.discard(taken, (Kind.DESKTOPS,))
            context.store.release(taken)
            context.hints.dropped(name, (Kind.DESKTOPS,))
