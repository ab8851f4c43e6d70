"""From what an X2Go server printed to typed rows: pure functions; one bad row never loses the others."""

from __future__ import annotations

from typing import Any, Final

from x2gofleet.load import LoadReport
from x2gofleet.rows import Mount, RejectedRow, SessionInfo

_LEAST_FIELDS: Final = 14
_AGE: Final = 12
_NO_PORT: Final = "-1"


class _Draft:
    # Filling a frozen dataclass takes a call per attribute: parsing and reading 50 sessions then costs 2.3
    # times what it costs python-x2go. This twin is filled by assignments; one more makes it a SessionInfo.
    __slots__ = SessionInfo.__slots__


def parse_sessions(stdout: bytes, *, server: str = "") -> tuple[tuple[SessionInfo, ...], tuple[RejectedRow, ...]]:
    """Parse the stdout of x2golistsessions, x2golistsessions_root or x2golistshadowsessions.

    Every line that python-x2go parses is a row with the same values: 14 fields or more, split by ``|``. A row
    whose agent_pid and ports are empty is one too (a session being started). Any other line but a blank one
    is rejected by itself; its reason names the field at fault and quotes nothing: a cookie may be anywhere.
    Bytes that are not UTF-8 become surrogates ("surrogateescape"). Raises nothing, whatever the bytes.

    Returns the rows in the order printed, each with the given fleet ``server`` id, and the rejected lines.
    """
    rows: list[SessionInfo] = []
    rejected: list[RejectedRow] = []
    for line_number, line in enumerate(stdout.decode("utf-8", "surrogateescape").split("\n"), 1):
        if not line:
            continue
        fields = line.split("|")
        if len(fields) == _LEAST_FIELDS:
            fields += (_NO_PORT, _NO_PORT)
        row: Any = _Draft()
        try:
            (
                agent_pid,
                row.name,
                display,
                row.hostname,
                row.status,
                row.date_created,
                row.cookie,
                row.client,
                graphics_port,
                snd_port,
                row.date_suspended,
                row.username,
                age_seconds,
                sshfs_port,
                tekictrl_port,
                tekidata_port,
            ) = fields
            row.agent_pid = int(agent_pid)
            row.display = int(display)
            row.graphics_port = int(graphics_port)
            row.snd_port = int(snd_port)
            row.age_seconds = int(age_seconds)
            row.sshfs_port = int(sshfs_port)
            row.tekictrl_port = -1 if tekictrl_port == _NO_PORT else int(tekictrl_port)
            row.tekidata_port = -1 if tekidata_port == _NO_PORT else int(tekidata_port)
        except ValueError:
            if line.isspace():
                continue
            try:
                rows.append(_unusual_row(fields, server))
            except ValueError as exc:
                rejected.append(RejectedRow(line_number, str(exc)))
            continue
        row.server = server
        row.__class__ = SessionInfo
        rows.append(row)
    return tuple(rows), tuple(rejected)


def _unusual_row(fields: list[str], server: str) -> SessionInfo:
    """Return the row of ``fields``, or raise ValueError with a reason that quotes none of them."""
    if len(fields) < _LEAST_FIELDS:
        raise ValueError(f"{len(fields)} field(s) where a session has 14 or 16: not a session row")
    fields = [*fields, "", ""]
    display = _int_or_none(fields[2])
    if display is None:
        raise ValueError("field 3 (display) is not an integer")
    return SessionInfo(
        agent_pid=_int_or_empty(fields, 0, "agent_pid"),
        name=fields[1],
        display=display,
        hostname=fields[3],
        status=fields[4],
        date_created=fields[5],
        cookie=fields[6],
        client=fields[7],
        graphics_port=_int_or_empty(fields, 8, "graphics_port"),
        snd_port=_int_or_empty(fields, 9, "snd_port"),
        date_suspended=fields[10],
        username=fields[11],
        age_seconds=_int_or_none(fields[_AGE]),
        sshfs_port=_int_or_empty(fields, 13, "sshfs_port"),
        tekictrl_port=_teki_port(fields[14]),
        tekidata_port=_teki_port(fields[15]),
        server=server,
    )


def _int_or_none(text: str) -> int | None:
    # int() also takes spaces, underscores and other scripts' digits, as it does for python-x2go, and refuses
    # more digits than sys.get_int_max_str_digits() with ValueError.
    try:
        return int(text)
    except ValueError:
        return None


def _int_or_empty(fields: list[str], index: int, name: str) -> int | None:
    number = _int_or_none(fields[index])
    if number is None and fields[index].strip():
        raise ValueError(f"field {index + 1} ({name}) is neither an integer nor empty")
    return number


def _teki_port(text: str) -> int:
    number = _int_or_none(text)
    return -1 if number is None else number


def parse_desktops(stdout: bytes) -> tuple[str, ...]:
    """Return the lines ``user@:display`` of x2golistdesktops; lines without ``@`` are left out."""
    return tuple(line for line in stdout.decode("utf-8", "surrogateescape").split("\n") if "@" in line)


def parse_mounts(stdout: bytes) -> tuple[tuple[Mount, ...], tuple[RejectedRow, ...]]:
    """Parse lines ``session_name|client|path``: what x2golistmounts prints, after the name of its session.

    Returns the mounts in the order printed and the lines that are none; blank lines say that there is none.
    """
    mounts: list[Mount] = []
    rejected: list[RejectedRow] = []
    for line_number, line in enumerate(stdout.decode("utf-8", "surrogateescape").split("\n"), 1):
        session_name, _, listed = line.partition("|")
        if session_name and "|" in listed:
            mounts.append(Mount(session_name=session_name, listed=listed))
        elif line.strip():
            rejected.append(RejectedRow(line_number, "not session_name|client|path: not a mount"))
    return tuple(mounts), tuple(rejected)


def parse_load(stdout: bytes) -> LoadReport:
    """Return the load figures; raise ValueError, naming the figure, where one is missing or no number."""
    return LoadReport.from_stdout(stdout)


def strip_age(stdout: bytes) -> bytes:
    """Return a sessions stdout with an empty age column, the one that changes at every call: for digests.

    The column stays, so that no row can become equal to a line that is no row. Lines of less than 14 fields
    are left as they are.
    """
    lines = stdout.split(b"\n")
    for index, line in enumerate(lines):
        fields = line.split(b"|", _AGE + 1)
        if len(fields) > _AGE + 1:
            fields[_AGE] = b""
            lines[index] = b"|".join(fields)
    return b"\n".join(lines)
