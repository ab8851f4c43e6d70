"""placement: which server of a profile a login should get, shared by FleetCache and its asyncio twin.

A session that the user has already comes first. Else the server with the fewest sessions for its weight gets the login.
Sessions that are still being placed count too: each choice leaves a reservation, until the session is in a listing or
the reservation expires. Choosing and reserving is one script, so that any number of brokers may do it at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from statistics import median

from x2gofleet.errors import CacheUnavailable, NoServerAvailable, SnapshotCorrupt, Unavailable
from x2gofleet.fleet import PublishedFleet, PublishedTarget
from x2gofleet.keys import is_server_id, server_of
from x2gofleet.kinds import Kind
from x2gofleet.lookup import Lookups, Query, is_down
from x2gofleet.owners import other_names
from x2gofleet.parsing import parse_sessions
from x2gofleet.redis_values import LARGEST, Command, fields_of, time_ms, usable
from x2gofleet.rows import SessionInfo
from x2gofleet.snapshot import Snapshot
from x2gofleet.usernames import check_username

RESERVATION_SECONDS = 60.0
_BURDENED = 4.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One server as it stood for a choice.

    ``sessions`` counts those of all users that are not finished, ``reservations`` the logins that were sent there and
    have no session yet. ``load_factor`` is LoadReport's, None where the load is not cached.
    """

    server: str
    hostname: str
    sessions: int
    reservations: int
    load_factor: int | None
    weight: float


@dataclass(frozen=True, slots=True)
class Placement:
    """The server that a login should get.

    ``session`` is the user's own session there, to be resumed or taken over, None where a new one is due. For a new one
    a place is reserved until ``reserved_until_ms`` (on the clock of Redis; None where none was asked for), and
    ``candidates`` are the servers that it was chosen from, the preferred of equals first. ``missing_servers`` are down:
    a session that the user may have there can't be gone on with now.
    """

    server: str
    hostname: str
    session: SessionInfo | None
    reserved_until_ms: int | None
    candidates: tuple[Candidate, ...]
    missing_servers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of one server of a profile.

    ``sessions`` and ``load`` are None where they are not cached; ``reserved``: user name -> expiry in ms of Redis.
    """

    target: PublishedTarget
    sessions: Snapshot | None
    load: Snapshot | None
    down: bool
    reserved: Mapping[str, int]

    def owner_of(self, row: SessionInfo) -> str:
        """Return the user that a session is of: what a user's own target lists is that user's."""
        return self.target.username or row.username


@cache
def _script() -> str:
    return resources.files("x2gofleet").joinpath("lua", "place.lua").read_text(encoding="utf-8")


def _ttl_ms(seconds: float) -> int:
    if not 0 <= seconds <= 3600:
        raise ValueError(f"a reservation lasts from 0 to 3600 s, not {seconds:g}")
    return int(seconds * 1000)


class Placements:
    """Builds the queries that choose servers."""

    def __init__(self, lookups: Lookups) -> None:
        self._lookups, self._keys = lookups, lookups.keys

    def standings(self, profile_name: str) -> Query[tuple[PublishedFleet, int, list[Standing]] | None]:
        """Ask for the inventory, the time in ms, and what is known of each server of a profile: one round trip.

        None where the profile is unknown.
        """

        def targets(fleet: PublishedFleet) -> list[PublishedTarget]:
            return self._lookups.profile_targets(fleet, profile_name, Kind.SESSIONS, None) or []

        def build(fleet: PublishedFleet) -> list[Command]:
            commands: list[Command] = [("TIME",)]
            for target in targets(fleet):
                commands += [
                    ("HGETALL", self._keys.snapshot(target.id, Kind.SESSIONS)),
                    ("HGETALL", self._keys.snapshot(target.id, Kind.LOAD)),
                    self._lookups.down_command(target, Kind.SESSIONS),
                    ("ZRANGE", self._keys.reserved(target.server), 0, -1, "WITHSCORES"),
                ]
            return commands

        answer = yield from self._lookups.with_fleet(build)
        if answer is None:
            return None
        fleet, replies = answer
        now_ms = time_ms(replies[0])
        asked = targets(fleet)
        if not asked:
            return None

        def snapshot(target: PublishedTarget, kind: Kind, reply: Sequence[bytes]) -> Snapshot | None:
            fields = fields_of(reply)
            return Snapshot.from_hash(target.id, kind, fields, now_ms=now_ms) if fields else None

        standings = []
        for index, target in enumerate(asked):
            sessions, load, state, reserved = replies[1 + 4 * index : 5 + 4 * index]
            standings.append(
                Standing(
                    target,
                    snapshot(target, Kind.SESSIONS, sessions),
                    snapshot(target, Kind.LOAD, load),
                    is_down(state),
                    _reserved(usable(reserved), now_ms),
                )
            )
        return fleet, now_ms, standings

    def place(
        self, profile_name: str, username: str, *, reserve_seconds: float = RESERVATION_SECONDS
    ) -> Query[Placement | None]:
        """Choose the server of a login; semantics and errors as FleetCache.place."""
        check_username(username)
        ttl_ms = _ttl_ms(reserve_seconds)
        found = yield from self.standings(profile_name)
        if found is None:
            return None
        fleet, _, standings = found
        if any(s.target.username not in (None, username) for s in standings):
            return None
        if any(s.sessions is None and not s.down for s in standings) or all(s.sessions is None for s in standings):
            return None
        parsed = {s.target.server: _unfinished(s) for s in standings}
        missing = tuple(s.target.server for s in standings if s.down)
        open_ones = [s for s in standings if s.sessions is not None and not s.down]
        own = _best_session(row for s in open_ones for row in parsed[s.target.server] if s.owner_of(row) == username)
        if own is not None:
            server = fleet.servers[own.server]
            return Placement(server.id, server.hostname, own, None, (), missing)
        if _may_have_sessions(open_ones, parsed, username):
            return None
        ready = [s for s in open_ones if not fleet.servers[s.target.server].drain]
        if not ready:
            raise NoServerAvailable(
                profile_name,
                {s.target.server: "down" if s.down else "drained" for s in standings},
            )
        candidates = [_candidate(fleet, s, parsed[s.target.server]) for s in ready]
        factors = _factors(candidates)
        order = sorted(range(len(candidates)), key=lambda i: _preference(candidates[i], username))
        users = {s.target.server: {s.owner_of(row) for row in parsed[s.target.server]} for s in ready}
        arguments: list[object] = [username, ttl_ms, len(order)]
        for i in order:
            used = [name for name in ready[i].reserved if name in users[candidates[i].server]]
            arguments += [candidates[i].sessions, repr(factors[i]), len(used), *used]
        keys = [self._keys.reserved(candidates[i].server) for i in order]
        keys += [self._keys.reserved(s.target.server) for s in standings if s not in ready and username in s.reserved]
        replies = yield [("EVAL", _script(), len(keys), *keys, *arguments)]
        index, until, *reservations = replies[0]
        if not 1 <= index <= len(order) or len(reservations) != len(order):
            raise CacheUnavailable("choosing a server: the script's reply has another form", Unavailable.OTHER)
        chosen = candidates[order[index - 1]]
        return Placement(
            chosen.server,
            chosen.hostname,
            None,
            int(until) if ttl_ms else None,
            tuple(
                replace(candidates[i], reservations=int(count)) for i, count in zip(order, reservations, strict=True)
            ),
            missing,
        )

    def reservations(self, profile_name: str) -> Query[dict[str, int] | None]:
        """Return how many logins are being placed on each server of a profile; as FleetCache.reservations."""
        found = yield from self.standings(profile_name)
        if found is None:
            return None
        counts = {}
        for standing in found[2]:
            users = {standing.owner_of(row) for row in _unfinished(standing)}
            counts[standing.target.server] = sum(name not in users for name in standing.reserved)
        return counts

    def reserve(self, server: str, username: str, *, seconds: float = RESERVATION_SECONDS) -> Query[int]:
        """Reserve a place for a login whose server was chosen elsewhere; as FleetCache.reserve."""
        check_username(username)
        _check_server(server)
        ttl_ms = _ttl_ms(seconds)
        replies = yield [("EVAL", _script(), 1, self._keys.reserved(server), username, ttl_ms, 1, 0, 1, 0)]
        return int(replies[0][1])

    def release(self, server: str, username: str) -> Query[bool]:
        """Give a reserved place back; as FleetCache.release."""
        check_username(username)
        _check_server(server)
        replies = yield [("ZREM", self._keys.reserved(server), username)]
        return bool(replies[0])


def _reserved(reply: Sequence[bytes], now_ms: int) -> dict[str, int]:
    """Return whose reservations have not expired, and when they do: 2**53 ms at the latest, whatever their score."""
    found, items = {}, iter(reply)
    for name, text in zip(items, items, strict=True):
        try:
            score = min(float(text), float(LARGEST))
        except ValueError as exc:
            raise SnapshotCorrupt("a reservation can't be read: its score is not a number") from exc
        if score > now_ms:
            found[name.decode("utf-8", "replace")] = int(score)
    return found


def _check_server(server: str) -> None:
    if not is_server_id(server):
        raise ValueError(f"{server!r} is no server id")


def _unfinished(standing: Standing) -> list[SessionInfo]:
    if standing.sessions is None:
        return []
    rows, _ = parse_sessions(standing.sessions.stdout, server=server_of(standing.target.id))
    return [row for row in rows if row.status != "F"]


def _may_have_sessions(standings: Iterable[Standing], rows: Mapping[str, list[SessionInfo]], username: str) -> bool:
    """Whether a user without a session by this name may have one by another name of the account."""
    return not any(s.owner_of(row) == username for s in standings for row in rows[s.target.server]) and any(
        s.sessions is not None and other_names(s.sessions.stdout, username) for s in standings
    )


def _best_session(rows: Iterable[SessionInfo]) -> SessionInfo | None:
    """Return the session to go on with: a suspended one before a running one, of these the newest.

    A session to be terminated, one being started, and one that shadows another can't be gone on with.
    """
    usable = [
        row for row in rows if row.status in ("S", "R") and not row.is_starting() and row.get_session_type() != "S"
    ]
    return max(usable, key=lambda row: (row.status == "S", row.date_created), default=None)


def _candidate(fleet: PublishedFleet, standing: Standing, rows: Sequence[SessionInfo]) -> Candidate:
    server = fleet.servers[standing.target.server]
    try:
        load_factor = standing.load.load().load_factor if standing.load is not None else None
    except SnapshotCorrupt:
        load_factor = None
    return Candidate(server.id, server.hostname, len(rows), 0, load_factor, server.weight)


def _factors(candidates: Sequence[Candidate]) -> list[float]:
    """Return by what each candidate's count is multiplied: the less weight and the less to offer, the more.

    Load averages lag behind and vary: up to a quarter of the median load factor a server counts as the others do.
    """
    known = [candidate.load_factor for candidate in candidates if candidate.load_factor is not None]
    usual = median(known) if known else 1.0
    return [
        max(1.0, usual / (candidate.load_factor or usual) / _BURDENED) / candidate.weight for candidate in candidates
    ]


def _preference(candidate: Candidate, username: str) -> tuple[int, bytes]:
    """Order servers that are equally full: who has most to offer, then another one for each user."""
    spread = hashlib.blake2b(f"{candidate.server}\0{username}".encode(), digest_size=8).digest()
    return -(candidate.load_factor or 0), spread
