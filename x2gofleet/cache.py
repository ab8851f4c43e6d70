"""FleetCache: the reader that brokers import; every answer comes from Redis, none from an X2Go server."""

from __future__ import annotations

from collections.abc import Callable, Collection
from time import monotonic
from types import TracebackType
from typing import Any, Self

import redis

from x2gofleet.connection import (
    COMMAND_TIMEOUT_SECONDS,
    CONNECT_TIMEOUT_SECONDS,
    Breaker,
    Link,
    WrongKeyType,
    link_from_url,
    link_of,
    opens_breaker,
    unavailable,
)
from x2gofleet.errors import CacheUnavailable
from x2gofleet.events import Events
from x2gofleet.keys import DEFAULT_NAMESPACE, Keys
from x2gofleet.kinds import Kind
from x2gofleet.load import LoadReport
from x2gofleet.lookup import Lookups, Query, ServerStatus, T, View
from x2gofleet.mirror import Mirror, NoMirror, mirror_from_url
from x2gofleet.model import SessionList
from x2gofleet.placement import RESERVATION_SECONDS, Placement
from x2gofleet.questions import LOOKUP_SECONDS, Questions, question
from x2gofleet.redis_values import checked
from x2gofleet.snapshot import Snapshot


def link_options(lookup_seconds: float) -> dict[str, Any]:
    """Return the timeouts of a link for lookups that may take so long in all."""
    if not 0 < lookup_seconds <= 60:
        raise ValueError(f"a lookup may take up to 60 s, and more than none: not {lookup_seconds:g} s")
    part = lookup_seconds / LOOKUP_SECONDS
    return {
        "connect_timeout_seconds": part * CONNECT_TIMEOUT_SECONDS,
        "command_timeout_seconds": part * COMMAND_TIMEOUT_SECONDS,
    }


class Guard:
    """Stands around each exchange with Redis: refuses it while the breaker is open, and turns its error into ours.

    Holds no state of one exchange, so that many may be under way.
    """

    __slots__ = ("_breaker",)

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker

    def __enter__(self) -> None:
        self._breaker.check()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is None or isinstance(value, WrongKeyType):
            self._breaker.succeeded()
        elif isinstance(value, (redis.exceptions.RedisError, OSError)):
            failure = unavailable(value, "asking Redis")
            if opens_breaker(value):
                self._breaker.failed(str(failure))
            else:
                self._breaker.succeeded()
            raise failure from value


class FleetCache:
    """Answers which sessions, desktops and mounts there are, and on which server.

    Three answers, never mixed: a value (perhaps empty), None or False for "not cached", and CacheUnavailable when Redis
    can't be asked. No method ever opens a connection to an X2Go server. Thread-safe.

    The methods and their semantics follow ``x2go.cache.X2GoListSessionsCache`` of python-x2go where it has them.
    """

    def __init__(
        self,
        client: redis.Redis | Link,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        mirror: Mirror | NoMirror | None = None,
        lookup_seconds: float = LOOKUP_SECONDS,
    ) -> None:
        """Use a redis-py client, whose own timeouts hold, or a link; ``from_url`` makes one with bounded timeouts.

        The client speaks RESP2 or RESP3. A ``mirror`` of the same namespace answers what it can; it is closed with the
        cache. Raises TypeError for a client of another kind (asyncio, a pipeline, a Cluster's, another package's), and
        ValueError for one with ``decode_responses=True`` or a cache of its own: the message says what to change.
        """
        self._link = link_of(client)
        self._questions = Questions(Lookups(Keys(namespace)))
        self._mirror = mirror or NoMirror()
        self._guard = Guard(self._mirror.breaker)
        self._lookup_seconds = lookup_seconds

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        mirror: bool | Collection[str] | None = False,
        lookup_seconds: float = LOOKUP_SECONDS,
    ) -> Self:
        """Return a cache that reads from the Redis, Sentinel group or Cluster at ``url``; connects at the first call.

        ``redis://host:port/db``, ``rediss://``, ``unix:///path``, ``redis+sentinel://`` and ``redis+cluster://``: see
        docs/redis.md.

        With ``mirror=True`` the fleet is held in this process, with a collection of profile names what these need:
        then lookups are answered without Redis (docs/mirror.md). A lookup that Redis does not answer has
        ``lookup_seconds`` in all, then CacheUnavailable is raised; connecting may take a quarter of it, an exchange
        half. Raises ValueError for another URL, namespace, mirror or time.
        """
        followed = mirror_from_url(url, Keys(namespace), mirror)
        link = link_from_url(url, **link_options(lookup_seconds))
        return cls(link, namespace=namespace, mirror=followed, lookup_seconds=lookup_seconds)

    def _run(self, query: Query[T], *, lookup: bool = True) -> T:
        """Ask Redis what a query yields, until it has its result: a lookup within its time in all."""
        deadline = monotonic() + self._lookup_seconds if lookup else None
        try:
            commands = next(query)
            while True:
                if commands:
                    try:
                        with self._guard:
                            replies = self._link.exchange(commands, deadline=deadline)
                    except WrongKeyType as exc:
                        replies = exc.replies
                    replies = checked(commands, replies)
                else:
                    replies = []
                commands = query.send(replies)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _answer(self, method: str, arguments: Any, ask: Callable[[Questions], Query[T]]) -> T:
        """Ask the mirror, then Redis; where that can't be asked, the mirror for what is not expired yet."""
        found = self._mirror.answer(method, arguments, ask)
        if found is not None:
            return found
        try:
            return self._run(self._mirror.watched(ask(self._questions)))
        except CacheUnavailable:
            found = self._mirror.answer(method, arguments, ask, bridging=True)
            if found is None:
                raise
            return found

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
        arguments = profile_name, session_uuid, cache_type, username
        known = self._mirror.now.cached.get(arguments)
        if known is not None and monotonic() < known[0]:
            return True
        return self._answer("cached", arguments, question(Questions.is_cached, *arguments[:3], username=username))

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
        arguments = session_uuid, profile_name, username
        known = self._mirror.now.sessions.get(arguments)
        if known is not None and monotonic() < known[0]:
            found: SessionList = known[1]
            return found
        return self._answer(
            "sessions",
            arguments,
            question(Questions.list_sessions, session_uuid, profile_name=profile_name, username=username),
        )

    def find_sessions(self, *, username: str) -> SessionList | None:
        """Return the unfinished sessions of one user on every server of the fleet, None where not cached."""
        known = self._mirror.now.found.get(username)
        if known is not None and monotonic() < known[0]:
            found: SessionList = known[1]
            return found
        return self._answer("found", username, question(Questions.find_sessions, username=username))

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
        arguments = session_uuid, profile_name, username
        known = self._mirror.now.desktops.get(arguments)
        if known is not None and monotonic() < known[0]:
            return list(known[1])
        return self._answer(
            "desktops",
            arguments,
            question(Questions.list_desktops, session_uuid, profile_name=profile_name, username=username),
        )

    def list_mounts(
        self,
        session_uuid: str | None = None,
        *,
        profile_name: str | None = None,
        username: str | None = None,
    ) -> list[str] | None:
        """Return the mounted client folders, ``client|path`` each, or None where not cached."""
        arguments = session_uuid, profile_name, username
        known = self._mirror.now.mounts.get(arguments)
        if known is not None and monotonic() < known[0]:
            return list(known[1])
        return self._answer(
            "mounts",
            arguments,
            question(Questions.list_mounts, session_uuid, profile_name=profile_name, username=username),
        )

    def load(self, profile_name: str) -> dict[str, LoadReport] | None:
        """Return the load of a profile's servers by server id, or None where not cached."""
        known = self._mirror.now.loads.get(profile_name)
        if known is not None and monotonic() < known[0]:
            return dict(known[1])
        return self._answer("loads", profile_name, question(Questions.load, profile_name))

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
        return self._run(
            self._questions.snapshots(profile_name=profile_name, server=server, kind=kind, username=username)
        )

    def view(self, kind: str | Kind, *, profile_name: str | None = None, username: str | None = None) -> View:
        """Return whatever snapshots of a kind there are, of a profile or of the whole fleet, and what is missing.

        ``View.errors`` has, by target, what cannot be read; that counts as missing. For people who look: brokers ask
        ``list_sessions`` and the like, which never give a part for the whole.
        """
        return self._run(self._questions.view(kind, profile_name=profile_name, username=username))

    def servers(self) -> tuple[ServerStatus, ...]:
        """Return what is known of every server: up or down and since when, ages, owner, last error, drained.

        What of a server cannot be read is unknown, and its error a SnapshotCorrupt; the others are as ever.
        """
        return self._run(self._questions.servers())

    def events(self, *, since: str | None = None, server: str | None = None, limit: int = 1000) -> Events:
        """Return what changed after ``since``, the cursor of an earlier call; all that is kept where it is None.

        Each server's events are in order; a stream keeps about 1000 entries for a week, in equal shares for its users:
        ``Event.missed_since`` says what was left out. ``limit`` is per target.
        Raises ValueError for what is no cursor, CacheUnavailable, SnapshotCorrupt.
        """
        return self._run(self._questions.events(since=since, server=server, limit=limit))

    def profiles(self) -> tuple[str, ...]:
        """Return the names of all profiles; empty where no worker has published an inventory."""
        return self._run(self._questions.profiles())

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
        try:
            return self._run(
                self._questions.update(
                    profile_name, update_sessions, update_desktops, update_mounts, username=username, timeout=timeout
                ),
                lookup=False,
            )
        finally:
            self._mirror.forget(profile_name)

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
        try:
            return self._run(
                self._questions.update_all(update_sessions, update_desktops, update_mounts, timeout=timeout),
                lookup=False,
            )
        finally:
            self._mirror.forget()

    def delete(self, profile_name: str, *, timeout: float = 10.0) -> None:
        """Drop what is cached of a profile; the next poll fills it again. Carried out by the owning workers.

        Raises UnknownProfile, RefreshFailed where a worker did not answer, CacheUnavailable.
        """
        try:
            self._run(self._questions.delete(profile_name, timeout=timeout), lookup=False)
        finally:
            self._mirror.forget(profile_name)

    def check_cache(self, *, timeout: float = 10.0) -> None:
        """Drop what belongs to targets that are in the inventory no more. Without a live worker nothing is done:
        then everything expires by itself."""
        try:
            self._run(self._questions.check_cache(timeout=timeout), lookup=False)
        finally:
            self._mirror.forget()

    def register_session(self, session_uuid: str, profile_name: str, username: str | None = None) -> None:
        """Remember which profile and user a client's session UUID stands for, for a week.

        Raises ValueError for an invalid user name, and for text that UTF-8 can't encode.
        """
        self._run(self._mirror.watched(self._questions.register_session(session_uuid, profile_name, username)))

    def forget_session(self, session_uuid: str) -> None:
        """Forget a registered session; an unknown one is no error."""
        self._run(self._mirror.watched(self._questions.forget_session(session_uuid)))

    def resync(self) -> None:
        """Bring the mirror up to date with what workers have told; returns at once where there is no mirror.

        For who must see what another process has just done. Raises CacheUnavailable where that took more than 2 s,
        SnapshotCorrupt where the inventory can't be read.
        """
        self._mirror.resync()

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
        return self._run(self._questions.place(profile_name, username, reserve_seconds=reserve_seconds))

    def reservations(self, profile_name: str) -> dict[str, int] | None:
        """Return how many logins are being placed on each server of a profile, by server id; None where unknown."""
        return self._run(self._questions.reservations(profile_name))

    def reserve(self, server: str, username: str, *, seconds: float = RESERVATION_SECONDS) -> int:
        """Reserve a place on a server that was chosen by other means; return when it expires, in ms of Redis.

        Raises ValueError for what is no server id, user name or duration, CacheUnavailable.
        """
        return self._run(self._questions.reserve(server, username, seconds=seconds))

    def release(self, server: str, username: str) -> bool:
        """Give a reserved place back; False where there was none."""
        return self._run(self._questions.release(server, username))

    def close(self) -> None:
        """End the mirror and close the connections to Redis."""
        self._mirror.close()
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
