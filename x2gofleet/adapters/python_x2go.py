"""python_x2go: X2GoListSessionsCache of python-x2go, answered from the fleet; ``install`` puts it in place.

A python-x2go client is connected to one server as one user, and its lists are of that server and user. So is what
this class answers: the fleet's snapshot of that server, that user's part of it. ``x2go`` is imported only when used.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from x2gofleet.cache import FleetCache
from x2gofleet.errors import FleetError
from x2gofleet.keys import DEFAULT_NAMESPACE
from x2gofleet.kinds import Kind
from x2gofleet.lookup import View
from x2gofleet.model import SessionList
from x2gofleet.owners import belongs_to, lines_of, other_names, session_names_tell
from x2gofleet.parsing import parse_desktops
from x2gofleet.snapshot import Snapshot
from x2gofleet.usernames import is_username

LIVE_SECONDS = 15.0
"""How long what the client's own connection said is an answer where the fleet has none."""

_KINDS = {"sessions": Kind.SESSIONS, "desktops": Kind.DESKTOPS, "mounts": Kind.MOUNTS}
_NAMED_SECONDS = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a client's connections are matched with the fleet, and how fresh its answers are.

    profiles: python-x2go's profile name -> the fleet's, where they differ. servers: the address that a profile
    connects to -> the fleet's id of that server; needed only where a profile has several servers and the address is
    neither id nor host name of one. max_age_seconds, slow_max_age_seconds: ``update`` has the fleet ask the server
    anew where it last did so longer ago, for sessions and for desktops and mounts. refresh_seconds: how long ``update``
    waits for that. fallback: ask over the client's own connection what the fleet can't tell; fallback_seconds: for
    how long at most.
    """

    profiles: Mapping[str, str] = field(default_factory=dict)
    servers: Mapping[str, str] = field(default_factory=dict)
    max_age_seconds: float = 5.0
    slow_max_age_seconds: float = 30.0
    refresh_seconds: float = 5.0
    fallback: bool = True
    fallback_seconds: float = 20.0


@dataclass(frozen=True, slots=True)
class _Listing:
    """One kind of one server and user: what was said, and a lower bound of when, on this machine's monotonic clock."""

    value: Any
    said_at: float

    @property
    def age(self) -> float:
        return time.monotonic() - self.said_at


@dataclass(slots=True)
class _Profile:
    """What this client itself knows of a profile: its terminals since when, and what its connection said."""

    terminals: dict[str, tuple[Callable[[], Any], float]] = field(default_factory=dict)
    live: dict[Kind, _Listing] = field(default_factory=dict)
    account: str | None = None
    asked_account: Any = None
    asking: set[Kind] = field(default_factory=set)
    dropped: bool = False


class X2GoListSessionsCache:
    """Stands in for ``x2go.cache.X2GoListSessionsCache``: its constructor, methods, return types and exceptions.

    What the fleet has cached is answered at once, and is never older than the fleet's ttl. ``update`` makes sure of an
    answer, fresh enough, and reaps the client's terminals. What the fleet can't tell (an unknown profile, not cached,
    Redis down) is asked over the client's own connection, unless ``Settings.fallback`` is off: then it is not cached.

    Other than the original: an answer expires; a kind that was never fetched is not cached; callers own what they get;
    mounts are of all of the user's running sessions; desktops have no trailing empty entry; a row of a session that is
    being started is left out, where the original gives up its connection.
    """

    def __init__(
        self,
        client_instance: Any,
        logger: Any = None,
        loglevel: Any = None,
        *,
        cache: FleetCache | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Answer ``client_instance`` (an X2GoClient) from ``cache``; ``logger`` and ``loglevel`` are the original's."""
        if cache is None:
            raise TypeError("cache= is missing: the FleetCache to answer from; install() gives it")
        self.client_instance = client_instance
        self.logger = logger
        self._cache = cache
        self._settings = settings or Settings()
        self._profiles: dict[str, _Profile] = {}
        self._named: dict[tuple[str, str], tuple[str | None, float]] = {}
        self._told: set[str] = set()

    def update(
        self,
        profile_name: str,
        update_sessions: bool = True,
        update_desktops: bool = False,
        update_mounts: bool = False,
    ) -> None:
        """Make sure of fresh lists of a profile, and reap the terminals of its sessions that have ended.

        Raises X2GoControlSessionException where the profile's connection is lost: the client then disconnects it.
        """
        control = self._control(profile_name)
        profile = self._profiles.setdefault(profile_name, _Profile())
        profile.dropped = False
        if control is None or control.has_session_died():
            return
        if not control.is_connected():
            self.delete(profile_name)
            raise _control_session_exception("the X2Go control session is not connected")
        _note_terminals(profile, control)
        self._learn_account(profile_name, profile, control)
        wanted = (
            (Kind.SESSIONS, update_sessions),
            (Kind.DESKTOPS, update_desktops),
            (Kind.MOUNTS, update_mounts),
        )
        for kind in [kind for kind, chosen in wanted if chosen]:
            listing = self._fresh(profile_name, kind, control)
            if listing is None and self._settings.fallback:
                listing = self._ask_live(profile_name, kind, control)
            if listing is not None and kind is Kind.SESSIONS:
                _reap(profile, control, listing, self._infos(listing.value))

    def update_all(
        self, update_sessions: bool = True, update_desktops: bool = False, update_mounts: bool = False
    ) -> None:
        """``update`` every connected profile, then ``check_cache``."""
        for profile_name in self._connected():
            self.update(profile_name, update_sessions, update_desktops, update_mounts)
        self.check_cache()

    def check_cache(self) -> None:
        """Forget what belongs to profiles that are no longer connected."""
        connected = set(self._connected())
        for profile_name in list(self._profiles):
            if profile_name not in connected:
                self._profiles.pop(profile_name, None)

    def delete(self, profile_name: str) -> None:
        """Forget a profile until its next ``update``, for this client alone: the fleet's cache stays as it is."""
        self._profiles[profile_name] = _Profile(dropped=True)

    def is_cached(
        self, profile_name: str | None = None, session_uuid: str | None = None, cache_type: str | None = None
    ) -> bool:
        """Whether a kind ('sessions', 'desktops', 'mounts') is cached; with ``cache_type=None`` whether any is.

        Raises X2GoSessionCacheException for an unknown ``session_uuid``.
        """
        if profile_name is None and session_uuid and self.client_instance:
            exceptions = _x2go_exceptions()
            try:
                profile_name = self.client_instance.get_session_profile_name(session_uuid)
            except exceptions.X2GoSessionRegistryException:
                raise exceptions.X2GoSessionCacheException("requested session UUID is not valid anymore") from None
        if profile_name is None:
            return False
        if cache_type is None:
            return any(self._listing(profile_name, kind) is not None for kind in _KINDS.values())
        return cache_type in _KINDS and self._listing(profile_name, _KINDS[cache_type]) is not None

    def list_sessions(self, session_uuid: str) -> dict[str, Any] | None:
        """Return session name -> X2GoServerSessionInfo of a session's server and user, None where not cached.

        What this client itself has started or resumed since the server was asked is in it.
        Raises X2GoSessionRegistryException for an unknown ``session_uuid``.
        """
        profile_name = self.client_instance.get_session_profile_name(session_uuid)
        listing = self._listing(profile_name, Kind.SESSIONS)
        if listing is None:
            return None
        infos = self._infos(listing.value)
        profile, control = self._profiles.setdefault(profile_name, _Profile()), self._control(profile_name)
        if control is not None:
            _note_terminals(profile, control)
            _add_own(profile, infos, listing)
        return infos

    def list_desktops(self, session_uuid: str) -> list[str] | None:
        """Return the desktops that the user may share, ``user@:display`` each; None where not cached."""
        listing = self._listing(self.client_instance.get_session_profile_name(session_uuid), Kind.DESKTOPS)
        return None if listing is None else list(listing.value)

    def list_mounts(self, session_uuid: str) -> dict[str, list[str]] | None:
        """Return session name -> list of ``client|path`` of the user's running sessions; None where not cached."""
        profile_name = self.client_instance.get_session_profile_name(session_uuid)
        mounts = self._listing(profile_name, Kind.MOUNTS)
        if mounts is None:
            return None
        sessions = self._listing(profile_name, Kind.SESSIONS)
        running = [] if sessions is None else _running(sessions.value)
        found: dict[str, list[str]] = {name: [] for name in running}
        for name, listed in mounts.value:
            found.setdefault(name, []).append(listed)
        return found

    def _connected(self) -> list[str]:
        return list(self.client_instance.client_connected_profiles(return_profile_names=True))

    def _control(self, profile_name: str) -> Any:
        return self.client_instance.client_control_session_of_profile_name(profile_name)

    def _infos(self, sessions: SessionList) -> dict[str, Any]:
        """Return the client's own session infos: it ignores those of any other type."""
        client = self.client_instance
        found: dict[str, Any] = {}
        for row in sessions.values():
            if None in (row.agent_pid, row.graphics_port, row.snd_port, row.sshfs_port):
                continue
            try:
                parsed = client.list_backend(row.to_row(), info_backend=client.info_backend)
            except (ValueError, IndexError):
                # A row that we read and python-x2go can't: without it the others are still right.
                log.warning("session %r is left out: python-x2go can't read its row", row.name)
                continue
            found.update(parsed.get_sessions())
        return found

    def _listing(self, profile_name: str, kind: Kind) -> _Listing | None:
        """Return what is known now without asking a server: the fleet's answer, else a recent one of the connection."""
        profile, control = self._profiles.get(profile_name), self._control(profile_name)
        if control is None or (profile is not None and profile.dropped):
            return None
        try:
            found = self._from_fleet(profile_name, kind, control)
        except _x2go_exceptions().X2GoControlSessionException:
            # The connection is lost, which is for ``update`` to tell.
            return None
        if found is None and profile is not None:
            live = profile.live.get(kind)
            found = live if live is not None and live.age <= LIVE_SECONDS else None
        return found

    def _from_fleet(self, profile_name: str, kind: Kind, control: Any) -> _Listing | None:
        name, username = self._settings.profiles.get(profile_name, profile_name), control.remote_username()
        if username is None:
            return None
        before = time.monotonic()
        try:
            view = self._cache.view(kind, profile_name=name, username=username)
            snapshot = self._own(view, name, str(control.get_hostname()))
            if snapshot is None:
                return None
            said_at = before - snapshot.age
            if kind is Kind.DESKTOPS:
                return _Listing(snapshot.desktops(), said_at)
            known = self._profiles.get(profile_name)
            account = known.account if known is not None else None
            if kind is Kind.SESSIONS:
                sessions = _sessions(snapshot, username, account)
                return None if sessions is None else _Listing(sessions, said_at)
            mounts = [(mount.session_name, mount.listed) for mount in snapshot.mounts()]
            if snapshot.username != username:
                name = account or username
                if session_names_tell((mount[0] for mount in mounts), name):
                    mounts = [mount for mount in mounts if belongs_to(mount[0], name)]
                else:
                    listed = self._from_fleet(profile_name, Kind.SESSIONS, control)
                    if listed is None:
                        return None
                    mounts = [mount for mount in mounts if mount[0] in listed.value]
            return _Listing(mounts, said_at)
        except FleetError as exc:
            self._tell(f"the fleet can't answer for profile {name!r} now: {exc}")
            return None

    def _learn_account(self, profile_name: str, profile: _Profile, control: Any) -> None:
        """Learn what the server calls the account, where the fleet has no session by the name of the login.

        A login as ``Alice`` may be one of ``alice``: X2Go's rows have the name that the server gives to the uid. The
        server is asked for it over the client's connection, once.
        """
        if not self._settings.fallback or (profile.asked_account is not None and profile.asked_account() is control):
            return
        profile.account = None
        found = self._from_fleet(profile_name, Kind.SESSIONS, control)
        if found is None or not found.value:
            profile.account = self._account_of(control)
            profile.asked_account = weakref.ref(control)

    def _account_of(self, control: Any) -> str | None:
        said: list[str] = []

        def ask() -> None:
            with contextlib.suppress(Exception, _x2go_exceptions().X2GoControlSessionException):
                _, stdout, _ = control._x2go_exec_command("id -un")
                said.extend(stdout.read().decode().split("\n"))

        thread = threading.Thread(target=ask, daemon=True, name="x2gofleet-live-account")
        thread.start()
        thread.join(self._settings.fallback_seconds)
        return said[0] if said and is_username(said[0]) else None

    def _own(self, view: View, fleet_profile: str, address: str) -> Snapshot | None:
        """Return the snapshot of the server that the client is connected to, None where there is none."""
        servers = {*(snapshot.server for snapshot in view.snapshots), *view.missing_servers}
        own = next(iter(servers)) if len(servers) == 1 else self._server_of(fleet_profile, address, servers)
        return next((snapshot for snapshot in view.snapshots if snapshot.server == own), None)

    def _server_of(self, fleet_profile: str, address: str, servers: set[str]) -> str | None:
        """Return the id of the server at an address, of a profile with several."""
        if not servers or address in self._settings.servers:
            return self._settings.servers.get(address)
        known = self._named.get((fleet_profile, address))
        if known is not None and time.monotonic() < known[1] and known[0] in (None, *servers):
            return known[0]
        names = {status.id: {status.id, status.hostname} for status in self._cache.servers() if status.id in servers}
        exact = [name for name, own in names.items() if address in own]
        found = exact or [name for name, own in names.items() if _same_host(address, own)]
        if len(found) != 1:
            self._tell(
                f"profile {fleet_profile!r} has several servers, and {address!r} is the name of none of them: "
                f"say which it is, servers={{{address!r}: ID}} with one of {', '.join(sorted(servers))}"
            )
        own = found[0] if len(found) == 1 else None
        self._named[fleet_profile, address] = own, time.monotonic() + _NAMED_SECONDS
        return own

    def _fresh(self, profile_name: str, kind: Kind, control: Any) -> _Listing | None:
        """Return the fleet's answer, younger than the settings say where the fleet's workers can make it so."""
        settings = self._settings
        limit = settings.max_age_seconds if kind is Kind.SESSIONS else settings.slow_max_age_seconds
        found = self._from_fleet(profile_name, kind, control)
        if found is not None and found.age <= limit:
            return found
        name = settings.profiles.get(profile_name, profile_name)
        try:
            self._cache.update(
                name,
                kind is Kind.SESSIONS,
                kind is Kind.DESKTOPS,
                kind is Kind.MOUNTS,
                username=control.remote_username(),
                timeout=settings.refresh_seconds,
            )
        except (FleetError, ValueError) as exc:
            self._tell(f"the fleet can't refresh profile {name!r} now: {exc}")
            return found
        return self._from_fleet(profile_name, kind, control)

    def _tell(self, message: str) -> None:
        """Log what keeps the fleet from answering, once until it is something else."""
        if message not in self._told:
            if len(self._told) > 100:
                self._told.clear()
            self._told.add(message)
            log.warning("%s", message)

    def _ask_live(self, profile_name: str, kind: Kind, control: Any) -> _Listing | None:
        """Ask the server over the client's connection; None where that takes too long, and its answer is kept then."""
        profile = self._profiles.setdefault(profile_name, _Profile())
        if kind in profile.asking:
            return None
        profile.asking.add(kind)
        lost: list[BaseException] = []

        def ask() -> None:
            try:
                profile.live[kind] = self._live(profile_name, kind, control)
            except BaseException as exc:  # x2go's exceptions are no Exceptions; they are told by the caller's thread.
                lost.append(exc)
            finally:
                profile.asking.discard(kind)

        before = time.monotonic()
        thread = threading.Thread(target=ask, daemon=True, name=f"x2gofleet-live-{kind.value}")
        thread.start()
        thread.join(self._settings.fallback_seconds)
        exceptions = _x2go_exceptions()
        if not lost:
            listing = profile.live.get(kind)
            return listing if listing is not None and listing.said_at >= before else None
        if isinstance(lost[0], exceptions.X2GoControlSessionException | AttributeError):
            self.delete(profile_name)
            raise _control_session_exception(str(lost[0])) from lost[0]
        if isinstance(lost[0], Exception | exceptions.X2GoTimeOutException):
            self._tell(f"{kind.value} of profile {profile_name!r} could not be asked live: {lost[0]!r}")
            return None
        raise lost[0]

    def _live(self, profile_name: str, kind: Kind, control: Any) -> _Listing:
        # raw: the text as printed. What parses it for the client tries 20 times, then disconnects, where a session is
        # being started.
        before = time.monotonic()
        value: Any
        if kind is Kind.SESSIONS:
            value = SessionList.from_stdout(_stdout(control.list_sessions(raw=True))).without_finished()
        elif kind is Kind.DESKTOPS:
            value = parse_desktops(_stdout(control.list_desktops(raw=True)))
        else:
            sessions = self._listing(profile_name, Kind.SESSIONS)
            listed = self._live(profile_name, Kind.SESSIONS, control) if sessions is None else sessions
            value = [
                (name, line)
                for name in _running(listed.value)
                for line in _stdout(control.list_mounts(name, raw=True)).decode().splitlines()
                if line
            ]
        if control.has_session_died():
            raise _control_session_exception("the X2Go control session has died")
        return _Listing(value, before)


def install(
    cache: FleetCache | str, *, namespace: str = DEFAULT_NAMESPACE, settings: Settings | None = None
) -> type[X2GoListSessionsCache]:
    """Have every X2GoClient made from now on answer from ``cache``, a FleetCache or the URL of a Redis.

    ``x2go`` patches sockets, locks and threads (gevent) as it is imported: import it before x2gofleet, and give the URL
    or a FleetCache made after that. Returns the class that was put in place; ``uninstall`` takes it out again.
    """
    client = _x2go_client()
    answering = FleetCache.from_url(cache, namespace=namespace) if isinstance(cache, str) else cache
    chosen = settings or Settings()

    class Installed(X2GoListSessionsCache):
        def __init__(self, client_instance: Any, logger: Any = None, loglevel: Any = None) -> None:
            super().__init__(client_instance, logger, loglevel, cache=answering, settings=chosen)

    Installed.__name__ = Installed.__qualname__ = X2GoListSessionsCache.__name__
    client.X2GoListSessionsCache = Installed
    return Installed


def uninstall() -> None:
    """Give python-x2go its own cache back; clients that exist keep theirs. No error where nothing was installed."""
    client = sys.modules.get("x2go.client")
    if client is not None:
        vars(client)["X2GoListSessionsCache"] = sys.modules["x2go.cache"].X2GoListSessionsCache


@contextlib.contextmanager
def installed(
    cache: FleetCache | str, *, namespace: str = DEFAULT_NAMESPACE, settings: Settings | None = None
) -> Iterator[type[X2GoListSessionsCache]]:
    """``install`` for the length of a ``with``; what stood there before is put back."""
    client = _x2go_client()
    before = client.X2GoListSessionsCache
    try:
        yield install(cache, namespace=namespace, settings=settings)
    finally:
        client.X2GoListSessionsCache = before


def attach(client: Any, cache: FleetCache, *, settings: Settings | None = None) -> X2GoListSessionsCache:
    """Hand one X2GoClient this cache; it must have been made with ``use_listsessions_cache=True``.

    Raises ValueError where it was not: such a client never looks at a cache.
    """
    if not client.use_listsessions_cache:
        raise ValueError("this X2GoClient uses no cache: make it with use_listsessions_cache=True")
    made = X2GoListSessionsCache(client, logger=client.logger, cache=cache, settings=settings)
    client.listsessions_cache = made
    return made


def _x2go_client() -> Any:
    import x2go.client

    return x2go.client


def _x2go_exceptions() -> Any:
    from x2go import x2go_exceptions

    return x2go_exceptions


def _control_session_exception(message: str) -> BaseException:
    made: BaseException = _x2go_exceptions().X2GoControlSessionException(message)
    return made


def _stdout(raw: Any) -> bytes:
    """Return what a ``raw=True`` call printed on stdout: it returns (stdout, stderr), bytes each."""
    stdout: bytes = raw[0]
    return stdout


def _sessions(snapshot: Snapshot, username: str, account: str | None) -> SessionList | None:
    """Return a user's sessions; a line of another user that is no row is nothing to this one.

    ``account``: what the server calls the user, None where that is not known. None where the sessions may be under
    another name.
    """
    if snapshot.username == username:
        return snapshot.sessions().without_finished()
    name = account or username
    listed = SessionList.from_stdout(lines_of(snapshot.stdout, name), server=snapshot.server)
    own = listed.for_user(name).without_finished()
    if not own and account is None and other_names(snapshot.stdout, username):
        return None
    return own


def _running(sessions: SessionList) -> list[str]:
    return [row.name for row in sessions.rows if row.is_running() and not row.is_starting()]


def _same_host(address: str, names: set[str]) -> bool:
    """Whether a host name is one of these but for the domain, which only one of the two may lack."""
    short = address.partition(".")[0].casefold()
    return any(
        short == name.partition(".")[0].casefold()
        and ("." not in address or "." not in name or address.casefold() == name.casefold())
        and not short.isdigit()
        for name in names
    )


def _note_terminals(profile: _Profile, control: Any) -> None:
    """Remember since when at the latest each of the client's own terminals exists."""
    terminals = {name: terminal for name, terminal in list(control.associated_terminals.items()) if terminal}
    for name in list(profile.terminals):
        if name not in terminals:
            del profile.terminals[name]
    for name, terminal in terminals.items():
        known = profile.terminals.get(name)
        if known is None or known[0]() is not terminal:
            profile.terminals[name] = weakref.ref(terminal), time.monotonic()


def _add_own(profile: _Profile, infos: dict[str, Any], listing: _Listing) -> None:
    """Show as running what the client has started or resumed after the server was asked."""
    for name, (terminal, since) in profile.terminals.items():
        own = getattr(terminal(), "session_info", None)
        if since < listing.said_at or own is None or not own.is_initialized():
            continue
        info = copy.copy(infos.get(name, own))
        info.status = "R"
        infos[name] = info


def _reap(profile: _Profile, control: Any, listing: _Listing, infos: Mapping[str, Any]) -> None:
    """Bring the client's terminals up to date, and let go of those whose session has ended or is suspended.

    As its own ``list_sessions`` does; but a list from before a terminal was there can't say that it has ended, nor can
    one with a line that is no row.
    """
    sessions: SessionList = listing.value
    for name, (reference, since) in list(profile.terminals.items()):
        terminal = reference()
        if terminal is None or since >= listing.said_at or control.associated_terminals.get(name) is not terminal:
            continue
        ended = name not in sessions and not sessions.rejected
        if name in infos and hasattr(terminal, "session_info") and not terminal.is_session_info_protected():
            terminal.session_info.update(infos[name])
        if ended or terminal.is_suspended():
            terminal.__del__()
            control.associated_terminals.pop(name, None)
            profile.terminals.pop(name, None)
            if ended:
                control.terminated_terminals.append(name)
