"""FleetCache: the reader that brokers import; every answer comes from Redis, none from an X2Go server."""

from __future__ import annotations

import re
from types import TracebackType
from typing import Any, Self

import redis

from x2gofleet.connection import Breaker, client_from_url, exchange, unavailable
from x2gofleet.errors import RefreshFailed, UnknownProfile
from x2gofleet.events import Events
from x2gofleet.keys import DEFAULT_NAMESPACE, Keys, is_server_id
from x2gofleet.kinds import Kind
from x2gofleet.load import LoadReport
from x2gofleet.lookup import Command, Lookups, Query, ServerStatus, T, View
from x2gofleet.model import SessionList
from x2gofleet.parsing import parse_sessions
from x2gofleet.placement import RESERVATION_SECONDS, Placement, Placements
from x2gofleet.rows import RejectedRow, SessionInfo
from x2gofleet.snapshot import Snapshot

_AFTER_USER = re.compile(r"\d+-\d+_st")
_UNANSWERED = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)


class FleetCache:
    """Answers which sessions, desktops and mounts there are, and on which server.

    Three answers, never mixed: a value (perhaps empty), None or False for "not cached", and CacheUnavailable when Redis
    can't be asked. No method ever opens a connection to an X2Go server. Thread-safe.

    The methods and their semantics follow ``x2go.cache.X2GoListSessionsCache`` of python-x2go where it has them.
    """

    def __init__(self, client: redis.Redis, *, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Use ``client``; ``from_url`` builds one with bounded timeouts."""
        self._client = client
        self._lookups = Lookups(Keys(namespace))
        self._placements = Placements(self._lookups)
        self._breaker = Breaker()

    @classmethod
    def from_url(cls, url: str, *, namespace: str = DEFAULT_NAMESPACE) -> Self:
        """Return a cache that reads from ``redis://host:port/db`` or ``unix:///path``; connects at the first call.

        Raises ValueError for another URL or namespace.
        """
        return cls(client_from_url(url), namespace=namespace)

    def _ask(self, commands: list[Command]) -> list[Any]:
        self._breaker.check()
        try:
            replies = exchange(self._client, commands)
        except _UNANSWERED as exc:
            failure = unavailable(exc, "asking Redis")
            self._breaker.failed(str(failure))
            raise failure from exc
        except redis.exceptions.RedisError as exc:
            self._breaker.succeeded()
            raise unavailable(exc, "asking Redis") from exc
        self._breaker.succeeded()
        return replies

    def _run(self, query: Query[T]) -> T:
        try:
            commands = next(query)
            while True:
                commands = query.send(self._ask(commands) if commands else [])
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _resolve(
        self, session_uuid: str | None, profile_name: str | None, username: str | None
    ) -> tuple[str, str | None] | None:
        if profile_name is not None:
            return profile_name, username
        if session_uuid is None:
            raise ValueError("say what is asked for: session_uuid or profile_name=")
        registered = self._run(self._lookups.registration(session_uuid))
        if registered is None:
            return None
        profile, registered_user = registered
        return profile, registered_user if username is None else username

    def _view(
        self, kind: Kind, session_uuid: str | None, profile_name: str | None, username: str | None
    ) -> tuple[View, str | None] | None:
        """Return the cached View and the user it is for; None where that is not cached."""
        resolved = self._resolve(session_uuid, profile_name, username)
        if resolved is None:
            return None
        profile, user = resolved
        view = self._run(self._lookups.view(profile, kind, user))
        return (view, user) if view.cached else None

    def is_cached(
        self,
        profile_name: str | None = None,
        session_uuid: str | None = None,
        cache_type: str | Kind | None = None,
        *,
        username: str | None = None,
    ) -> bool:
        """Whether a kind of a profile is cached now; with ``cache_type=None`` whether any is.

        Raises ValueError for an unknown ``cache_type``, CacheUnavailable when Redis can't be asked. An unknown
        profile or session UUID is not cached.
        """
        kinds = tuple(Kind) if cache_type is None else (Kind.parse(cache_type),)
        resolved = self._resolve(session_uuid, profile_name, username)
        if resolved is None:
            return False
        return self._run(self._lookups.cached(resolved[0], kinds, resolved[1]))

    def list_sessions(
        self,
        session_uuid: str | None = None,
        *,
        profile_name: str | None = None,
        username: str | None = None,
    ) -> SessionList | None:
        """Return the unfinished sessions of a profile's servers, or None where they are not cached.

        With ``username`` (or a session registered for a user) only that user's. ``SessionList.missing_servers`` names
        the servers that are down and have no snapshot left, ``oldest_age`` is in seconds.
        Raises CacheUnavailable, SchemaMismatch and SnapshotCorrupt.
        """
        found = self._view(Kind.SESSIONS, session_uuid, profile_name, username)
        return None if found is None else _sessions(*found)

    def find_sessions(self, *, username: str) -> SessionList | None:
        """Return the unfinished sessions of one user on every server of the fleet, None where not cached."""
        view = self._run(self._lookups.fleet_view(Kind.SESSIONS, username))
        return _sessions(view, username) if view.cached else None

    def list_desktops(
        self,
        session_uuid: str | None = None,
        *,
        profile_name: str | None = None,
        username: str | None = None,
    ) -> list[str] | None:
        """Return the desktops that a user may share, ``user@:display`` each, or None where not cached.

        Where servers are polled as their administrator a desktop list belongs to one user: without ``username`` it is
        not cached.
        """
        found = self._view(Kind.DESKTOPS, session_uuid, profile_name, username)
        if found is None:
            return None
        return [desktop for snapshot in found[0].snapshots for desktop in snapshot.desktops()]

    def list_mounts(
        self,
        session_uuid: str | None = None,
        *,
        profile_name: str | None = None,
        username: str | None = None,
    ) -> list[str] | None:
        """Return the mounted client folders, ``client|path`` each, or None where not cached."""
        found = self._view(Kind.MOUNTS, session_uuid, profile_name, username)
        if found is None:
            return None
        view, user = found
        return [
            mount.listed
            for snapshot in view.snapshots
            for mount in snapshot.mounts()
            if user is None or belongs_to(mount.session_name, user)
        ]

    def load(self, profile_name: str) -> dict[str, LoadReport] | None:
        """Return the load of a profile's servers by server id, or None where not cached."""
        view = self._run(self._lookups.view(profile_name, Kind.LOAD, None))
        if not view.cached:
            return None
        return {snapshot.server: snapshot.load() for snapshot in view.snapshots}

    def snapshots(
        self,
        *,
        profile_name: str | None = None,
        server: str | None = None,
        kind: str | Kind | None = None,
        username: str | None = None,
    ) -> tuple[Snapshot, ...]:
        """Return the unexpired snapshots of a profile or of one server: raw stdout, age, server, fence.

        Exactly one of ``profile_name`` and ``server`` is given; an unknown one has no snapshots.
        """
        if (profile_name is None) == (server is None):
            raise ValueError("give one of profile_name= and server=")
        if server is not None and not is_server_id(server):
            raise ValueError(f"{server!r} is no server id")
        kinds = tuple(Kind) if kind is None else (Kind.parse(kind),)
        return self._run(
            self._lookups.snapshots(profile_name=profile_name, server=server, kinds=kinds, username=username)
        )

    def view(self, kind: str | Kind, *, profile_name: str | None = None, username: str | None = None) -> View:
        """Return whatever snapshots of a kind there are, of a profile or of the whole fleet, and what is missing.

        For people who look: brokers ask ``list_sessions`` and the like, which never give a part for the whole.
        """
        kind = Kind.parse(kind)
        if profile_name is None:
            return self._run(self._lookups.fleet_view(kind, username))
        return self._run(self._lookups.view(profile_name, kind, username))

    def servers(self) -> tuple[ServerStatus, ...]:
        """Return what is known of every server: up or down and since when, ages, owner, last error, drained."""
        return self._run(self._lookups.servers())

    def events(self, *, since: str | None = None, server: str | None = None, limit: int = 1000) -> Events:
        """Return what changed after ``since``, the cursor of an earlier call; all that is kept where it is None.

        Each server's events are in order; a stream keeps about 1000 entries for a week. ``limit`` is per target.
        Raises ValueError for what is no cursor, CacheUnavailable, SnapshotCorrupt.
        """
        if limit < 1:
            raise ValueError("limit must be at least 1")
        return self._run(self._lookups.events(since, server, limit))

    def profiles(self) -> tuple[str, ...]:
        """Return the names of all profiles; empty where no worker has published an inventory."""
        fleet = self._run(self._lookups.fleet())
        return tuple(fleet.profiles) if fleet else ()

    def update(
        self,
        profile_name: str,
        update_sessions: bool = True,
        update_desktops: bool = False,
        update_mounts: bool = False,
        *,
        username: str | None = None,
        timeout: float = 10.0,
    ) -> tuple[Snapshot, ...]:
        """Have a profile's servers polled now, and return the new snapshots.

        ``timeout`` is in seconds. Desktops are asked for ``username``, or for every user with a session.
        Raises UnknownProfile, RefreshFailed (with ``errors`` by server and ``partial``), CacheUnavailable, and
        ValueError for what is no user name.
        """
        chosen = (
            (Kind.SESSIONS, update_sessions),
            (Kind.DESKTOPS, update_desktops),
            (Kind.MOUNTS, update_mounts),
        )
        kinds = [kind for kind, wanted in chosen if wanted]
        if not kinds:
            return ()
        return self._run(
            self._lookups.request(
                "refresh", profile_name=profile_name, kinds=kinds, username=username, timeout_seconds=timeout
            )
        )

    def update_all(
        self,
        update_sessions: bool = True,
        update_desktops: bool = False,
        update_mounts: bool = False,
        *,
        timeout: float = 10.0,
    ) -> tuple[Snapshot, ...]:
        """Have every profile's servers polled now, then drop what belongs to no target any more.

        Raises as ``update`` does, after every profile was asked.
        """
        from_all: dict[tuple[str, Kind], Snapshot] = {}
        errors: dict[str, str] = {}
        for name in self.profiles():
            try:
                found = self.update(name, update_sessions, update_desktops, update_mounts, timeout=timeout)
            except RefreshFailed as exc:
                errors.update(exc.errors)
                found = exc.partial
            except UnknownProfile:
                # Taken out of the inventory since its name was read.
                continue
            from_all.update({(snapshot.target, snapshot.kind): snapshot for snapshot in found})
        try:
            self.check_cache(timeout=timeout)
        except RefreshFailed as exc:
            errors.update(exc.errors)
        if errors:
            raise RefreshFailed(errors, tuple(from_all.values()))
        return tuple(from_all.values())

    def delete(self, profile_name: str, *, timeout: float = 10.0) -> None:
        """Drop what is cached of a profile; the next poll fills it again. Carried out by the owning workers.

        Raises UnknownProfile, RefreshFailed where a worker did not answer, CacheUnavailable.
        """
        self._run(
            self._lookups.request(
                "delete", profile_name=profile_name, kinds=tuple(Kind), username=None, timeout_seconds=timeout
            )
        )

    def check_cache(self, *, timeout: float = 10.0) -> None:
        """Drop what belongs to targets that are in the inventory no more. Without a live worker nothing is done:
        then everything expires by itself."""
        self._run(self._lookups.check(timeout_seconds=timeout))

    def register_session(self, session_uuid: str, profile_name: str, username: str | None = None) -> None:
        """Remember which profile and user a client's session UUID stands for, for a week."""
        if not session_uuid:
            raise ValueError("a session UUID can't be empty")
        self._run(self._lookups.register(session_uuid, profile_name, username))

    def forget_session(self, session_uuid: str) -> None:
        """Forget a registered session; an unknown one is no error."""
        self._run(self._lookups.forget(session_uuid))

    def place(
        self, profile_name: str, username: str, *, reserve_seconds: float = RESERVATION_SECONDS
    ) -> Placement | None:
        """Return the server of a profile that a login should get, None where that can't be known: not cached.

        A session of the user comes first: suspended before running, of these the newest. Else, of the servers that are
        neither down nor drained, the one with the fewest sessions and reservations for its weight; one with less than a
        quarter of the usual load factor counts as fuller. A place there is reserved for ``reserve_seconds`` (0: none),
        at most until the session is listed; a user has one reservation. Needs the right to write reservations.

        Raises NoServerAvailable where every server is down or drained, CacheUnavailable, SchemaMismatch,
        SnapshotCorrupt, and ValueError for what is no user name or no duration.
        """
        return self._run(self._placements.place(profile_name, username, reserve_seconds=reserve_seconds))

    def reservations(self, profile_name: str) -> dict[str, int] | None:
        """Return how many logins are being placed on each server of a profile, by server id; None where unknown."""
        return self._run(self._placements.reservations(profile_name))

    def reserve(self, server: str, username: str, *, seconds: float = RESERVATION_SECONDS) -> int:
        """Reserve a place on a server that was chosen by other means; return when it expires, in ms of Redis.

        Raises ValueError for what is no server id, user name or duration, CacheUnavailable.
        """
        return self._run(self._placements.reserve(server, username, seconds=seconds))

    def release(self, server: str, username: str) -> bool:
        """Give a reserved place back; False where there was none."""
        return self._run(self._placements.release(server, username))

    def close(self) -> None:
        """Close the connections to Redis."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def belongs_to(session_name: str, username: str) -> bool:
    """Whether a session is that user's, by its name: ``USER-DISPLAY-EPOCH_st...``."""
    rest = session_name.removeprefix(f"{username}-")
    return rest != session_name and _AFTER_USER.match(rest) is not None


def _lines_with(stdout: bytes, username: str) -> bytes:
    """Return the lines that may be this user's: parsing the others would cost ten times as much."""
    field = f"|{username}|".encode("utf-8", "surrogateescape")
    return b"\n".join([line for line in stdout.split(b"\n") if field in line])


def _sessions(view: View, username: str | None) -> SessionList:
    rows: list[SessionInfo] = []
    rejected: list[RejectedRow] = []
    for snapshot in view.snapshots:
        stdout = snapshot.stdout if username is None else _lines_with(snapshot.stdout, username)
        listed, left_out = parse_sessions(stdout, server=snapshot.server)
        rejected.extend(left_out)
        rows.extend([row for row in listed if row.status != "F" and (username is None or row.username == username)])
    return SessionList.from_rows(
        rows, rejected=rejected, missing_servers=view.missing_servers, oldest_age=view.oldest_age
    )
