"""picture: one look at the whole fleet: its servers, their sessions and load; three round trips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from x2gofleet.cache import FleetCache
from x2gofleet.cli.reasons import seconds_since
from x2gofleet.errors import FleetError, SnapshotCorrupt
from x2gofleet.kinds import Kind
from x2gofleet.load import LoadReport
from x2gofleet.lookup import ServerStatus, View
from x2gofleet.owners import of_own_target
from x2gofleet.rows import SessionInfo

ENDING = "ending"


@dataclass(frozen=True, slots=True)
class SeenSession:
    """A session, and how many seconds ago its server was asked."""

    session: SessionInfo
    age: float


@dataclass(frozen=True, slots=True)
class Counts:
    """How many sessions there are in which state; ``ending`` are to be terminated."""

    running: int = 0
    suspended: int = 0
    starting: int = 0
    ending: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.running + self.suspended + self.starting + self.ending

    @classmethod
    def of(cls, seen: Iterable[SeenSession]) -> Counts:
        """Count sessions."""
        words = [status_word(item.session) for item in seen]
        known = {word: words.count(word) for word in ("running", "suspended", "starting")}
        return cls(**known, ending=len(words) - sum(known.values()))


def status_word(session: SessionInfo) -> str:
    """Return running, suspended, starting or ending; another letter than R, S and T as it is."""
    if session.is_starting():
        return "starting"
    return {"R": "running", "S": "suspended", "T": ENDING}.get(session.status, session.status)


def type_word(session: SessionInfo) -> str:
    """Return what kind of session it is, in a word."""
    words = {"D": "desktop", "K": "kdrive", "R": "rootless", "S": "shadow", "P": "published"}
    return words.get(session.get_session_type() or "", "-")


class Knowledge(StrEnum):
    """How much of a server's sessions is cached: of all its targets, of some of them, of none."""

    KNOWN = "known"
    PARTLY = "partly"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Coverage:
    """Of how many servers the sessions are known, known in part, and unknown."""

    known: int
    partly: int
    unknown: int

    @property
    def complete(self) -> bool:
        """Whether the sessions of all servers are known."""
        return not self.partly and not self.unknown


@dataclass(frozen=True, slots=True)
class SeenServer:
    """One server: its status, its sessions (None: not cached), its load (None: not cached).

    ``lacking``: one of its targets at least has no sessions cached, so that ``sessions`` are not all there are.
    """

    status: ServerStatus
    sessions: tuple[SeenSession, ...] | None
    load: LoadReport | None
    lacking: bool = False

    @property
    def knowledge(self) -> Knowledge:
        """How much of its sessions is known."""
        if self.sessions is None:
            return Knowledge.UNKNOWN
        return Knowledge.PARTLY if self.lacking else Knowledge.KNOWN

    @property
    def counts(self) -> Counts | None:
        """Its sessions, counted; None where they are not cached."""
        return None if self.sessions is None else Counts.of(self.sessions)

    @property
    def state(self) -> str:
        """Return up, down or unknown."""
        return {True: "up", False: "down", None: "unknown"}[self.status.up]

    @property
    def since_seconds(self) -> float | None:
        """Seconds since it came up or went down; where it is unknown, since it was last polled."""
        return seconds_since(self.status.since_ms, self.status.read_at_ms)


@dataclass(frozen=True, slots=True)
class Picture:
    """The servers of the inventory, in its order; empty where no worker has published one."""

    servers: tuple[SeenServer, ...]
    oldest_age: float | None = None
    """Seconds since the longest-ago poll of which sessions are shown."""

    @property
    def coverage(self) -> Coverage:
        """How much of the fleet's sessions is known."""
        known = [server.knowledge for server in self.servers]
        return Coverage(*(known.count(each) for each in Knowledge))

    @property
    def counts(self) -> Counts | None:
        """The sessions of the servers that are known, counted; None where those of no server are."""
        none = all(server.sessions is None for server in self.servers)
        return None if none else Counts.of(self.sessions)

    @property
    def sessions(self) -> tuple[SeenSession, ...]:
        """The sessions of all servers."""
        return tuple(seen for server in self.servers for seen in server.sessions or ())


def sessions_of(view: View, username: str | None = None) -> tuple[SeenSession, ...]:
    """Return a view's unfinished sessions, each once; with ``username`` only that user's."""
    found: dict[tuple[str, str], SeenSession] = {}
    for snapshot in view.snapshots:
        rows: Sequence[SessionInfo] = snapshot.sessions().without_finished().rows
        if username is not None and snapshot.username == username:
            rows = of_own_target(rows, username)
        elif username is not None:
            rows = [row for row in rows if row.username == username]
        for row in rows:
            # Two users' own listings of one server both name a session that is shared.
            found.setdefault((row.server, row.name), SeenSession(row, snapshot.age))
    return tuple(found.values())


def _with_errors(status: ServerStatus, errors: Mapping[str, FleetError]) -> ServerStatus:
    """Return a status in which each target that has no error of its own has that of ``errors``."""
    new = [target.id for target in status.targets if target.id in errors and not target.error_class]
    if not new:
        return status
    targets = tuple(
        replace(target, error_class=type(errors[target.id]).__name__, error_text=str(errors[target.id]))
        if target.id in new
        else target
        for target in status.targets
    )
    changed = replace(status, targets=targets)
    if status.error_class:
        return changed
    return replace(changed, error_class=type(errors[new[0]]).__name__, error_text=str(errors[new[0]]))


def take_picture(cache: FleetCache) -> Picture:
    """Ask for everything; raises CacheUnavailable, and SnapshotCorrupt for an inventory that can't be read.

    A server of whose snapshots one can't be read has the error of that, where it has no other.
    """
    statuses = cache.servers()
    listed = cache.view(Kind.SESSIONS)
    sessions: dict[str, list[SeenSession]] = {snapshot.server: [] for snapshot in listed.snapshots}
    for seen in sessions_of(listed):
        sessions[seen.session.server].append(seen)
    loads: dict[str, LoadReport] = {}
    figures = cache.view(Kind.LOAD)
    # What of a server cannot be read is unknown, and costs no other server's.
    errors: dict[str, FleetError] = {**figures.errors, **listed.errors}
    for snapshot in figures.snapshots:
        try:
            loads[snapshot.server] = snapshot.load()
        except SnapshotCorrupt as exc:
            errors.setdefault(snapshot.target, exc)
    statuses = tuple(_with_errors(status, errors) for status in statuses)
    return Picture(
        tuple(
            SeenServer(
                status,
                tuple(sessions[status.id]) if status.id in sessions else None,
                loads.get(status.id),
                status.id in listed.missing_servers,
            )
            for status in statuses
        ),
        listed.oldest_age,
    )
