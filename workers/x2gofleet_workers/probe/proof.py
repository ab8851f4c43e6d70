"""proof: what a section of an answer is worth: rows that may be stored, or the error that says why not.

In scope `server` the rows of a listing are made here from the session database's own records. A record that X2Go's
own commands cannot have made, or that would print as something else than one row, is left out and reported, and
never affects another row: whatever a user wrote into her records costs her own rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from x2gofleet.errors import HostNameChanged, ListingFailed, NotProven
from x2gofleet.load import LoadReport
from x2gofleet.text import show
from x2gofleet.usernames import user_of_desktop
from x2gofleet_workers.probe.faults import error_of_section
from x2gofleet_workers.probe.protocol import Record, Section

FIELDS = 16
FEWER_FIELDS = 14
MAX_REASONS = 1000
STATUSES = frozenset((b"R", b"S", b"F", b"T"))
_SUSPENDED = frozenset((b"SUSPENDED", b"SUSPENDING"))
# A desktop that a user with an "@" in the name shares: x2golistdesktops cuts the display off.
_CUT_DESKTOP = re.compile(rb"[^|:\s@]+@[^|:\s@]+\Z")
_DISPLAY = re.compile(rb"[0-9]{1,9}\Z")
_NUMBER = re.compile(rb"(?:-?[0-9]{1,10})?\Z")
_AGE = re.compile(rb"-?[0-9]{1,12}\Z")
_TIME = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\Z")
_ADMINISTRATOR = b"x2godbuser"
_ROLE_PREFIX = b"x2gouser_"
_ROLE_BYTES = 63


@dataclass(frozen=True, slots=True)
class Proven:
    """A listing that may be stored.

    ``stdout``: the believed lines. ``rejected``: a reason for each row that was left out, at most 1000.
    ``rejected_rows``: how many were left out. ``notes``: what an administrator should know though no row is affected.
    ``source``: ``records`` or ``command``. ``exit_status``: that of the command, 0 for records.
    """

    stdout: bytes = field(repr=False)
    rejected: tuple[str, ...] = ()
    rejected_rows: int = 0
    notes: tuple[str, ...] = ()
    source: str = "records"
    exit_status: int = 0


def prove_sessions(
    section: Section, *, scope: str, login: str, user: str = "", hostname: str = "", recorded_host: str = ""
) -> Proven:
    """Judge a section of sessions.

    ``scope`` is the target's; ``login`` the user that was logged in as, ``user`` the account that the probe runs as;
    ``hostname`` the name that the inventory expects ("" for any); ``recorded_host`` the name under which the server
    had its sessions before ("" where none is known). Raises a PollError.
    """
    if section.error is not None:
        raise error_of_section(section, login=login)
    if scope == "user":
        _require_success(section, "x2golistsessions")
        # X2Go writes the name of the uid, whatever the login was called.
        return _user_rows(section.stdout, {login.encode(), user.encode("utf-8", "surrogateescape") or login.encode()})
    host = section.host
    if hostname and _short(hostname) != _short(host):
        raise HostNameChanged(
            f"the server's host name is {show(host)}, the inventory expects {hostname}",
            mend="correct `hostname` of the server in fleet.toml, or the server's host name",
        )
    _require_own_host(section, host, hostname, recorded_host)
    rows, rejected, notes = _rows_of_records(section)
    if section.source == "command":
        rows, rejected = _listed_rows(section, rows, rejected)
    if section.others and not section.records:
        notes.append(f"no session of host {show(host, 64)}, but {section.others} of {_names(section)}")
    stdout = b"".join(row + b"\n" for row in rows.values())
    reasons, rejected_rows = _with_left_out(rejected, section)
    return Proven(stdout, reasons, rejected_rows, tuple(notes), section.source, section.exit_status or 0)


def _with_left_out(rejected: list[str], section: Section) -> tuple[tuple[str, ...], int]:
    """Return the reasons of what was left out here and by the probe, and of how many rows."""
    if section.left_out:
        rejected = [f"{section.left_out} records are more than one database user may have on a server", *rejected]
    return tuple(rejected[:MAX_REASONS]), len(rejected) + max(section.left_out - 1, 0)


def _names(section: Section) -> str:
    return ", ".join(show(name, 64) for name in section.other_hosts[:3]) or "other hosts"


def _short(name: str) -> str:
    return name.partition(".")[0].lower()


def _require_own_host(section: Section, host: str, hostname: str, recorded_host: str) -> None:
    """Refuse an empty listing of a renamed server.

    Records of other hosts alone prove no renaming: any user can insert one. The name that the server itself showed
    before is no user's to change.
    """
    renamed = recorded_host and recorded_host != host and recorded_host in section.other_hosts
    if renamed and not section.records and not hostname:
        raise HostNameChanged(
            f"the server's host name was {show(recorded_host)} and is {show(host)} now; X2Go lists "
            "none of its sessions under the new name",
            mend="give the server its old host name back, or end those sessions and delete their records; if the new "
            f'name is right, set it in fleet.toml: hostname = "{show(host)}"',
        )


def _require_success(section: Section, command: str) -> None:
    if section.exit_status:
        said = show(section.stderr) or _first_words(section.stdout) or "nothing on stderr"
        raise ListingFailed(f"{command} ended with exit status {section.exit_status}: {said}")


def _first_words(stdout: bytes) -> str:
    """Return the first line of an output that is not a listing; never a row, which may contain a cookie."""
    for line in stdout.split(b"\n"):
        if line.strip() and b"|" not in line:
            return show(line)
    return ""


def _rows_of_records(section: Section) -> tuple[dict[bytes, bytes], list[str], list[str]]:
    """Return the rows by session name, a reason for each record that was left out, and notes."""
    rows: dict[bytes, bytes] = {}
    rejected: list[str] = []
    notes: list[str] = []
    for record in section.records:
        problem = record_problem(record, host=section.host.encode(), backend=section.backend)
        if problem:
            rejected.append(f"session {show(record.session, 80)!r} of {show(record.username, 40)!r}: {problem}")
            continue
        rows[record.session] = row_of(record, section.fields)
        if record.state.startswith(b"!") and len(notes) < MAX_REASONS:
            notes.append(f"the state file of session {show(record.session, 80)} is not used: {_why(record.state)}")
    return rows, rejected, notes


def _why(state: bytes) -> str:
    return {
        b"!mounted": "something is mounted over its directory",
        b"!link": "its directory is a symbolic link",
        b"!unreadable": "it is a symbolic link, or cannot be opened",
        b"!special": "it is not a regular file",
        b"!owner": "it belongs to another user",
        b"!content": "it does not contain a state",
    }.get(state, "it is not a state file")


def record_problem(record: Record, *, host: bytes, backend: str) -> str:
    """Return why a record must not become a row, "" where it may."""
    return malformed(record, host=host) or _forged(record, backend)


def malformed(record: Record, *, host: bytes) -> str:
    """Return why a record cannot be one of X2Go's own making, or would not print as one row; "" where it can."""
    if record.cut:
        return "a column is too long"
    for column in record.text_columns():
        if b"|" in column or not _is_printable(column):
            return "a column contains a separator or an unprintable character"
    if not record.session or not record.username:
        return "it has no session name or no user"
    if record.status not in STATUSES:
        return f"X2Go has no status {show(record.status, 20)!r}"
    if record.hostname != host:
        return "it is of another host"
    if not _DISPLAY.match(record.display) or not all(_NUMBER.match(number) for number in record.numbers()):
        return "a number is missing or out of range"
    if not _TIME.match(record.created) or not _TIME.match(record.touched) or not _AGE.match(record.age):
        return "a time is missing or malformed"
    return ""


def _forged(record: Record, backend: str) -> str:
    if record.foreign_agent:
        return f"its agent is a process of {show(record.foreign_agent, 40)}"
    if backend == "postgres" and record.creator not in _creators(record):
        return f"it was created by the database user {show(record.creator, 80)!r}"
    return ""


def _is_printable(column: bytes) -> bool:
    try:
        return column.decode().isprintable()
    except UnicodeDecodeError:
        return False


def _creators(record: Record) -> set[bytes]:
    """Return the database users that can have created a genuine record; PostgreSQL cuts their names at 63 bytes."""
    users = {record.username}
    shadow = re.search(rb"XSHAD(.*)XSHADPP", record.session)
    if shadow:
        users.add(shadow[1])
    return {_ADMINISTRATOR, *((_ROLE_PREFIX + user)[:_ROLE_BYTES] for user in users)}


def row_of(record: Record, fields: int, *, use_state: bool = True) -> bytes:
    """Return the row that X2Go's listing prints of a record.

    ``fields`` is 16 or 14. ``use_state``: a running session whose agent says that it is suspended is printed so.
    """
    suspended = use_state and record.status == b"R" and record.state in _SUSPENDED
    columns = [
        *(record.agent_pid, record.session, record.display, record.hostname, b"S" if suspended else record.status),
        *(record.created, record.cookie, record.client, record.graphics_port, record.sound_port, record.touched),
        *(record.username, record.age, record.sshfs_port, record.tekictrl_port, record.tekidata_port),
    ]
    return b"|".join(columns[:fields])


def _stable(row: bytes) -> list[bytes]:
    """Return the fields of a row without status, time of suspension and age, which may differ between two readings."""
    fields = row.split(b"|")
    return [part for number, part in enumerate(fields) if number not in (4, 10, 12)]


def _listed_rows(
    section: Section, rows: dict[bytes, bytes], rejected: list[str]
) -> tuple[dict[bytes, bytes], list[str]]:
    """Check the listing of x2golistsessions_root against the records, which were equal before and after it."""
    _require_success(section, "x2golistsessions_root")
    listed: dict[bytes, bytes] = {}
    for number, line in enumerate(section.lines.split(b"\n"), 1):
        if not line.strip():
            continue
        parts = line.split(b"|")
        name = parts[1] if len(parts) > 1 else b""
        if name in rows and name not in listed and _agrees(line, rows[name]):
            listed[name] = line
        else:
            rejected.append(f"line {number} of x2golistsessions_root: no record prints this row")
    missing = [name for name in rows.keys() - listed.keys() if rows[name].split(b"|")[4] != b"F"]
    if missing:
        said = _first_words(section.lines) or show(section.stderr) or "nothing else"
        raise NotProven(
            f"x2golistsessions_root lacks {len(missing)} of {len(rows)} sessions that the session database has, and "
            f"prints: {said}",
            mend='remove `listing = "command"` from fleet.toml, so that the records are used',
        )
    return listed, rejected


def _agrees(line: bytes, row: bytes) -> bool:
    fields = line.split(b"|")
    return len(fields) in (FIELDS, FEWER_FIELDS) and fields[4] in STATUSES and _stable(line) == _stable(row)


def _user_rows(stdout: bytes, users: set[bytes]) -> Proven:
    """Keep the lines that are rows of this user; an output without one is an error text, not "no sessions"."""
    kept: dict[bytes, bytes] = {}
    rejected: list[str] = []
    for number, line in enumerate(stdout.split(b"\n"), 1):
        if not line.strip():
            continue
        fields = line.split(b"|")
        problem = _row_problem(fields, users)
        if not problem and fields[1] in kept:
            problem = "a second row of the same session"
        if problem:
            rejected.append(f"line {number}: {problem}")
        else:
            kept[fields[1]] = line
    said = _first_words(stdout)
    # Two commands list a user's sessions: rows of one do not make up for an error text of the other.
    if rejected and (not kept or said):
        raise ListingFailed(f"x2golistsessions printed no session but: {said or rejected[0]}")
    stdout = b"".join(line + b"\n" for line in kept.values())
    return Proven(stdout, tuple(rejected[:MAX_REASONS]), len(rejected), source="command")


def _row_problem(fields: Sequence[bytes], users: set[bytes]) -> str:
    if len(fields) not in (FEWER_FIELDS, FIELDS):
        return f"{len(fields)} fields where a session has 14 or 16"
    if not fields[1] or not _DISPLAY.match(fields[2]) or fields[4] not in STATUSES:
        return "session name, display or status is missing"
    if fields[11] not in users:
        return "a session of another user"
    return ""


def prove_load(section: Section, *, login: str = "") -> Proven:
    """Judge a section of load figures."""
    if section.error is not None:
        raise error_of_section(section, login=login)
    try:
        LoadReport.from_stdout(section.stdout)
    except ValueError as exc:
        raise ListingFailed(f"the load figures cannot be read: {exc}") from exc
    return Proven(section.stdout, source="probe")


def prove_mounts(section: Section, *, scope: str, login: str) -> Proven:
    """Judge a section of mounts; the believed lines are ``session|client|path``."""
    if section.error is not None:
        raise error_of_section(section, login=login)
    if scope == "server":
        return _mount_records(section)
    _require_success(section, "x2golistmounts")
    kept, rejected, said = [], [], ""
    for number, line in enumerate(section.stdout.split(b"\n"), 1):
        if line.count(b"|") >= 2:
            kept.append(line + b"\n")
        elif line.strip():
            said = said or show(line.partition(b"|")[2] or line)
            rejected.append(f"line {number}: not a mount")
    if rejected:
        raise ListingFailed(f"x2golistmounts printed no mount but: {said or rejected[0]}")
    return Proven(b"".join(kept), source="command")


def _mount_records(section: Section) -> Proven:
    kept, rejected = [], []
    for record in section.mounts:
        columns = (record.session, record.client, record.path)
        if record.cut:
            problem = "a column is too long"
        elif b"|" in record.session + record.client or not all(map(_is_printable, columns)):
            problem = "a column contains a separator or an unprintable character"
        else:
            kept.append(b"|".join(columns) + b"\n")
            continue
        rejected.append(f"a mount of session {show(record.session, 80)!r}: {problem}")
    return Proven(b"".join(kept), *_with_left_out(rejected, section))


def prove_desktops(section: Section, *, login: str) -> Proven:
    """Judge a section of desktops; the believed lines are ``user@:display``."""
    if section.error is not None:
        raise error_of_section(section, login=login)
    _require_success(section, "x2golistdesktops")
    kept, rejected, cut = [], [], 0
    for number, line in enumerate(section.stdout.split(b"\n"), 1):
        if user_of_desktop(line.decode("utf-8", "surrogateescape")) is not None:
            kept.append(line + b"\n")
        elif _CUT_DESKTOP.match(line):
            cut += 1
            rejected.append(f"line {number}: the display is missing: X2Go cuts it off where a user name has an @")
        elif line.strip():
            rejected.append(f"line {number}: not a desktop")
    if len(rejected) > cut and not kept:
        raise ListingFailed(f"x2golistdesktops printed no desktop but: {_first_words(section.stdout) or rejected[0]}")
    return Proven(b"".join(kept), tuple(rejected[:MAX_REASONS]), len(rejected), source="command")
