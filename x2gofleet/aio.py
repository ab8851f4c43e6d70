"""AsyncFleetCache: FleetCache for asyncio; the same questions, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from time import monotonic
from types import TracebackType
from typing import Any, Self

import redis.asyncio

from x2gofleet.cache import FleetCache, Guard, link_options
from x2gofleet.connection import AsyncLink, WrongKeyType, async_link_from_url, async_link_of
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


class AsyncFleetCache:
    """Every method of FleetCache as a coroutine, with its arguments, answers and errors; ``aclose`` for ``close``.

    Any number of tasks may ask at once, and each may be cancelled at any time. Not to be shared between threads.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis | AsyncLink,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        mirror: Mirror | NoMirror | None = None,
        lookup_seconds: float = LOOKUP_SECONDS,
    ) -> None:
        """Use a redis-py client, whose own timeouts hold, or a link; ``from_url`` makes one with bounded timeouts.

        A client belongs to one event loop, and speaks RESP2 or RESP3. A ``mirror`` is as FleetCache's. Raises TypeError
        and ValueError as FleetCache does.
        """
        self._link = async_link_of(client)
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
        """Return a cache that reads from the Redis at ``url``, as FleetCache does; connects at the first call.

        Raises ValueError for another URL, namespace or mirror.
        """
        followed = mirror_from_url(url, Keys(namespace), mirror)
        link = async_link_from_url(url, **link_options(lookup_seconds))
        return cls(link, namespace=namespace, mirror=followed, lookup_seconds=lookup_seconds)

    async def _run(self, query: Query[T], *, lookup: bool = True) -> T:
        """Ask Redis what a query yields, until it has its result: a lookup within its time in all."""
        deadline = monotonic() + self._lookup_seconds if lookup else None
        try:
            commands = next(query)
            while True:
                if commands:
                    try:
                        with self._guard:
                            replies = await self._link.exchange(commands, deadline=deadline)
                    except WrongKeyType as exc:
                        replies = exc.replies
                    replies = checked(commands, replies)
                else:
                    replies = []
                commands = query.send(replies)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _answer(self, method: str, arguments: Any, ask: Callable[[Questions], Query[T]]) -> T:
        """Ask the mirror, then Redis; where that can't be asked, the mirror for what is not expired yet."""
        found = self._mirror.answer(method, arguments, ask)
        if found is not None:
            return found
        try:
            return await self._run(self._mirror.watched(ask(self._questions)))
        except CacheUnavailable:
            found = self._mirror.answer(method, arguments, ask, bridging=True)
            if found is None:
                raise
            return found

    async def is_cached(
        self,
        profile_name: str | None = None,
        session_uuid: str | None = None,
        cache_type: str | Kind | None = None,
        *,
        username: str | None = None,
    ) -> bool:
        arguments = profile_name, session_uuid, cache_type, username
        known = self._mirror.now.cached.get(arguments)
        if known is not None and monotonic() < known[0]:
            return True
        return await self._answer("cached", arguments, question(Questions.is_cached, *arguments[:3], username=username))

    async def list_sessions(
        self,
        session_uuid: str | None = None,
        *,
        profile_name: str | None = None,
        username: str | None = None,
    ) -> SessionList | None:
        arguments = session_uuid, profile_name, username
        known = self._mirror.now.sessions.get(arguments)
        if known is not None and monotonic() < known[0]:
            found: SessionList = known[1]
            return found
        return await self._answer(
            "sessions",
            arguments,
            question(Questions.list_sessions, session_uuid, profile_name=profile_name, username=username),
        )

    async def find_sessions(self, *, username: str) -> SessionList | None:
        known = self._mirror.now.found.get(username)
        if known is not None and monotonic() < known[0]:
            found: SessionList = known[1]
            return found
        return await self._answer("found", username, question(Questions.find_sessions, username=username))

    async def list_desktops(
        self,
        session_uuid: str | None = None,
        *,
        profile_name: str | None = None,
        username: str | None = None,
    ) -> list[str] | None:
        arguments = session_uuid, profile_name, username
        known = self._mirror.now.desktops.get(arguments)
        if known is not None and monotonic() < known[0]:
            return list(known[1])
        return await self._answer(
            "desktops",
            arguments,
            question(Questions.list_desktops, session_uuid, profile_name=profile_name, username=username),
        )

    async def list_mounts(
        self,
        session_uuid: str | None = None,
        *,
        profile_name: str | None = None,
        username: str | None = None,
    ) -> list[str] | None:
        arguments = session_uuid, profile_name, username
        known = self._mirror.now.mounts.get(arguments)
        if known is not None and monotonic() < known[0]:
            return list(known[1])
        return await self._answer(
            "mounts",
            arguments,
            question(Questions.list_mounts, session_uuid, profile_name=profile_name, username=username),
        )

    async def load(self, profile_name: str) -> dict[str, LoadReport] | None:
        known = self._mirror.now.loads.get(profile_name)
        if known is not None and monotonic() < known[0]:
            return dict(known[1])
        return await self._answer("loads", profile_name, question(Questions.load, profile_name))

    async def snapshots(
        self,
        *,
        profile_name: str | None = None,
        server: str | None = None,
        kind: str | Kind | None = None,
        username: str | None = None,
    ) -> tuple[Snapshot, ...]:
        return await self._run(
            self._questions.snapshots(profile_name=profile_name, server=server, kind=kind, username=username)
        )

    async def view(self, kind: str | Kind, *, profile_name: str | None = None, username: str | None = None) -> View:
        return await self._run(self._questions.view(kind, profile_name=profile_name, username=username))

    async def servers(self) -> tuple[ServerStatus, ...]:
        return await self._run(self._questions.servers())

    async def events(self, *, since: str | None = None, server: str | None = None, limit: int = 1000) -> Events:
        return await self._run(self._questions.events(since=since, server=server, limit=limit))

    async def profiles(self) -> tuple[str, ...]:
        return await self._run(self._questions.profiles())

    async def update(
        self,
        profile_name: str,
        update_sessions: bool = True,
        update_desktops: bool = False,
        update_mounts: bool = False,
        *,
        username: str | None = None,
        timeout: float = 10.0,
    ) -> tuple[Snapshot, ...]:
        try:
            return await self._run(
                self._questions.update(
                    profile_name, update_sessions, update_desktops, update_mounts, username=username, timeout=timeout
                ),
                lookup=False,
            )
        finally:
            self._mirror.forget(profile_name)

    async def update_all(
        self,
        update_sessions: bool = True,
        update_desktops: bool = False,
        update_mounts: bool = False,
        *,
        timeout: float = 10.0,
    ) -> tuple[Snapshot, ...]:
        try:
            return await self._run(
                self._questions.update_all(update_sessions, update_desktops, update_mounts, timeout=timeout),
                lookup=False,
            )
        finally:
            self._mirror.forget()

    async def delete(self, profile_name: str, *, timeout: float = 10.0) -> None:
        try:
            await self._run(self._questions.delete(profile_name, timeout=timeout), lookup=False)
        finally:
            self._mirror.forget(profile_name)

    async def check_cache(self, *, timeout: float = 10.0) -> None:
        try:
            await self._run(self._questions.check_cache(timeout=timeout), lookup=False)
        finally:
            self._mirror.forget()

    async def register_session(self, session_uuid: str, profile_name: str, username: str | None = None) -> None:
        await self._run(self._mirror.watched(self._questions.register_session(session_uuid, profile_name, username)))

    async def forget_session(self, session_uuid: str) -> None:
        await self._run(self._mirror.watched(self._questions.forget_session(session_uuid)))

    async def resync(self) -> None:
        await asyncio.to_thread(self._mirror.resync)

    async def place(
        self, profile_name: str, username: str, *, reserve_seconds: float = RESERVATION_SECONDS
    ) -> Placement | None:
        return await self._run(self._questions.place(profile_name, username, reserve_seconds=reserve_seconds))

    async def reservations(self, profile_name: str) -> dict[str, int] | None:
        return await self._run(self._questions.reservations(profile_name))

    async def reserve(self, server: str, username: str, *, seconds: float = RESERVATION_SECONDS) -> int:
        return await self._run(self._questions.reserve(server, username, seconds=seconds))

    async def release(self, server: str, username: str) -> bool:
        return await self._run(self._questions.release(server, username))

    async def aclose(self) -> None:
        """End the mirror and close the connections to Redis."""
        await asyncio.to_thread(self._mirror.close)
        await self._link.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _describe() -> None:
    """Give each method the docstring of its twin."""
    for name, method in vars(AsyncFleetCache).items():
        twin = vars(FleetCache).get(name)
        if twin is not None and method.__doc__ is None:
            method.__doc__ = twin.__doc__


_describe()
