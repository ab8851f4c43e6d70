"""polling: one target's polls: ask over the probe, prove, store or confirm, record what failed.

Two lanes share a target's connection, each with a probe of its own: the quick one (sessions, load) owns the
connection, the slow one (mounts, desktops) can't delay it.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from x2gofleet.errors import CacheUnavailable, ConnectionLost, OutageError, PollError, SetupError
from x2gofleet.events import compare
from x2gofleet.hints import Hint
from x2gofleet.keys import is_username, target_id
from x2gofleet.kinds import Kind
from x2gofleet.lookup import NOT_OWNED
from x2gofleet.parsing import parse_sessions
from x2gofleet.snapshot import digest_of
from x2gofleet.store import Lease, Listing, Outcome, Store
from x2gofleet_workers.hints import NO_HINTS, Hints
from x2gofleet_workers.inventory import PLAIN_SESSIONS_SECONDS, Target, polled_kinds
from x2gofleet_workers.metrics import NO_METRICS, Condition, LaneName, Metrics, StaleReason
from x2gofleet_workers.ownership import Ownership
from x2gofleet_workers.proof import Proven, prove_desktops, prove_load, prove_mounts, prove_sessions
from x2gofleet_workers.shell_probe import UNKNOWN_SIGNATURE, Answer, Request, Section, start_command
from x2gofleet_workers.ssh import Deadline, ProbeChannel, SshConnection

QUICK_KINDS = (Kind.SESSIONS, Kind.LOAD)
SLOW_KINDS = (Kind.DESKTOPS, Kind.MOUNTS)
RELIST_SECONDS = 60.0
GOOD_STATE_TTL_MS = 3600 * 1000
MAX_OUTAGE_BACKOFF_SECONDS = 30.0
MAX_SETUP_BACKOFF_SECONDS = 600.0
RECYCLE_SECONDS = 3600.0
SLOW_DEADLINE_FACTOR = 3
_EARLY = 0.25
_COMPARISONS = 3

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counters:
    """What a target's polls came to."""

    polls: int = 0
    full_listings: int = 0
    confirmed: int = 0
    failed: int = 0
    refused_writes: int = 0
    connections: int = 0


@dataclass(slots=True)
class PollReport:
    """What one poll did: which snapshots it stored, and what went wrong by kind."""

    stored: list[tuple[str, Kind]] = field(default_factory=list)
    errors: dict[Kind, str] = field(default_factory=dict)
    dropped: int = 0


def _nothing() -> None:
    pass


class NotOwnerError(Exception):
    """This worker does not hold the target's lease."""


@dataclass(slots=True)
class _Held:
    """What the worker holds of the last stored listing: by it, a later "same" is confirmed."""

    signature: str
    digest: str
    lease: Lease
    listed: float
    listed_at_ms: int
    users: tuple[str, ...]


def start_probe(target: Target, connection: SshConnection, deadline: Deadline) -> ProbeChannel:
    """Start a probe with the rights that the target's scope asks for."""
    as_root = target.scope == "server" and target.endpoint.user != "root"
    return connection.start_probe(start_command(target.command, as_root=as_root), deadline)


def judge(target: Target, section: Section, mark: bytes, channel: ProbeChannel) -> Proven:
    """Return what may be stored of a section; raises a PollError."""
    stderr, login = channel.stderr_bytes, target.endpoint.user
    uid, host = channel.hello.uid, section.attributes.get("host") or channel.hello.host
    match section.kind:
        case Kind.SESSIONS:
            return prove_sessions(
                section,
                scope=target.scope,
                uid=uid,
                login=login,
                host=host,
                mark=mark,
                stderr=stderr,
                hostname=target.hostname,
            )
        case Kind.LOAD:
            return prove_load(section, stderr=stderr)
        case Kind.MOUNTS:
            return prove_mounts(section, scope=target.scope, uid=uid, login=login, mark=mark, stderr=stderr)
        case Kind.DESKTOPS:
            return prove_desktops(section, stderr=stderr)


class TargetPoller:
    """Polls one target. Thread-safe: one poll at a time per lane."""

    def __init__(
        self,
        target: Target,
        store: Store,
        ownership: Ownership,
        *,
        metrics: Metrics = NO_METRICS,
        hints: Hints = NO_HINTS,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = lambda: random.uniform(0.8, 1.2),
    ) -> None:
        self.target, self.counters, self.metrics, self.hints = target, Counters(), metrics, hints
        self._store, self._ownership = store, ownership
        self._monotonic, self._jitter = monotonic, jitter
        self._connection: SshConnection | None = None
        self._connected_at = 0.0
        self._connection_lock = threading.Lock()
        self._quick = _Lane(self, QUICK_KINDS)
        self._slow = _Lane(self, SLOW_KINDS)
        self._closed = False
        self.conditional = False
        self.held: _Held | None = None
        self.told: tuple[str, bytes] | None = None
        self.tried = False
        self.good_at: dict[Kind, float] = {}
        self._since = monotonic()

    @property
    def connected(self) -> bool:
        """Whether a poll can be made without connecting first."""
        connection = self._connection
        return connection is not None and connection.alive and not self._worn()

    @property
    def condition(self) -> Condition:
        """How the target stands, by its sessions."""
        if self._quick.failing(Kind.SESSIONS):
            return "backing_off"
        return "up" if self.connected else "connecting"

    def ages(self) -> dict[Kind, float]:
        """Return the seconds since the last good answer of each kind, or since the target came to this worker."""
        now = self._monotonic()
        # In scope `server` desktops are stored under user@server, of whoever has a session.
        own = (k for k in polled_kinds(self.target) if k is not Kind.DESKTOPS or self.target.scope == "user")
        return {kind: now - self.good_at.get(kind, self._since) for kind in own}

    def stale(self) -> dict[Kind, StaleReason]:
        """Return the kinds without a good answer for longer than their ttl, and why: readers get none of them."""
        ttls = self.target.ttls
        return {kind: self._stale_reason(kind) for kind, seconds in self.ages().items() if seconds > ttls[kind]}

    def _stale_reason(self, kind: Kind) -> StaleReason:
        if self.condition == "backing_off":
            return "down"
        return "failing" if self._quick.failing(kind) or self._slow.failing(kind) else "late"

    def may_try(self) -> bool:
        """Whether the back-off after a failure is over."""
        return self._quick.may_try()

    def poll_quick(self) -> PollReport:
        """Poll the quick kinds that are due."""
        return self._quick.poll(self._quick.due())

    def poll_slow(self) -> PollReport:
        """Poll the slow kinds that are due, where there is a connection."""
        kinds = self._slow.due() if self.connected else []
        users: tuple[str, ...] = ()
        if Kind.DESKTOPS in kinds and self.target.scope == "server":
            users = self.held.users if self.held else ()
            if not users:
                kinds.remove(Kind.DESKTOPS)
        return self._slow.poll(kinds, users=users)

    def refresh(
        self, kinds: Sequence[Kind], username: str | None, *, begins: Callable[[], None] = _nothing
    ) -> PollReport:
        """Poll ``kinds`` now, in full, whatever is due; desktops of ``username`` or of every user with a session.

        ``begins`` is called when the poll is about to begin: who asked until then is answered by it.
        Raises ValueError for a ``username`` that may not be part of a request or key.
        """
        report = PollReport()
        if username is not None:
            target_id(self.target.server, username)
        quick = [kind for kind in kinds if kind in QUICK_KINDS]
        slow = [kind for kind in kinds if kind in SLOW_KINDS]
        if username is not None and not is_username(username):
            raise ValueError(f"{username!r} is no user name")
        needs_users = Kind.DESKTOPS in slow and self.target.scope == "server" and username is None
        if quick or not self.connected or (needs_users and self.held is None):
            found = self._quick.poll(quick or [Kind.SESSIONS], force=True, begins=begins)
            begins = _nothing
            report.stored += [item for item in found.stored if item[1] in kinds]
            report.errors.update(found.errors)
        if slow and not report.errors:
            users: tuple[str, ...] = ()
            if Kind.DESKTOPS in slow and self.target.scope == "server":
                users = (username,) if username else (self.held.users if self.held else ())
            found = self._slow.poll(slow, force=True, users=users, begins=begins)
            report.stored += found.stored
            report.errors.update(found.errors)
        return report

    def discard(self) -> None:
        """Drop what is cached of this target, and have the next poll list in full."""
        lease = self._lease()
        self.held = None
        if self._store.discard(lease, tuple(Kind)) is Outcome.LOST:
            raise NotOwnerError(self.target.id)
        self.hints.dropped(self.target.id, Kind)
        if self.target.scope == "server":
            for name in self._store.users_desktops(self.target.server):
                self._slow.discard(name)

    def close(self) -> None:
        """Cut the connection, and with it any running poll."""
        self._closed = True
        for lane in (self._quick, self._slow):
            if lane.deadline is not None:
                lane.deadline.cancel()
        self.drop_connection()

    def drop_connection(self) -> None:
        """Close the connection; the next poll opens a new one."""
        with self._connection_lock:
            connection, self._connection = self._connection, None
        self._quick.channel = self._slow.channel = None
        if connection is not None:
            connection.close()

    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def _worn(self) -> bool:
        return self._monotonic() - self._connected_at > RECYCLE_SECONDS

    def _lease(self) -> Lease:
        lease = self._ownership.lease(self.target.id)
        if lease is None:
            raise NotOwnerError(self.target.id)
        return lease

    def channel(self, lane: _Lane, deadline: Deadline) -> ProbeChannel:
        """Return the lane's probe; the quick lane connects where there is no connection."""
        if self._connection is not None and (self._worn() or not self._connection.alive) and lane is self._quick:
            self.drop_connection()
        connection = self._connection
        if connection is None:
            if lane is not self._quick:
                raise ConnectionLost(f"there is no connection to {self.target.server} now")
            connection = SshConnection.open(self.target.endpoint, deadline)
            with self._connection_lock:
                if self._closed:
                    connection.close()
                    raise ConnectionLost("this worker is stopping")
                self._connection = connection
                self._connected_at = self._monotonic() - random.uniform(0, RECYCLE_SECONDS / 4)
            self.counters.connections += 1
            self.metrics.connected()
        channel = lane.channel
        if channel is None or lane.connection is not connection:
            channel = start_probe(self.target, connection, deadline)
            lane.channel, lane.connection = channel, connection
        return channel

    def record_failure(self, lease: Lease, kinds: Iterable[Kind], exc: PollError, *, retry_seconds: float) -> None:
        """Record a failure in Redis, for as long as the next try may take to come."""
        self.counters.failed += 1
        if self.target.scope == "server":
            # Desktops are stored under user@server: no success would ever clear a failure of theirs recorded here.
            kinds = [kind for kind in kinds if kind is not Kind.DESKTOPS]
            if not kinds:
                return
        now_ms = self._store.now_ms(self.target.id) or self._store.sync_clock(self.target.id)
        lasting = retry_seconds + self.target.deadline_seconds * (1 + SLOW_DEADLINE_FACTOR) + 60
        outcome = self._store.fail(
            lease,
            kinds,
            failed_at_ms=now_ms,
            state_ttl_ms=int(lasting * 1000),
            error_class=type(exc).__name__,
            error_text=str(exc),
        )
        if outcome is not Outcome.STORED:
            self.metrics.write_refused(outcome)

    def backoff(self, exc: PollError, failures: int) -> float:
        """Return how many seconds to wait after the ``failures``-th failure in a row."""
        interval = max(0.5, self.target.intervals[Kind.SESSIONS])
        doublings = min(failures - 1, 10)
        if isinstance(exc, SetupError):
            delay = min(MAX_SETUP_BACKOFF_SECONDS, 10.0 * 2.0**doublings)
        elif isinstance(exc, OutageError):
            delay = min(MAX_OUTAGE_BACKOFF_SECONDS, interval * 2.0**doublings)
        else:
            delay = min(MAX_OUTAGE_BACKOFF_SECONDS, interval * failures)
        return delay * self._jitter()


class _Lane:
    """One sequence of polls of a target, over one probe."""

    def __init__(self, poller: TargetPoller, kinds: tuple[Kind, ...]) -> None:
        self.channel: ProbeChannel | None = None
        self.connection: SshConnection | None = None
        self.deadline: Deadline | None = None
        self._poller = poller
        self._kinds = tuple(kind for kind in kinds if poller.target.intervals[kind] > 0)
        self._lock = threading.Lock()
        self._started: dict[Kind, float] = {}
        self._quick = kinds == QUICK_KINDS
        self._name: LaneName = "quick" if self._quick else "slow"
        self._failures: dict[Kind, int] = {}
        self._retry_at: dict[Kind, float] = {}
        self._outage: set[Kind] = set()
        self._told: dict[Kind, str] = {}
        self._told_rejected: dict[Kind, frozenset[str]] = {}

    def due(self) -> list[Kind]:
        """Return the kinds whose interval has passed, nearly: a tick may come a little early."""
        now = self._poller._monotonic()
        return [
            kind
            for kind in self._kinds
            if now >= self._retry_at.get(kind, -math.inf)
            and now - self._started.get(kind, -math.inf) >= self._interval(kind) * (1 - _EARLY)
        ]

    def _interval(self, kind: Kind) -> float:
        target = self._poller.target
        interval = target.intervals[kind]
        if kind is Kind.SESSIONS and not self._poller.conditional and not target.sessions_interval_chosen:
            # The server can't tell what changed: each poll costs it a listing.
            return max(interval, PLAIN_SESSIONS_SECONDS) if self._poller.held else interval
        return interval

    def poll(
        self,
        kinds: Sequence[Kind],
        *,
        force: bool = False,
        users: Sequence[str] = (),
        begins: Callable[[], None] = _nothing,
    ) -> PollReport:
        """Ask for ``kinds`` once; what can't be asked now is in the report's errors.

        ``begins`` is called once no other poll of this lane runs any more.
        """
        report = PollReport()
        if not kinds:
            return report
        with self._lock:
            begins()
            now = self._poller._monotonic()
            for kind in kinds:
                self._started[kind] = now
            try:
                self._poll(list(kinds), report, force=force, users=users)
                self._poller.tried = True
                self._poller.metrics.poll_ended(self._name, self._poller._monotonic() - now)
            except NotOwnerError:
                report.errors.update(dict.fromkeys(kinds, NOT_OWNED))
            except CacheUnavailable as exc:
                report.errors.update(dict.fromkeys(kinds, str(exc)))
                log.debug("%s: %s", self._poller.target.id, exc)
        return report

    def _poll(self, kinds: list[Kind], report: PollReport, *, force: bool, users: Sequence[str]) -> None:
        poller = self._poller
        lease = poller._lease()
        poller.counters.polls += 1
        seconds = poller.target.deadline_seconds * (1 if self._quick else SLOW_DEADLINE_FACTOR)
        self.deadline = deadline = Deadline(seconds)
        if poller.is_closed():
            raise NotOwnerError(poller.target.id)
        try:
            channel = poller.channel(self, deadline)
            for _ in range(2):
                again = self._ask(channel, kinds, lease, deadline, report, force=force, users=users)
                if not again:
                    break
                # What is stored is not what this worker means (flushed, or another owner's): list in full at once.
                kinds, force = list(dict.fromkeys(again)), True
                lease = poller._lease()
        except PollError as exc:
            self._drop_broken()
            if poller.is_closed():
                raise NotOwnerError(poller.target.id) from exc
            report.errors.update(dict.fromkeys(kinds, str(exc)))
            for kind in kinds:
                poller.metrics.polled(kind, "failed")
            unreachable = [kind for kind in Kind if self._quick and poller.target.intervals[kind] > 0]
            self._outage.update(unreachable)
            self._failed(lease, sorted({*kinds, *unreachable}), exc)
        except BaseException:
            if self.channel is not None and not self.channel.idle:
                self._drop_broken()
            raise

    def _failed(self, lease: Lease, kinds: Sequence[Kind], exc: PollError) -> None:
        failures = 1 + max(self._failures.get(kind, 0) for kind in kinds)
        delay = self._poller.backoff(exc, failures)
        self._failures.update(dict.fromkeys(kinds, failures))
        self._retry_at.update(dict.fromkeys(kinds, self._poller._monotonic() + delay))
        text = f"{type(exc).__name__}: {exc}"
        if any(self._told.get(kind) != text for kind in kinds):
            log.warning("%s: %s", self._poller.target.id, text)
            self._told.update(dict.fromkeys(kinds, text))
        self._poller.record_failure(lease, kinds, exc, retry_seconds=delay)

    def _succeeded(self, kinds: Collection[Kind]) -> None:
        """Forget failures of these kinds, and of all that failed as the server was unreachable."""
        over = [kind for kind in self._failures if kind in kinds or kind in self._outage]
        if not kinds or not over:
            return
        self._outage.clear()
        for kind in over:
            for known in (self._failures, self._retry_at, self._told):
                known.pop(kind, None)
        if not self._failures:
            log.info("%s: answers again", self._poller.target.id)

    def failing(self, kind: Kind) -> bool:
        """Whether the last poll of a kind failed."""
        return kind in self._failures

    def may_try(self) -> bool:
        """Whether the back-off of any kind is over."""
        now = self._poller._monotonic()
        return any(now >= self._retry_at.get(kind, -math.inf) for kind in self._kinds)

    def _drop_broken(self) -> None:
        """Give up what can't be used after a broken conversation."""
        if self._quick:
            self._poller.drop_connection()
            return
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.close()

    def _sections(self, kinds: Sequence[Kind], users: Sequence[str], *, force: bool) -> list[str]:
        poller, sections = self._poller, []
        for kind in kinds:
            if kind is Kind.SESSIONS:
                sections.append(f"sessions={self._signature(force=force)}")
            elif kind is Kind.DESKTOPS and poller.target.scope == "server":
                sections += [f"desktops={user}" for user in users]
            else:
                sections.append(kind.value)
        return sections

    def _signature(self, *, force: bool) -> str:
        held = self._poller.held
        if held is None or force or held.lease != self._poller._lease():
            return UNKNOWN_SIGNATURE
        if self._poller._monotonic() - held.listed + self._poller.target.intervals[Kind.SESSIONS] > RELIST_SECONDS:
            return UNKNOWN_SIGNATURE
        return held.signature

    def _ask(
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
        """Ask once; return the kinds that must be asked again, in full, at once."""
        poller = self._poller
        sections = self._sections(kinds, users, force=force or channel.requests == 0)
        if not sections:
            return []
        # Whoever asked for a poll is told a time that is not before the question: the usual bound may be a little low.
        known_ms = None if force else poller._store.now_ms(poller.target.id)
        polled_at_ms = poller._store.sync_clock(poller.target.id) if known_ms is None else known_ms
        started = poller._monotonic()
        request = Request(poller.target.scope, tuple(sections), max(1, int(deadline.left()) - 1))
        again: list[Kind] = []
        waiting = list(users)
        failures: dict[Kind, PollError] = {}
        unwritten: CacheUnavailable | None = None
        lost = False
        answered: Iterable[tuple[Section, Answer]] = channel.ask(request, deadline)
        if self._quick:
            # Quick sections come at once: believed together with the end of their answer.
            answered = list(answered)
        for section, answer in answered:
            name = poller.target.id
            if section.kind is Kind.DESKTOPS and poller.target.scope == "server":
                name = target_id(poller.target.server, waiting.pop(0))
            duration_ms = int((poller._monotonic() - started) * 1000)
            if unwritten is not None:
                poller.metrics.polled(section.kind, "unwritten")
                continue
            if poller.is_closed():
                raise NotOwnerError(poller.target.id)
            try:
                outcome = self._keep(section, channel, answer.mark, lease, name, polled_at_ms, duration_ms, started)
            except PollError as exc:
                failures.setdefault(section.kind, exc)
                continue
            except CacheUnavailable as exc:
                # The rest of the answer is read all the same, so that the probe can be asked again.
                unwritten = exc
                poller.metrics.polled(section.kind, "unwritten")
                continue
            if outcome is Outcome.STORED:
                report.stored.append((name, section.kind))
                poller.metrics.polled(section.kind, "confirmed" if section.same else "stored")
                if name == poller.target.id:
                    poller.good_at[section.kind] = started
                continue
            poller.metrics.polled(section.kind, "refused")
            poller.metrics.write_refused(outcome)
            if outcome in (Outcome.ABSENT, Outcome.LOST):
                poller.counters.refused_writes += outcome is Outcome.LOST
                lost = lost or outcome is Outcome.LOST
                again.append(section.kind)
            else:
                poller.counters.refused_writes += 1
                report.errors[section.kind] = f"the write was refused: {outcome.value}"
        if unwritten is not None:
            raise unwritten
        if lost:
            poller.held = None
            if poller._ownership.reacquire(lease) is None:
                raise NotOwnerError(poller.target.id)
        for kind, failure in failures.items():
            report.errors[kind] = str(failure)
            poller.metrics.polled(kind, "failed")
            if kind is Kind.SESSIONS:
                poller.held = None
            self._outage.discard(kind)
            self._failed(lease, [kind], failure)
        self._succeeded(set(kinds) - failures.keys())
        return again

    def _keep(
        self,
        section: Section,
        channel: ProbeChannel,
        mark: bytes,
        lease: Lease,
        name: str,
        polled_at_ms: int,
        duration_ms: int,
        started: float,
    ) -> Outcome:
        """Prove a section and store it, or confirm what is stored."""
        poller, kind = self._poller, section.kind
        ttl_ms = int(poller.target.ttls[kind] * 1000)
        if name != poller.target.id and not poller._store.link.one_clock:
            polled_at_ms = poller._store.at_ms(name, started)
        if section.same:
            held = poller.held
            if held is None or section.signature != held.signature:
                return Outcome.ABSENT
            with poller.metrics.redis_call("confirm"):
                outcome = poller._store.confirm(
                    lease,
                    poller._store.next_seq(),
                    kind,
                    digest=held.digest,
                    polled_at_ms=polled_at_ms,
                    ttl_ms=ttl_ms,
                    state_ttl_ms=GOOD_STATE_TTL_MS,
                )
            if outcome is Outcome.STORED:
                poller.counters.confirmed += 1
                hint = Hint(polled_at_ms, held.listed_at_ms, polled_at_ms + ttl_ms, held.digest)
                poller.hints.stored(name, kind, hint)
            return outcome
        if kind is Kind.SESSIONS:
            poller.counters.full_listings += 1
            poller.metrics.listed()
        proven = judge(poller.target, section, mark, channel)
        self._tell_rejected(name, kind, proven.rejected)
        if proven.rejected:
            poller.metrics.rows_rejected(kind, len(proven.rejected))
        listing = Listing(
            kind,
            proven.stdout,
            digest_of(kind, proven.stdout),
            polled_at_ms,
            polled_at_ms,
            duration_ms,
            ttl_ms,
            GOOD_STATE_TTL_MS,
            section.status,
            len(proven.rejected),
        )
        outcome = self._store(lease, name, listing)
        if outcome is Outcome.STORED:
            hint = Hint(polled_at_ms, polled_at_ms, polled_at_ms + ttl_ms, listing.digest)
            poller.hints.stored(name, kind, hint)
        if kind is Kind.SESSIONS and outcome is Outcome.STORED:
            rows = parse_sessions(proven.stdout)[0]
            users = tuple(sorted({row.username for row in rows if row.status != "F" and is_username(row.username)}))
            poller.conditional = section.signature != UNKNOWN_SIGNATURE
            poller.held = _Held(section.signature, listing.digest, lease, started, polled_at_ms, users)
        return outcome

    def _tell_rejected(self, name: str, kind: Kind, rejected: tuple[str, ...]) -> None:
        """Log rows that were left out, once for as long as it is the same ones."""
        reasons = frozenset(reason.partition(": ")[2] for reason in rejected)
        if reasons and reasons != self._told_rejected.get(kind):
            log.warning("%s: %d row(s) of %s left out: %s", name, len(rejected), kind, rejected[0])
        self._told_rejected[kind] = reasons

    def _store(self, lease: Lease, name: str, listing: Listing) -> Outcome:
        poller = self._poller
        if listing.kind is Kind.SESSIONS:
            return self._store_with_changes(lease, listing)
        if name == poller.target.id:
            return self._write(lease, listing)
        # A user's desktops on a server polled as its administrator are a target of their own, leased for this write.
        taken = poller._store.acquire(name, ttl_ms=poller._ownership.ttl_ms)
        if not isinstance(taken, Lease):
            return Outcome.OLDER
        try:
            return self._write(taken, listing)
        finally:
            poller._store.release(taken)

    def _write(self, lease: Lease, listing: Listing) -> Outcome:
        store = self._poller._store
        with self._poller.metrics.redis_call("store"):
            return store.store(lease, store.next_seq(), listing)

    def _store_with_changes(self, lease: Lease, listing: Listing) -> Outcome:
        """Store a listing of sessions with what changed since the one that it replaces, whoever stored that."""
        poller, outcome = self._poller, Outcome.REPLACED
        for _ in range(_COMPARISONS):
            base = poller.told or poller._store.stored(lease.target, Kind.SESSIONS)
            changes = compare(base[1], listing.stdout) if base and base[0] != listing.digest else ()
            told = replace(listing, replaces=base[0] if base else "", changes=changes)
            outcome = self._write(lease, told)
            if outcome is Outcome.STORED:
                poller.told = (listing.digest, listing.stdout)
            if outcome is not Outcome.REPLACED:
                break
            poller.told = None
        return outcome

    def discard(self, name: str) -> None:
        """Drop the desktops of one user."""
        store = self._poller._store
        taken = store.acquire(name, ttl_ms=self._poller._ownership.ttl_ms)
        if isinstance(taken, Lease):
            store.discard(taken, (Kind.DESKTOPS,))
            store.release(taken)
            self._poller.hints.dropped(name, (Kind.DESKTOPS,))
