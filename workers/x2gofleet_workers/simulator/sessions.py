"""One simulated X2Go session, and how X2Go's commands and the probe's records print it.

Formats: x2golistsessions_root, x2golistsessions and x2golistshadowsessions of x2goserver 4.1 on SQLite.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from x2gofleet_workers.probe.records import Record

FIRST_DISPLAY = 50
_FIRST_PORT = 30000
_PORTS_PER_DISPLAY = 5
_SHADOW_MARK = "XSHAD"
_SHADOW_LIST_FIELDS = 14


def session_name(username: str, display: int, created: float, session_type: str) -> str:
    """Return the name X2Go gives a session; ``session_type`` is what follows ``_st``, e.g. ``DMATE``."""
    return f"{username}-{display}-{int(created)}_st{session_type}_dp24"


def shadow_type(owner: str, display: int, *, full_access: bool) -> str:
    """Return the session type of a shadow session that watches ``owner``'s ``display``."""
    return f"S{int(full_access)}{_SHADOW_MARK}{owner}{_SHADOW_MARK}PP{display}"


def local_time(seconds: float) -> str:
    """Return epoch ``seconds`` as X2Go prints times: naive local time of the server, to the second."""
    return datetime.fromtimestamp(int(seconds)).strftime("%Y-%m-%dT%H:%M:%S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One row of a server's session database; times are epoch seconds.

    While a session is being started, ``agent_pid`` is None and its cookie, client and ports are empty.
    ``mounts`` are (client, path) pairs; ``shared_with`` are users to whom its display is shown.
    """

    name: str
    username: str
    session_type: str
    display: int
    hostname: str
    status: str
    created: float
    changed: float
    agent_pid: int | None = None
    cookie: str = ""
    client: str = ""
    mounts: tuple[tuple[str, str], ...] = ()
    shared_with: tuple[str, ...] = ()

    @property
    def is_starting(self) -> bool:
        """True until the agent has reported its process, cookie and ports."""
        return self.agent_pid is None

    @property
    def is_shadow(self) -> bool:
        """True for a session that watches another one."""
        return _SHADOW_MARK in self.name

    @property
    def is_desktop(self) -> bool:
        """True for a session with a desktop of its own (type D)."""
        return self.session_type.startswith("D")

    def _ports(self) -> tuple[str, str, str, str, str]:
        if self.is_starting:
            return ("", "", "", "", "")
        first = _FIRST_PORT + (self.display - FIRST_DISPLAY) * _PORTS_PER_DISPLAY
        if self.session_type.startswith("RPUBLISHED"):
            return (str(first), str(first + 1), str(first + 2), str(first + 3), str(first + 4))
        return (str(first), str(first + 1), str(first + 2), "-1", "-1")

    def row_parts(self) -> tuple[bytes, bytes]:
        """Return what stands before and after the age (field 12) in a 16-field row."""
        graphics, sound, sshfs, tekictrl, tekidata = self._ports()
        before = (
            "" if self.agent_pid is None else str(self.agent_pid),
            self.name,
            str(self.display),
            self.hostname,
            self.status,
            local_time(self.created),
            self.cookie,
            self.client,
            graphics,
            sound,
            local_time(self.changed),
            self.username,
        )
        return ("|".join(before) + "|").encode(), f"|{sshfs}|{tekictrl}|{tekidata}\n".encode()

    def row(self, now: float) -> bytes:
        """Return the row of x2golistsessions_root at epoch second ``now``, with its newline."""
        before, after = self.row_parts()
        return before + age_bytes(self.created, now) + after

    def shadow_row(self, now: float) -> bytes:
        """Return the row of x2golistshadowsessions: the same without the telekinesis ports."""
        fields = self.row(now).rstrip(b"\n").split(b"|")
        return b"|".join(fields[:_SHADOW_LIST_FIELDS]) + b"\n"

    def record(self, now: float) -> Record:
        """Return the session's record as the probe sends it at epoch second ``now``."""
        graphics, sound, sshfs, tekictrl, tekidata = (port.encode() for port in self._ports())
        is_running = self.status == "R" and not self.is_starting
        return Record(
            cut=b"",
            session=self.name.encode(),
            username=self.username.encode(),
            hostname=self.hostname.encode(),
            status=self.status.encode(),
            display=str(self.display).encode(),
            created=local_time(self.created).encode(),
            touched=local_time(self.changed).encode(),
            cookie=self.cookie.encode(),
            client=self.client.encode(),
            agent_pid=b"" if self.agent_pid is None else str(self.agent_pid).encode(),
            graphics_port=graphics,
            sound_port=sound,
            sshfs_port=sshfs,
            tekictrl_port=tekictrl,
            tekidata_port=tekidata,
            age=age_bytes(self.created, now),
            creator=b"",
            foreign_agent=b"",
            state=b"RUNNING" if is_running else b"",
        )


def age_bytes(created: float, now: float) -> bytes:
    """Return field 12 of a row: whole seconds since the session was made."""
    return b"%d" % (int(now) - int(created))
