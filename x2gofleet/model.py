"""The answers a reader gets: SessionList here, and the types of its parts; all immutable."""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from itertools import chain
from typing import Any

from x2gofleet.load import LoadReport
from x2gofleet.parsing import parse_sessions
from x2gofleet.rows import Mount, RejectedRow, SessionInfo

__all__ = ["LoadReport", "Mount", "RejectedRow", "SessionInfo", "SessionList"]


class SessionList(Mapping[str, SessionInfo]):
    """Sessions by name, with the method names of python-x2go's X2GoServerSessionList.

    Where rows share a name, the mapping holds the one with the newest ``date_created`` (of equals the last);
    ``rows`` has them all. Immutable; what is returned as a dict is the caller's own.
    """

    __slots__ = ("_by_name", "_missing_servers", "_oldest_polled_at", "_rejected", "_rows")

    def __init__(
        self,
        *,
        rows: Iterable[SessionInfo] = (),
        rejected: Iterable[RejectedRow] = (),
        missing_servers: Iterable[str] = (),
        oldest_age: float | None = None,
        asked_at: float | None = None,
    ) -> None:
        self._rows = tuple(rows)
        self._rejected = tuple(rejected)
        self._missing_servers = tuple(missing_servers)
        if oldest_age is not None:
            oldest_age = (time.monotonic() if asked_at is None else asked_at) - oldest_age
        self._oldest_polled_at = oldest_age
        self._by_name = {row.name: row for row in self._rows}
        if len(self._by_name) != len(self._rows):
            self._by_name = _newest_by_name(self._rows)

    @classmethod
    def from_stdout(cls, stdout: bytes, *, server: str = "") -> SessionList:
        """Parse what a sessions command printed on ``server``, finished sessions (F) too; never raises."""
        rows, rejected = parse_sessions(stdout, server=server)
        return cls(rows=rows, rejected=rejected)

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[SessionInfo],
        *,
        rejected: Iterable[RejectedRow] = (),
        missing_servers: Iterable[str] = (),
        oldest_age: float | None = None,
        asked_at: float | None = None,
    ) -> SessionList:
        """Collect parsed rows, of one or more servers.

        ``oldest_age`` is in seconds, what it was at the monotonic time ``asked_at``, or is now where that is None.
        """
        return cls(
            rows=rows,
            rejected=rejected,
            missing_servers=missing_servers,
            oldest_age=oldest_age,
            asked_at=asked_at,
        )

    @property
    def rows(self) -> tuple[SessionInfo, ...]:
        """Every row, in the order printed, also those whose name another row has."""
        return self._rows

    @property
    def rejected(self) -> tuple[RejectedRow, ...]:
        """The printed lines that were no rows."""
        return self._rejected

    @property
    def missing_servers(self) -> tuple[str, ...]:
        """Ids of the servers that are part of the question and not of this answer, because they are down."""
        return self._missing_servers

    @property
    def oldest_age(self) -> float | None:
        """Seconds since the longest-ago poll that this answer is made of; None where it is of no poll.

        Counts on for as long as the answer is kept, by this computer's monotonic clock, also where it was pickled.
        """
        return None if self._oldest_polled_at is None else time.monotonic() - self._oldest_polled_at

    def for_user(self, username: str) -> SessionList:
        """Return the list of one user's sessions."""
        return self._with_rows(row for row in self._rows if row.username == username)

    def without_finished(self) -> SessionList:
        """Return the list without finished sessions (F)."""
        return self._with_rows(row for row in self._rows if row.status != "F")

    def _with_rows(self, rows: Iterable[SessionInfo]) -> SessionList:
        part = SessionList(rows=rows, rejected=self._rejected, missing_servers=self._missing_servers)
        part._oldest_polled_at = self._oldest_polled_at
        return part

    def get_sessions(self) -> dict[str, SessionInfo]:
        """Return a new dict of session name -> session."""
        return dict(self._by_name)

    def __call__(self) -> dict[str, SessionInfo]:
        """Return a new dict of session name -> session, as ``get_sessions`` does."""
        return dict(self._by_name)

    def get_session_info(self, session_name: str) -> SessionInfo | None:
        """Return the session of that name, or None."""
        return self._by_name.get(session_name)

    def get_session_with(self, property_name: str, value: object, hostname: str | None = None) -> SessionInfo | None:
        """Return the first session whose attribute ``property_name`` prints as ``value`` does, or None.

        A display may be given as 50, '50', ':50' or ':50.0'. With ``hostname``, the session's must equal it.
        An attribute that sessions lack, or that a session being started has not got yet, equals nothing.
        """
        wanted = str(value)
        if property_name == "display":
            wanted = wanted.lstrip(":").partition(".")[0]
        for session in chain(self._by_name.values(), self._rows):
            found = getattr(session, property_name, None)
            if found is not None and str(found) == wanted and hostname in (None, session.hostname):
                return session
        return None

    def __getitem__(self, session_name: str) -> SessionInfo:
        return self._by_name[session_name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    # Mapping's own views fetch item by item through __getitem__; a dict's are as read-only and ten times as quick.
    def keys(self) -> KeysView[str]:
        return self._by_name.keys()

    def values(self) -> ValuesView[SessionInfo]:
        return self._by_name.values()

    def items(self) -> ItemsView[str, SessionInfo]:
        return self._by_name.items()

    def __eq__(self, other: object) -> bool:
        """Compare rows, rejected lines and missing servers, not ages; with another Mapping, its items."""
        if isinstance(other, SessionList):
            return (self._rows, self._rejected, self._missing_servers) == (
                other._rows,
                other._rejected,
                other._missing_servers,
            )
        if isinstance(other, Mapping):
            return self._by_name == dict(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        # Another computer's monotonic clock is another: the age goes with a pickled list, not when it began.
        return _unpickled, (self._rows, self._rejected, self._missing_servers, self.oldest_age)

    def __repr__(self) -> str:
        oldest_age = self.oldest_age
        age = "None" if oldest_age is None else f"{oldest_age:.1f}"
        return (
            f"SessionList({list(self._by_name)!r}, rows={len(self._rows)}, rejected={len(self._rejected)}, "
            f"missing_servers={self._missing_servers!r}, oldest_age={age})"
        )


def _unpickled(
    rows: tuple[SessionInfo, ...],
    rejected: tuple[RejectedRow, ...],
    missing_servers: tuple[str, ...],
    oldest_age: float | None,
) -> SessionList:
    return SessionList(rows=rows, rejected=rejected, missing_servers=missing_servers, oldest_age=oldest_age)


def _newest_by_name(rows: tuple[SessionInfo, ...]) -> dict[str, SessionInfo]:
    newest: dict[str, SessionInfo] = {}
    for row in rows:
        rival = newest.get(row.name)
        if rival is None or row.date_created >= rival.date_created:
            newest[row.name] = row
    return newest
