"""lookup: what readers ask of Redis, without the asking: shared by FleetCache and its asyncio twin.

Each query is a generator: it yields lists of commands, is sent their replies (one round trip each), and returns its
result. A cache only drives it.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from x2gofleet.errors import (
    CacheUnavailable,
    FleetError,
    RefreshFailed,
    SchemaMismatch,
    SnapshotCorrupt,
    UnknownProfile,
)
from x2gofleet.events import Event, Events, decode_cursor, decode_entry, encode_cursor
from x2gofleet.fleet import PublishedFleet, PublishedTarget
from x2gofleet.keys import Keys, target_id
from x2gofleet.kinds import Kind
from x2gofleet.redis_values import Command, fields_of, number, time_ms, usable
from x2gofleet.requests import Answer, AnswerCode, AnswerRefused, Operation, Request
from x2gofleet.snapshot import Snapshot
from x2gofleet.usernames import check_username, is_username, may_be_one_account

T = TypeVar("T")
Query = Generator[list[Command], list[Any], T]

REGISTRATION_TTL_MS = 7 * 24 * 3600 * 1000
REQUEST_TTL_MS = 60 * 1000
_BLOCK_SECONDS = 0.2
_UNOWNED_SECONDS = 3.0
_FLEET_READS = 5
_PLANS_KEPT = 1024


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """What is known of one target. Ages and times as in Snapshot; ``up`` is None (unknown) where nothing is cached.

    ``up`` is judged by sessions where these are polled: another kind's failure is told by ``error_class``,
    ``error_text`` and ``failures`` of a target that is up. ``since_ms``: since when it is up or down; where that is
    unknown, when it was last polled, None where no poll is on record.
    """

    id: str
    server: str
    scope: str
    up: bool | None
    since_ms: int | None
    ages: Mapping[Kind, float]
    owner: str | None
    failures: int
    error_class: str
    error_text: str
    last_good_ms: int | None
    last_failed_ms: int | None


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What is known of one server of the fleet.

    ``up``: True, False (its newest poll of sessions failed) or None (unknown: its snapshot has expired, or it was never
    polled). ``ages``: seconds since the server was last asked, per kind that is cached now. ``owner``: id of the worker
    that polls it. ``since_ms``: since when it is up or down without a gap; where ``up`` is None, when it was last
    polled: nothing is known since then (None: no poll is on record). ``read_at_ms``: when this was read; both in ms on
    the clock of Redis.
    """

    id: str
    hostname: str
    up: bool | None
    since_ms: int | None
    ages: Mapping[Kind, float]
    owner: str | None
    failures: int
    error_class: str
    error_text: str
    labels: tuple[str, ...]
    weight: float
    drained: bool
    targets: tuple[TargetStatus, ...] = field(repr=False)
    read_at_ms: int


@dataclass(frozen=True, slots=True)
class View:
    """The answers of a profile's targets for one kind, in the profile's order.

    ``missing_servers`` have no snapshot that can be read; those of them that are not known to be down are
    ``unknown_servers`` too. ``errors`` says, by target, what of it cannot be read: SnapshotCorrupt or SchemaMismatch.
    ``asked_at`` is the monotonic time in seconds at which the question was sent.
    """

    snapshots: tuple[Snapshot, ...]
    missing_servers: tuple[str, ...]
    cached: bool
    unknown_servers: tuple[str, ...] = ()
    asked_at: float | None = field(default=None, compare=False, repr=False)
    errors: Mapping[str, FleetError] = field(default_factory=dict, compare=False)

    def complete(self) -> View:
        """Return this view. Raises the first of its ``errors``: nobody is to take a part for the whole."""
        for error in self.errors.values():
            raise error
        return self

    @property
    def oldest_age(self) -> float | None:
        """Age in seconds of the oldest snapshot, at the time of reading."""
        return max((snapshot.age for snapshot in self.snapshots), default=None)


NOTHING = View((), (), cached=False)


def _state_number(value: bytes) -> int:
    return number(value, "what is stored of a target")


def is_down(reply: Any) -> bool:
    """Whether the newest poll failed, by the reply to ``down_command``. Raises SnapshotCorrupt."""
    state: Sequence[bytes | None] = usable(reply)
    return any(
        failed is not None and _state_number(failed) > _state_number(good or b"0")
        for good, failed in (state[0:2], state[2:4])
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which targets a question is about, and the commands that ask for them, in one version of the inventory."""

    fleet: PublishedFleet
    targets: list[PublishedTarget]
    commands: list[Command]


@dataclass(slots=True)
class _Waiting:
    """A request about one target that is not answered yet: the worker it was sent to, and when to ask that again."""

    server: str
    body: bytes
    owner: str = ""
    again_at: float = math.inf


class Lookups:
    """Builds the queries of one namespace, and keeps the published inventory between them."""

    def __init__(self, keys: Keys, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.keys = keys
        self._version: Command = ("HGET", keys.fleet(), "version")
        self._fleet: PublishedFleet | None = None
        self._plans: dict[tuple[Any, ...], _Plan] = {}
        self._monotonic = monotonic

    @property
    def known(self) -> PublishedFleet | None:
        """The published inventory as it was last read."""
        return self._fleet

    def _read_fleet(self) -> Query[PublishedFleet | None]:
        replies = yield [("HMGET", self.keys.fleet(), "version", "document")]
        self._fleet = None
        version, document = usable(replies[0])
        if version or document:
            self._fleet = PublishedFleet.from_hash(version, document)
        return self._fleet

    def fleet(self) -> Query[PublishedFleet | None]:
        """Return the published inventory, None where nobody has published one."""
        known = self._fleet
        if known is not None:
            replies = yield [self._version]
            if _is_version(replies[0], known):
                return known
        return (yield from self._read_fleet())

    def with_fleet(
        self, build: Callable[[PublishedFleet], list[Command]]
    ) -> Query[tuple[PublishedFleet, list[Any]] | None]:
        """Send what ``build`` makes of the inventory; again where the inventory proves to have changed."""
        fleet = self._fleet
        if fleet is None:
            fleet = yield from self._read_fleet()
        for _ in range(_FLEET_READS):
            if fleet is None:
                return None
            replies = yield [self._version, *build(fleet)]
            if _is_version(replies[0], fleet):
                return fleet, replies[1:]
            fleet = yield from self._read_fleet()
        raise CacheUnavailable("the published inventory changes faster than it can be read")

    def registration(self, session_uuid: str) -> Query[tuple[str, str | None] | None]:
        """Return (profile name, user name or None) of a registered session, None where it is not registered."""
        replies = yield [("HMGET", self.keys.uuid(session_uuid), "profile", "username")]
        profile, username = usable(replies[0])
        if profile is None:
            return None
        return profile.decode("utf-8", "replace"), username.decode("utf-8", "replace") if username else None

    def register(self, session_uuid: str, profile_name: str, username: str | None) -> Query[None]:
        """Remember the profile and user of a session for a week."""
        key = self.keys.uuid(session_uuid)
        fields = ("profile", profile_name, "username", username or "")
        yield [("HSET", key, *fields), ("PEXPIRE", key, REGISTRATION_TTL_MS)]

    def forget(self, session_uuid: str) -> Query[None]:
        """Drop a registration."""
        yield [("DEL", self.keys.uuid(session_uuid))]

    def profile_targets(
        self, fleet: PublishedFleet, profile_name: str, kind: Kind, username: str | None
    ) -> list[PublishedTarget] | None:
        """Return the targets of a profile to ask; None where there is no such profile, or the question doesn't fit."""
        ids = fleet.profiles.get(profile_name)
        return None if ids is None else self._targets(fleet, ids, kind, username)

    def _targets(
        self, fleet: PublishedFleet, ids: Iterable[str], kind: Kind, username: str | None
    ) -> list[PublishedTarget] | None:
        """Return the targets to ask; None where the question does not fit them."""
        found = []
        for name in ids:
            target = fleet.targets[name]
            if target.scope == "user":
                if username is not None and target.username != username:
                    return None
            elif kind is Kind.DESKTOPS:
                if username is None or not is_username(username):
                    return None
                desktops = frozenset({Kind.DESKTOPS})
                owned = target_id(target.server, username)
                target = PublishedTarget(owned, target.server, "server", username, desktops)
            found.append(target)
        return found

    def down_command(self, target: PublishedTarget, kind: Kind) -> Command:
        """Return the command whose reply ``is_down`` judges."""
        state = target.server if target.scope == "server" else target.id
        # One user's desktops tell nothing of the server that they were asked of as its administrator.
        own = Kind.SESSIONS if kind is Kind.DESKTOPS and target.scope == "server" else kind
        names = [f"{name.value}.{when}" for name in (own, Kind.SESSIONS) for when in ("good_at", "failed_at")]
        return ("HMGET", self.keys.state(state), *names)

    def cached(self, profile_name: str, kinds: Sequence[Kind], username: str | None) -> Query[bool]:
        """Whether any of ``kinds`` is cached for a profile: one round trip, and no snapshot is fetched."""

        def plans(fleet: PublishedFleet) -> list[_Plan]:
            return [
                self._plan(
                    ("cached", profile_name, kind, username),
                    fleet,
                    lambda kind=kind: self.profile_targets(fleet, profile_name, kind, username),  # type: ignore[misc]
                    lambda target, kind=kind: ("EXISTS", self.keys.snapshot(target.id, kind)),  # type: ignore[misc]
                    kind,
                )
                for kind in kinds
            ]

        answer = yield from self.with_fleet(lambda fleet: [c for plan in plans(fleet) for c in plan.commands])
        if answer is None:
            return False
        fleet, replies = answer
        for plan in plans(fleet):
            width = len(plan.commands)
            found, down, replies = replies[0:width:2], replies[1:width:2], replies[width:]
            if any(found) and all(there or is_down(state) for there, state in zip(found, down, strict=True)):
                return True
        return False

    def view(self, profile_name: str, kind: Kind, username: str | None) -> Query[View]:
        """Ask for one kind of a whole profile: one round trip."""
        return self._view(
            ("profile", profile_name, kind, username),
            lambda fleet: self.profile_targets(fleet, profile_name, kind, username),
            kind,
        )

    def fleet_view(self, kind: Kind, username: str | None) -> Query[View]:
        """Ask for one kind of every server, as if all were one profile.

        Users' own targets are left out on a server that is polled whole, and with ``username`` those of others.
        """

        def targets(fleet: PublishedFleet) -> list[PublishedTarget] | None:
            whole = {t.server for t in fleet.targets.values() if t.scope == "server"}
            users = [t for t in fleet.targets.values() if t.scope == "user" and t.server not in whole]
            own = {t.id for t in users if username in (None, t.username)}
            if username is not None and any(
                t.id not in own and may_be_one_account(t.username or "", username) for t in users
            ):
                return None
            ids = [t.id for t in fleet.targets.values() if t.scope == "server" or t.id in own]
            return self._targets(fleet, ids, kind, username)

        return self._view(("fleet", kind, username), targets, kind)

    def _plan(
        self,
        question: tuple[Any, ...],
        fleet: PublishedFleet,
        choose: Callable[[], list[PublishedTarget] | None],
        ask: Callable[[PublishedTarget], Command],
        kind: Kind,
    ) -> _Plan:
        """Return the targets of a question and two commands for each: what is asked, and whether it is down."""
        known = self._plans.get(question)
        if known is not None and known.fleet is fleet:
            return known
        targets = choose() or []
        commands = [command for target in targets for command in (ask(target), self.down_command(target, kind))]
        if len(self._plans) >= _PLANS_KEPT:
            self._plans.clear()
        made = self._plans[question] = _Plan(fleet, targets, commands)
        return made

    def _view(
        self,
        question: tuple[Any, ...],
        choose: Callable[[PublishedFleet], list[PublishedTarget] | None],
        kind: Kind,
    ) -> Query[View]:
        def plan(fleet: PublishedFleet) -> _Plan:
            return self._plan(
                question,
                fleet,
                lambda: choose(fleet),
                lambda target: ("HGETALL", self.keys.snapshot(target.id, kind)),
                kind,
            )

        asked_at = 0.0

        def build(fleet: PublishedFleet) -> list[Command]:
            nonlocal asked_at
            asked_at = self._monotonic()
            return [("TIME",), *plan(fleet).commands]

        answer = yield from self.with_fleet(build)
        if answer is None:
            return NOTHING
        fleet, replies = answer
        targets = plan(fleet).targets
        if not targets:
            return NOTHING
        now_ms = time_ms(replies[0])
        snapshots, missing, unknown = [], [], []
        errors: dict[str, FleetError] = {}
        for target, found, state in zip(targets, replies[1::2], replies[2::2], strict=True):
            down = False
            try:
                if fields := fields_of(found):
                    snapshots.append(Snapshot.from_hash(target.id, kind, fields, now_ms=now_ms))
                    continue
                down = is_down(state)
            except (SnapshotCorrupt, SchemaMismatch) as exc:
                errors[target.id] = exc
            missing.append(target.server)
            if not down:
                unknown.append(target.server)
        cached = bool(snapshots) and not unknown
        return View(tuple(snapshots), tuple(missing), cached, tuple(unknown), asked_at, errors)

    def snapshots(
        self, *, profile_name: str | None, server: str | None, kinds: Sequence[Kind], username: str | None
    ) -> Query[tuple[Snapshot, ...]]:
        """Return the unexpired snapshots of a profile or of a server's targets, whatever is missing."""

        def wanted(fleet: PublishedFleet) -> list[tuple[str, Kind]]:
            found: list[tuple[str, Kind]] = []
            for kind in kinds:
                if profile_name is not None:
                    targets = self.profile_targets(fleet, profile_name, kind, username) or []
                else:
                    ids = [
                        t.id
                        for t in fleet.targets.values()
                        if t.server == server and (t.scope == "server" or username in (None, t.username))
                    ]
                    targets = [t for name in ids for t in self._targets(fleet, (name,), kind, username) or ()]
                found.extend((target.id, kind) for target in targets)
            # A user's desktops have one key, whether the server or the user's own target is asked for them.
            return list(dict.fromkeys(found))

        answer = yield from self.with_fleet(
            lambda fleet: [("TIME",), *(("HGETALL", self.keys.snapshot(*item)) for item in wanted(fleet))]
        )
        if answer is None:
            return ()
        fleet, replies = answer
        now_ms = time_ms(replies[0])
        return tuple(
            Snapshot.from_hash(target, kind, fields_of(reply), now_ms=now_ms)
            for (target, kind), reply in zip(wanted(fleet), replies[1:], strict=True)
            if usable(reply)
        )

    def servers(self) -> Query[tuple[ServerStatus, ...]]:
        """Return the status of every server of the inventory, in its order: one round trip.

        A target whose state cannot be read is unknown, with the error of that for its own.
        """
        kinds = tuple(Kind)

        def build(fleet: PublishedFleet) -> list[Command]:
            commands: list[Command] = [("TIME",)]
            for target in fleet.targets.values():
                commands.append(("HGETALL", self.keys.state(target.id)))
                commands.append(("HGET", self.keys.lease(target.id), "owner"))
                commands.extend(("HGET", self.keys.snapshot(target.id, kind), "polled_at") for kind in kinds)
            return commands

        answer = yield from self.with_fleet(build)
        if answer is None:
            return ()
        fleet, replies = answer
        now_ms = time_ms(replies[0])
        width = 2 + len(kinds)
        statuses: dict[str, list[TargetStatus]] = {server: [] for server in fleet.servers}
        for index, target in enumerate(fleet.targets.values()):
            state, owner, *polled = replies[1 + index * width : 1 + (index + 1) * width]
            statuses[target.server].append(_readable_status(target, state, owner, polled, now_ms))
        return tuple(_server_status(fleet, name, targets, now_ms) for name, targets in statuses.items() if targets)

    def events(self, since: str | None, server: str | None, limit: int) -> Query[Events]:
        """Return up to ``limit`` events of each target after a cursor: one round trip."""
        positions = decode_cursor(since)

        def targets(fleet: PublishedFleet) -> list[str]:
            return [t.id for t in fleet.targets.values() if server is None or t.server == server]

        answer = yield from self.with_fleet(
            lambda fleet: [
                (
                    "XRANGE",
                    self.keys.events(name),
                    f"({positions[name]}" if name in positions else "-",
                    "+",
                    "COUNT",
                    limit,
                )
                for name in targets(fleet)
            ]
        )
        if answer is None:
            return Events((), since or encode_cursor({}))
        fleet, replies = answer
        found: list[Event] = []
        for name, reply in zip(targets(fleet), replies, strict=True):
            try:
                entries = [decode_entry(name, entry) for entry in usable(reply)]
            except (KeyError, ValueError) as exc:
                raise SnapshotCorrupt(f"the events of {name} can't be read: {exc}") from exc
            if entries:
                positions[name] = entries[-1].id
            found += entries
        found.sort(key=lambda event: event.order)
        return Events(tuple(found), encode_cursor(positions))

    def request(
        self,
        operation: str,
        *,
        profile_name: str,
        kinds: Sequence[Kind],
        username: str | None,
        timeout_seconds: float,
    ) -> Query[tuple[Snapshot, ...]]:
        """Ask the owners of a profile's targets to act, and wait for their answers.

        Returns the snapshots that they stored. Raises UnknownProfile, RefreshFailed, and ValueError for what is no
        user name.
        """
        if username is not None:
            check_username(username)
        deadline = self._deadline(timeout_seconds)
        fleet = yield from self.fleet()
        if fleet is None or profile_name not in fleet.profiles:
            raise UnknownProfile(profile_name, tuple(fleet.profiles) if fleet else ())
        request_id = secrets.token_hex(8)
        errors: dict[str, str] = {}
        waiting: dict[str, _Waiting] = {}
        for target in (fleet.targets[name] for name in fleet.profiles[profile_name]):
            if username is not None and target.scope == "user" and target.username != username:
                errors[target.server] = f"it is polled as {target.username}, not as {username}"
                continue
            request = Request(request_id, Operation(operation), target.id, tuple(kinds), username)
            waiting[target.id] = _Waiting(target.server, request.encode())
        stored: list[tuple[str, Kind]] = []
        patience = min(deadline, self._monotonic() + _UNOWNED_SECONDS)
        while waiting:
            yield from self._send(waiting)
            now = self._monotonic()
            left = deadline - now
            if left <= 0:
                break
            if not any(item.owner for item in waiting.values()) and (
                # A target that changes hands has no owner for the moment.
                now >= patience or not (yield from self._live_workers())
            ):
                break
            block = max(0.01, min(_BLOCK_SECONDS, left))
            replies = yield [("BLPOP", self.keys.refresh_answers(request_id), block)]
            answer = _answer_of(replies[0])
            item = None if answer is None else waiting.get(answer.target)
            if answer is None or item is None:
                continue
            if answer.code is AnswerCode.NOT_OWNED:
                # It changes hands: asked again once the lease names another owner, or this one has begun to poll it.
                item.again_at = self._monotonic() + _BLOCK_SECONDS
                continue
            del waiting[answer.target]
            if answer.code is not AnswerCode.DONE:
                errors[item.server] = answer.text
            stored += answer.stored
        for item in waiting.values():
            errors[item.server] = (
                f"its worker did not answer within {timeout_seconds:g} s"
                if item.owner
                else "no worker owns it now; is an x2gofleet-worker running?"
            )
        replies = yield [("TIME",), *(("HGETALL", self.keys.snapshot(*item)) for item in stored)]
        now_ms = time_ms(replies[0])
        snapshots = tuple(
            Snapshot.from_hash(name, kind, fields_of(reply), now_ms=now_ms)
            for (name, kind), reply in zip(stored, replies[1:], strict=True)
            if usable(reply)
        )
        if errors:
            raise RefreshFailed(errors, snapshots, what=operation)
        return snapshots

    def _deadline(self, timeout_seconds: float) -> float:
        if not timeout_seconds < math.inf:
            raise ValueError(f"give a number of seconds for timeout=, not {timeout_seconds!r}")
        return self._monotonic() + timeout_seconds

    def _send(self, waiting: Mapping[str, _Waiting]) -> Query[None]:
        """Send each request to the target's owner, again where that has changed."""
        owners = yield [("HGET", self.keys.lease(name), "owner") for name in waiting]
        commands: list[Command] = []
        now = self._monotonic()
        for item, owner in zip(waiting.values(), owners, strict=True):
            name = _text(usable(owner))
            if not name or (name == item.owner and now < item.again_at):
                continue
            item.owner, item.again_at = name, math.inf
            queue = self.keys.refresh_requests(item.owner)
            commands += [("RPUSH", queue, item.body), ("PEXPIRE", queue, REQUEST_TTL_MS)]
        if commands:
            yield commands

    def _live_workers(self) -> Query[list[str]]:
        replies = yield [("ZREVRANGE", self.keys.workers(), 0, -1)]
        members = [_text(worker) for worker in usable(replies[0])]
        # One that was killed is listed until another worker strikes it off.
        alive = yield [("EXISTS", self.keys.worker(worker)) for worker in members]
        return [worker for worker, lives in zip(members, alive, strict=True) if lives]

    def check(self, *, timeout_seconds: float) -> Query[int]:
        """Ask a worker to drop what belongs to no target any more; return how many keys went."""
        deadline = self._deadline(timeout_seconds)
        workers = yield from self._live_workers()
        if not workers:
            return 0
        request_id = secrets.token_hex(8)
        queue = self.keys.refresh_requests(workers[0])
        request = Request(request_id, Operation.CHECK)
        yield [("RPUSH", queue, request.encode()), ("PEXPIRE", queue, REQUEST_TTL_MS)]
        while (left := deadline - self._monotonic()) > 0:
            block = max(0.01, min(_BLOCK_SECONDS, left))
            replies = yield [("BLPOP", self.keys.refresh_answers(request_id), block)]
            answer = _answer_of(replies[0])
            if answer is not None and answer.code is AnswerCode.DONE:
                return answer.dropped
            if answer is not None:
                raise RefreshFailed({"fleet": answer.text}, (), what="check_cache")
        raise RefreshFailed({"fleet": f"no worker answered within {timeout_seconds:g} s"}, (), what="check_cache")


def _answer_of(reply: Any) -> Answer | None:
    """Decode a reply of BLPOP; None where none came, or what came is not a worker's answer."""
    if reply is None:
        return None
    try:
        return Answer.decode(reply[1])
    except AnswerRefused:
        return None


def _is_version(reply: Any, fleet: PublishedFleet) -> bool:
    """Whether the version that Redis has is that of an inventory."""
    found: bytes | None = usable(reply)
    return found == fleet.version.encode()


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("utf-8", "replace")


def _readable_status(
    target: PublishedTarget, state: Any, owner: Any, polled: Sequence[Any], now_ms: int
) -> TargetStatus:
    """Return the status by the replies about a target; what of them cannot be read is unknown, and its error."""
    ages: dict[Kind, float] = {}
    error: SnapshotCorrupt | None = None
    for kind, value in zip(Kind, polled, strict=True):
        try:
            if usable(value) is not None:
                what = f"the {kind.value} snapshot of {target.id}"
                ages[kind] = max(0, now_ms - number(value, what)) / 1000.0
        except SnapshotCorrupt as exc:
            error = exc
    try:
        owned_by = _text(usable(owner))
    except SnapshotCorrupt as exc:
        owned_by, error = "", exc
    try:
        status = _target_status(target, fields_of(state), owned_by or None, ages)
    except SnapshotCorrupt as exc:
        status = replace(_target_status(target, {}, owned_by or None, ages), up=None)
        error = exc
    if error is None or status.error_class:
        return status
    return replace(status, error_class=type(error).__name__, error_text=str(error))


def _target_status(
    target: PublishedTarget, state: Mapping[bytes, bytes], owner: str | None, ages: Mapping[Kind, float]
) -> TargetStatus:
    def newest(when: str) -> dict[Kind, int]:
        names = {kind: state.get(f"{kind.value}.{when}".encode()) for kind in Kind}
        return {kind: _state_number(value) for kind, value in names.items() if value is not None}

    good, failed = newest("good_at"), newest("failed_at")
    broken = [kind for kind, at in failed.items() if at > good.get(kind, 0)]
    main = Kind.SESSIONS if Kind.SESSIONS in target.kinds or not broken else broken[0]
    told = main if main in broken or not broken else broken[0]
    up: bool | None = None
    if main in broken:
        up = False
    elif Kind.SESSIONS in ages or (ages and Kind.SESSIONS not in target.kinds):
        up = True
    since_ms = max((at[main] for at in (good, failed) if main in at), default=None)
    since = state.get(f"{main.value}.since".encode())
    if up is not None:
        since_ms = None if since is None else _state_number(since)
    text = state.get(f"{told.value}.error_text".encode(), b"") if broken else b""
    name = state.get(f"{told.value}.error_class".encode(), b"") if broken else b""
    return TargetStatus(
        target.id,
        target.server,
        target.scope,
        up,
        since_ms,
        ages,
        owner,
        _state_number(state.get(f"{told.value}.failures".encode(), b"0")),
        _text(name),
        _text(text),
        max(good.values(), default=None),
        max(failed.values(), default=None),
    )


def _server_status(fleet: PublishedFleet, name: str, targets: list[TargetStatus], now_ms: int) -> ServerStatus:
    server = fleet.servers[name]
    main = next((target for target in targets if target.scope == "server"), None)
    if main is None:
        main = next((target for target in targets if target.up), targets[0])
    return ServerStatus(
        server.id,
        server.hostname,
        main.up,
        main.since_ms,
        main.ages,
        main.owner,
        main.failures,
        main.error_class,
        main.error_text,
        server.labels,
        server.weight,
        server.drain,
        tuple(targets),
        now_ms,
    )
