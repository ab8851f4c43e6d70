"""What one line of an X2Go listing says; made by parsing.py, collected by model.py."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

_AFTER_USER = re.compile(r"-[0-9]+-[0-9]+(?:_st([^_])([^_]?))?")
_SESSION_TYPE = re.compile(r"-[0-9]+-[0-9]+_st([^_])([^_]?)")
_BARE_SESSION_TYPE = re.compile(r"_st([^_])([^_]?)")
_NEVER_IN_A_NAME = re.compile(r"[^a-zA-Z0-9._@-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """One X2Go session, with the attribute and method names of python-x2go's X2GoServerSessionInfo.

    Texts are what the server printed. A session that is just being started has no agent and no ports yet:
    these are None, and ``is_starting()`` is true. ``date_created`` and ``date_suspended`` are naive local
    time of the server (``2026-11-22T20:24:30``), ``hostname`` is its own name when the session was made,
    ``age_seconds`` is None where the server printed no number, and ``server`` is the fleet's id of the
    server, or ''. The telekinesis ports are -1 where there are none. ``cookie`` is a secret: neither ``repr``
    nor ``str`` show it. A PostgreSQL server pads it with spaces when asked as root.

    The format is that of x2golistsessions, x2golistsessions_root and x2golistshadowsessions (x2goserver 4.1).
    """

    agent_pid: int | None
    name: str
    display: int
    hostname: str
    status: str
    date_created: str
    cookie: str = field(repr=False)
    client: str
    graphics_port: int | None
    snd_port: int | None
    date_suspended: str
    username: str
    age_seconds: int | None
    sshfs_port: int | None
    tekictrl_port: int = -1
    tekidata_port: int = -1
    server: str = ""
    local_container: ClassVar[str] = ""

    def __str__(self) -> str:
        return self.name

    def to_row(self) -> str:
        """Return the 16 fields as X2Go's commands print them, split by ``|``: what X2Go clients take from a broker.

        Holds the cookie: never to be logged.
        """
        fields = (
            self.agent_pid,
            self.name,
            self.display,
            self.hostname,
            self.status,
            self.date_created,
            self.cookie,
            self.client,
            self.graphics_port,
            self.snd_port,
            self.date_suspended,
            self.username,
            self.age_seconds,
            self.sshfs_port,
            self.tekictrl_port,
            self.tekidata_port,
        )
        return "|".join("" if value is None else str(value) for value in fields)

    def is_initialized(self) -> bool:
        """Return True: only parsed sessions exist here."""
        return True

    def get_status(self) -> str:
        """Return the status letter: R running, S suspended, F finished, T to be terminated."""
        return self.status

    def is_running(self) -> bool:
        """Return whether the status is R, which it also is while a session is being started."""
        return self.status == "R"

    def is_suspended(self) -> bool:
        """Return whether the status is S."""
        return self.status == "S"

    def is_finished(self) -> bool:
        """Return whether the status is F: the session is over, its record not yet removed."""
        return self.status == "F"

    def is_starting(self) -> bool:
        """Return whether the session has no agent or no graphics port yet, so that no client can join it."""
        return (self.agent_pid is None or self.graphics_port is None) and self.status not in ("F", "T")

    def get_session_type(self) -> str | None:
        """Return D desktop, K KDrive, R rootless, S shadow, P published applications; None where unnamed."""
        found = self._type_in_name()
        if found is None:
            return None
        return "P" if self.is_published_applications_provider() else found[1]

    def get_share_mode(self) -> str | None:
        """Return '0' (view only) or '1' (full access) for a shadow session, None for any other."""
        found = self._type_in_name()
        return (found[2] or None) if found is not None and found[1] == "S" else None

    def is_published_applications_provider(self) -> bool:
        """Return whether the session provides published applications (type P)."""
        found = self._type_in_name()
        return found is not None and self.name.startswith("RPUBLISHED_", found.start(1))

    def is_desktop_session(self) -> bool:
        """Return whether the session is a desktop, of NX or KDrive."""
        return self.get_session_type() in ("D", "K")

    def is_kdrive_session(self) -> bool:
        """Return whether the session is a KDrive desktop."""
        return self.get_session_type() == "K"

    def is_nx3_session(self) -> bool:
        """Return whether the session is an NX desktop, rootless or published-applications session."""
        return self.get_session_type() in ("D", "R", "P")

    def _type_in_name(self) -> re.Match[str] | None:
        # x2gostartagent names a session USER-DISPLAY-EPOCH_st<TYPE><COMMAND>_dp<DEPTH>, then removes
        # what session names may not hold. User and command may both hold "_st", even "-1-2_st", so the search
        # begins after the user.
        user = _NEVER_IN_A_NAME.sub("", self.username)
        if self.name.startswith(user) and (found := _AFTER_USER.match(self.name, len(user))):
            return found if found[1] else None
        return _SESSION_TYPE.search(self.name) or _BARE_SESSION_TYPE.search(self.name)


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A printed line that is no row: its 1-based number in the output, and why; never what it holds."""

    line_number: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A client folder mounted in a session; ``listed`` is ``client|path``, as x2golistmounts prints it."""

    session_name: str
    listed: str

    @property
    def client(self) -> str:
        """The client's address."""
        return self.listed.partition("|")[0]

    @property
    def path(self) -> str:
        """Where the folder is mounted."""
        return self.listed.partition("|")[2]
