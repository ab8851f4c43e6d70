"""questions: every method of a cache as a query without I/O; FleetCache drives them, AsyncFleetCache awaits them.

A method of Questions has the name, the arguments and the errors of FleetCache's, where these are described. It returns
a generator of what is sent to Redis, whose result is the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, ParamSpec

from x2gofleet.errors import RefreshFailed, UnknownProfile
from x2gofleet.events import Events
from x2gofleet.keys import check_text, is_server_id
from x2gofleet.kinds import Kind
from x2gofleet.load import LoadReport
from x2gofleet.lookup import Lookups, Query, ServerStatus, T, View
from x2gofleet.model import SessionList
from x2gofleet.owners import belongs_to, lines_of, of_own_target, other_names, session_names_tell
from x2gofleet.parsing import parse_sessions
from x2gofleet.placement import RESERVATION_SECONDS, Placement, Placements
from x2gofleet.rows import RejectedRow, SessionInfo
from x2gofleet.snapshot import Snapshot
from x2gofleet.usernames import check_username

LOOKUP_SECONDS = 0.95
"""All that a lookup may take, so that a caller has its answer, or CacheUnavailable, within a second."""

_TARGETS_KEPT = 1024
P = ParamSpec("P")

Listed = tuple[list[SessionInfo], tuple[RejectedRow, ...]]


class Questions:
    """What is asked, what of it is valid, and what is made of the replies."""

    def __init__(self, lookups: Lookups) -> None:
        self.lookups = lookups
        self._placements = Placements(lookups)
        self._parsed: dict[str, tuple[bytes, Listed]] = {}

    def _rows(self, snapshot: Snapshot) -> Listed:
        """Return the unfinished sessions of a snapshot; its text is parsed once, as it seldom changes."""
        known = self._parsed.get(snapshot.target)
        if known is not None and known[0] == snapshot.stdout:
            return known[1]
        if len(self._parsed) >= _TARGETS_KEPT:
            self._parsed.clear()
        found = _unfinished(snapshot.stdout, snapshot.server)
        self._parsed[snapshot.target] = snapshot.stdout, found
        return found

    def listed(self, snapshot: Snapshot, username: str | None) -> Listed:
        """Return the unfinished sessions of a snapshot, with ``username`` that user's alone, and the rejected lines."""
        if username is None:
            return self._rows(snapshot)
        rows, left_out = _unfinished(lines_of(snapshot.stdout, username), snapshot.server)
        return [row for row in rows if row.username == username], left_out

    def _sessions(self, view: View, username: str | None) -> SessionList | None:
        """Return the unfinished sessions of a View, with ``username`` that user's alone.

        None where there are none by this name, but some by a name that may be of the same account.
        """
        rows: list[SessionInfo] = []
        rejected: list[RejectedRow] = []
        for snapshot in view.snapshots:
            if username is not None and snapshot.username == username:
                listed, left_out = self.listed(snapshot, None)
                rows += of_own_target(listed, username)
            else:
                listed, left_out = self.listed(snapshot, username)
                rows += listed
            rejected += left_out
        if username is not None and not rows and any(other_names(each.stdout, username) for each in view.snapshots):
            return None
        return SessionList.from_rows(
            rows,
            rejected=rejected,
            missing_servers=view.missing_servers,
            oldest_age=view.oldest_age,
            asked_at=view.asked_at,
        )

    def _resolve(
        self, session_uuid: str | None, profile_name: str | None, username: str | None
    ) -> Query[tuple[str, str | None] | None]:
        if profile_name is not None:
            return profile_name, username
        if session_uuid is None:
            raise ValueError("say what is asked for: session_uuid or profile_name=")
        registered = yield from self.lookups.registration(session_uuid)
        if registered is None:
            return None
        profile, registered_user = registered
        return profile, registered_user if username is None else username

    def _view(
        self, kind: Kind, session_uuid: str | None, profile_name: str | None, username: str | None
    ) -> Query[tuple[View, str | None] | None]:
        """Return the cached View and the user it is for; None where that is not cached."""
        resolved = yield from self._resolve(session_uuid, profile_name, username)
        if resolved is None:
            return None
        profile, user = resolved
        view = (yield from self.lookups.view(profile, kind, user)).complete()
        return (view, user) if view.cached else None

    def is_cached(
        self,
        profile_name: str | None = None,
        session_uuid: str | None = None,
        cache_type: str | Kind | None = None,
        *,
        username: str | None = None,
    ) -> Query[bool]:
        kinds = tuple(Kind) if cache_type is None else (Kind.parse(cache_type),)
        resolved = yield from self._resolve(session_uuid, profile_name, username)
        if resolved is None:
            return False
        return (yield from self.lookups.cached(resolved[0], kinds, resolved[1]))

    def list_sessions(
        self,
        session_uuid: str | None = None,
        *,
        profile_name: str | None = None,
        username: str | None = None,
    ) -> Query[SessionList | None]:
        found = yield from self._view(Kind.SESSIONS, session_uuid, profile_name, username)
        return None if found is None else self._sessions(*found)

    def find_sessions(self, *, username: str) -> Query[SessionList | None]:
        view = (yield from self.lookups.fleet_view(Kind.SESSIONS, username)).complete()
        return self._sessions(view, username) if view.cached else None

    def list_desktops(
        self,
        session_uuid: str | None = None,
        *,
        profile_name: str | None = None,
        username: str | None = None,
    ) -> Query[list[str] | None]:
        found = yield from self._view(Kind.DESKTOPS, session_uuid, profile_name, username)
        if found is None:
            return None
        return [desktop for snapshot in found[0].snapshots for desktop in snapshot.desktops()]

    def list_mounts(
        self,
        session_uuid: str | None = None,
        *,
        profile_name: str | None = None,
        username: str | None = None,
    ) -> Query[list[str] | None]:
        found = yield from self._view(Kind.MOUNTS, session_uuid, profile_name, username)
        if found is None:
            return None
        view, user = found
        mounts = [(snapshot.username, mount) for snapshot in view.snapshots for mount in snapshot.mounts()]
        if user is None or session_names_tell((m.session_name for of, m in mounts if of != user), user):
            return [m.listed for of, m in mounts if user in (None, of) or belongs_to(m.session_name, user)]
        sessions = yield from self.list_sessions(session_uuid, profile_name=profile_name, username=user)
        if sessions is None:
            return None
        return [m.listed for of, m in mounts if of == user or m.session_name in sessions]

    def load(self, profile_name: str) -> Query[dict[str, LoadReport] | None]:
        view = (yield from self.lookups.view(profile_name, Kind.LOAD, None)).complete()
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
    ) -> Query[tuple[Snapshot, ...]]:
        if (profile_name is None) == (server is None):
            raise ValueError("give one of profile_name= and server=")
        if server is not None and not is_server_id(server):
            raise ValueError(f"{server!r} is no server id")
        kinds = tuple(Kind) if kind is None else (Kind.parse(kind),)
        return self.lookups.snapshots(profile_name=profile_name, server=server, kinds=kinds, username=username)

    def view(self, kind: str | Kind, *, profile_name: str | None = None, username: str | None = None) -> Query[View]:
        kind = Kind.parse(kind)
        if profile_name is None:
            return self.lookups.fleet_view(kind, username)
        return self.lookups.view(profile_name, kind, username)

    def servers(self) -> Query[tuple[ServerStatus, ...]]:
        return self.lookups.servers()

    def events(self, *, since: str | None = None, server: str | None = None, limit: int = 1000) -> Query[Events]:
        if limit < 1:
            raise ValueError("limit must be at least 1")
        return self.lookups.events(since, server, limit)

    def profiles(self) -> Query[tuple[str, ...]]:
        fleet = yield from self.lookups.fleet()
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
    ) -> Query[tuple[Snapshot, ...]]:
        chosen = (
            (Kind.SESSIONS, update_sessions),
            (Kind.DESKTOPS, update_desktops),
            (Kind.MOUNTS, update_mounts),
        )
        kinds = [kind for kind, wanted in chosen if wanted]
        if not kinds:
            return ()
        return (
            yield from self.lookups.request(
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
    ) -> Query[tuple[Snapshot, ...]]:
        from_all: dict[tuple[str, Kind], Snapshot] = {}
        errors: dict[str, str] = {}
        for name in (yield from self.profiles()):
            try:
                found = yield from self.update(name, update_sessions, update_desktops, update_mounts, timeout=timeout)
            except RefreshFailed as exc:
                errors.update(exc.errors)
                found = exc.partial
            except UnknownProfile:
                # Taken out of the inventory since its name was read.
                continue
            from_all.update({(snapshot.target, snapshot.kind): snapshot for snapshot in found})
        try:
            yield from self.check_cache(timeout=timeout)
        except RefreshFailed as exc:
            errors.update(exc.errors)
        if errors:
            raise RefreshFailed(errors, tuple(from_all.values()))
        return tuple(from_all.values())

    def delete(self, profile_name: str, *, timeout: float = 10.0) -> Query[None]:
        yield from self.lookups.request(
            "delete", profile_name=profile_name, kinds=tuple(Kind), username=None, timeout_seconds=timeout
        )

    def check_cache(self, *, timeout: float = 10.0) -> Query[None]:
        yield from self.lookups.check(timeout_seconds=timeout)

    def register_session(self, session_uuid: str, profile_name: str, username: str | None = None) -> Query[None]:
        if not session_uuid:
            raise ValueError("a session UUID can't be empty")
        check_text(profile_name, "profile name")
        if username:
            check_username(username)
        return self.lookups.register(session_uuid, profile_name, username)

    def forget_session(self, session_uuid: str) -> Query[None]:
        return self.lookups.forget(session_uuid)

    def place(
        self, profile_name: str, username: str, *, reserve_seconds: float = RESERVATION_SECONDS
    ) -> Query[Placement | None]:
        return self._placements.place(profile_name, username, reserve_seconds=reserve_seconds)

    def reservations(self, profile_name: str) -> Query[dict[str, int] | None]:
        return self._placements.reservations(profile_name)

    def reserve(self, server: str, username: str, *, seconds: float = RESERVATION_SECONDS) -> Query[int]:
        return self._placements.reserve(server, username, seconds=seconds)

    def release(self, server: str, username: str) -> Query[bool]:
        return self._placements.release(server, username)


def question(
    method: Callable[Concatenate[Questions, P], Query[T]], *arguments: P.args, **more: P.kwargs
) -> Callable[[Questions], Query[T]]:
    """Return a question that several Questions may be asked, as ``question(Questions.load, "mate")``."""
    return lambda asked: method(asked, *arguments, **more)


def _unfinished(stdout: bytes, server: str) -> Listed:
    rows, rejected = parse_sessions(stdout, server=server)
    return [row for row in rows if row.status != "F"], rejected
