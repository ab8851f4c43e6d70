"""proof: what a section of an answer is worth: a listing that may be stored, or the error that says why not.

X2Go's commands fail silently (exit status 0 and nothing, or an error text where rows belong) and print what users
wrote into their own records without cleaning it. A server's listing on SQLite is therefore checked row by row
against the session database's own columns, read before and after it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from x2gofleet.errors import CommandMissing, HostNameChanged, ListingFailed, NotPermitted, NotProven
from x2gofleet.load import LoadReport
from x2gofleet_workers.shell_probe import Section

_FIELDS = 16
_FEWER_FIELDS = 14
_COLUMNS = 15
_COMMAND_NOT_FOUND = (126, 127)
_TIMED_OUT = (124, 137)
_DESKTOP = re.compile(rb"[^@|\s]+@:\d+\Z")
_STATUSES = frozenset((b"R", b"S", b"F", b"T"))
_STATUS = re.compile(rb"[0-9]{1,3}\Z")


@dataclass(frozen=True, slots=True)
class Proven:
    """A listing that may be stored: the believed lines, and why others were left out."""

    stdout: bytes = field(repr=False)
    rejected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Record:
    """One row of the session database, in the columns' own order."""

    session: bytes
    username: bytes
    hostname: bytes
    status: bytes
    display: bytes
    created: bytes
    touched: bytes
    cookie: bytes = field(repr=False)
    client: bytes
    agent_pid: bytes
    graphics_port: bytes
    sound_port: bytes
    sshfs_port: bytes
    tekictrl_port: bytes
    tekidata_port: bytes

    def is_clean(self) -> bool:
        """Whether its status is one of X2Go's and no column that a user can write holds a separator."""
        text = (self.session, self.username, self.cookie, self.client, self.agent_pid)
        return self.status in _STATUSES and not any(b"|" in column or b"\n" in column for column in text)

    def printed(self, status: bytes, touched: bytes, age: bytes) -> list[bytes]:
        """Return the fields that a listing prints of this record."""
        return [
            *(self.agent_pid, self.session, self.display, self.hostname, status, self.created, self.cookie),
            *(self.client, self.graphics_port, self.sound_port, touched, self.username, age),
            *(self.sshfs_port, self.tekictrl_port, self.tekidata_port),
        ]


def show(raw: bytes, limit: int = 200) -> str:
    """Return bytes from a server as one line of plain text for a message."""
    text = raw.decode("utf-8", "replace")
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _check_status(section: Section, command: str, stderr: bytes) -> None:
    _check_found(section.status, command, stderr)
    if section.status in _TIMED_OUT:
        raise ListingFailed(f"{command} did not end in time and was stopped")
    if section.status != 0:
        said = show(stderr) or _first_words(section.body) or "nothing on stderr"
        raise ListingFailed(f"{command} ended with exit status {section.status}: {said}")


def _check_found(status: int, command: str, stderr: bytes) -> None:
    if status in _COMMAND_NOT_FOUND:
        raise CommandMissing(
            f"{command} could not be run: {show(stderr) or 'not found'}",
            mend="install x2goserver on the server, or take it out of the inventory",
        )


def _first_words(stdout: bytes) -> str:
    """Return the first line of an output that is no listing; never a row, which may hold a cookie."""
    for line in stdout.split(b"\n"):
        if line.strip() and b"|" not in line:
            return show(line)
    return ""


def prove_sessions(
    section: Section, *, scope: str, uid: int, login: str, host: str, mark: bytes, stderr: bytes, hostname: str = ""
) -> Proven:
    """Judge a listing of sessions.

    ``scope`` is the target's, ``uid`` and ``host`` are what the server said at the end of the answer, ``login`` is
    the user that was logged in as, ``hostname`` the name that the inventory expects in rows ("" for any).
    Raises a PollError that says what is wrong.
    """
    if scope == "user":
        _check_status(section, "x2golistsessions", stderr)
        return _plain_rows(section.body, "x2golistsessions", username=login.encode(), stderr=stderr)
    if uid != 0:
        raise not_permitted(login, uid)
    if hostname and _short(hostname) != _short(host):
        raise HostNameChanged(
            f"the server calls itself {show(host.encode())}, the inventory expects {hostname}",
            mend="mend `hostname` of the server in fleet.toml, or the server's host name",
        )
    if section.attributes.get("backend") == "sqlite":
        return _against_records(section, host=host, mark=mark, stderr=stderr, host_is_known=bool(hostname))
    _check_status(section, "x2golistsessions_root", stderr)
    return _plain_rows(section.body, "x2golistsessions_root", hostname=host.encode(), stderr=stderr)


def not_permitted(login: str, uid: int) -> NotPermitted:
    """Return the error for a login that is not root where all users' sessions are asked for."""
    return NotPermitted(
        f'x2golistsessions_root lists nothing to uid {uid} ({login}); scope "server" needs root\'s rights',
        mend=f"log in as root, let {login} run the probe by sudo or a forced command (docs/servers.md), or set "
        'scope = "user"',
    )


def _short(name: str) -> str:
    return name.partition(".")[0].lower()


def _plain_rows(
    stdout: bytes, command: str, *, stderr: bytes, username: bytes | None = None, hostname: bytes | None = None
) -> Proven:
    """Keep the lines that are rows; an output without one is an error text, not "no sessions"."""
    kept: list[bytes] = []
    rejected: list[str] = []
    seen: set[bytes] = set()
    for number, line in enumerate(stdout.split(b"\n"), 1):
        if not line.strip():
            continue
        fields = line.split(b"|")
        problem = _row_problem(fields, username, hostname)
        if not problem and fields[1] in seen:
            problem = "a second row of the same session"
        if problem:
            rejected.append(f"line {number}: {problem}")
        else:
            seen.add(fields[1])
            kept.append(line)
    said = _first_words(stdout)
    # Two commands list a user's sessions: an error text of one is not made good by the rows of the other.
    if rejected and (not kept or (said and username is not None)):
        raise ListingFailed(f"{command} printed no session but: {said or rejected[0]}")
    return Proven(b"".join(line + b"\n" for line in kept), tuple(rejected))


def _row_problem(fields: Sequence[bytes], username: bytes | None, hostname: bytes | None) -> str:
    if len(fields) not in (_FEWER_FIELDS, _FIELDS):
        return f"{len(fields)} fields where a session has 14 or 16"
    if not fields[1] or not fields[2].isdigit() or fields[4] not in _STATUSES:
        return "no session's name, display and status"
    if username is not None and fields[11] != username:
        return "a session of another user"
    if hostname is not None and fields[3] != hostname:
        return "a session of another host"
    return ""


def _split_records(body: bytes, mark: bytes) -> tuple[list[bytes], bytes, list[bytes], int]:
    """Return the record lines before, the raw listing, the record lines after, and the listing's exit status."""
    head, found, rest = body.partition(mark + b" listing\n")
    if not found:
        for line in head.split(b"\n"):
            _record_error(line, mark)
        raise NotProven("the answer has no listing")
    raw, found, tail = rest.partition(b"\n" + mark + b" listed ")
    status, newline, after = tail.partition(b"\n")
    if not found or not newline or not _STATUS.match(status):
        raise NotProven("the listing was cut short")
    for line in after.split(b"\n"):
        _record_error(line, mark)
    if not head.startswith(mark + b" records before\n") or not after.startswith(mark + b" records after"):
        raise NotProven("the answer lacks the session database's records")
    return head.split(b"\n")[1:], raw, after.split(b"\n")[1:], int(status)


def _record_error(line: bytes, mark: bytes) -> None:
    if line.startswith(mark + b" recerr "):
        text = show(line.removeprefix(mark + b" recerr "))
        raise ListingFailed(
            f"the session database can't be read: {text}",
            mend="on the server, see that /var/lib/x2go/x2go_sessions is an intact database of x2goserver",
        )


def _records(lines: Sequence[bytes], mark: bytes) -> list[_Record]:
    records = []
    for line in lines:
        if not line:
            continue
        columns = line.removeprefix(mark + b" rec ").split(b"|")
        if not line.startswith(mark + b" rec ") or len(columns) != _COLUMNS:
            raise NotProven("a record of the session database is damaged")
        try:
            records.append(_Record(*(bytes.fromhex(column.decode("ascii")) for column in columns)))
        except ValueError:
            raise NotProven("a record of the session database is damaged") from None
    return records


def _against_records(section: Section, *, host: str, mark: bytes, stderr: bytes, host_is_known: bool) -> Proven:
    """Check a listing of SQLite row by row against the database's own columns."""
    if section.status in _TIMED_OUT:
        raise ListingFailed("x2golistsessions_root did not end in time and was stopped")
    if mark + b" records before" not in section.body:
        _check_found(section.status, "perl", stderr)
        raise NotProven(
            f"the session database could not be asked: {show(stderr) or f'exit status {section.status}'}",
            mend="the check needs perl with DBI and DBD::SQLite, which x2goserver itself depends on",
        )
    lines_before, raw, lines_after, status = _split_records(section.body, mark)
    if section.status != 0:
        raise NotProven(f"the reading of the session database ended with exit status {section.status}: {show(stderr)}")
    _check_status(Section(section.kind, {}, raw, status), "x2golistsessions_root", stderr)
    every_before, every_after = _records(lines_before, mark), _records(lines_after, mark)
    own = host.encode()
    before = {record.session: record for record in every_before if record.hostname == own}
    after = {record.session: record for record in every_after if record.hostname == own}
    # A user can insert a record of any host name: where the inventory knows the server's name, that is no evidence.
    if every_after and not before and not after and not host_is_known:
        others = sorted({show(record.hostname, 60) for record in every_after})
        raise HostNameChanged(
            f"all {len(every_after)} session records are of host {', '.join(others[:3])}, the server is {host} now",
            mend="give the server its old host name back, or end those sessions and delete their records; if its name "
            f'is right, say so in fleet.toml: hostname = "{host}"',
        )
    kept, rejected = _match(raw, before, after)
    missing = [
        name
        for name in before.keys() & after.keys()
        if name not in kept and before[name].is_clean() and after[name].is_clean()
    ]
    if missing:
        said = _first_words(raw) or show(stderr) or "nothing else"
        raise NotProven(
            f"the listing lacks {len(missing)} of {len(before)} sessions that the session database has, and says: "
            f"{said}"
        )
    return Proven(b"".join(line + b"\n" for line in kept.values()), tuple(rejected))


def _match(
    raw: bytes, before: Mapping[bytes, _Record], after: Mapping[bytes, _Record]
) -> tuple[dict[bytes, bytes], list[str]]:
    """Return the rows that are genuine, by session name, and a reason for every line that is not.

    A session that changed while it was being listed may be printed as neither record has it. Such a line is taken for
    no more than a sign that the session was listed: its row is made of the newer record, so that nothing is ever
    believed that the database does not say.
    """
    kept: dict[bytes, bytes] = {}
    exact: dict[bytes, bool] = {}
    signs: dict[bytes, list[tuple[int, bytes]]] = {}
    rejected: list[str] = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        fields = line.split(b"|")
        name = fields[1] if len(fields) > 1 else b""
        match = _genuine(fields, before, after)
        if match is None and _is_sign(fields, before, after):
            signs.setdefault(name, []).append((number, fields[12]))
        elif match is None:
            rejected.append(f"line {number}: no record of the session database prints this row")
        elif name not in kept:
            kept[name], exact[name] = line, match
        elif match and not exact[name]:
            rejected.append(f"line {number}: a second row of session {show(name, 80)}; the exact one was kept")
            kept[name], exact[name] = line, match
        else:
            rejected.append(f"line {number}: a second row of session {show(name, 80)}")
    for name, found in signs.items():
        if name not in kept:
            record, (number, age) = after[name], found.pop(0)
            kept[name] = b"|".join(record.printed(record.status, record.touched, age))
            if record == before[name]:
                rejected.append(f"line {number}: not what the session database has; its own record was taken")
        rejected += [f"line {number}: no record of the session database prints this row" for number, _ in found]
    return kept, rejected


def _genuine(fields: Sequence[bytes], before: Mapping[bytes, _Record], after: Mapping[bytes, _Record]) -> bool | None:
    """Whether the database prints exactly this row (True), as suspended (False), or not (None)."""
    if len(fields) != _FIELDS or not fields[12].removeprefix(b"-").isdigit():
        return None
    name, status, age = fields[1], fields[4], fields[12]
    records = [record for record in (before.get(name), after.get(name)) if record is not None and record.is_clean()]
    if any(list(fields) == record.printed(record.status, record.touched, age) for record in records):
        return True
    # A running session whose agent says that it is suspended is printed as suspended, before the record follows.
    if status == b"S" and any(
        record.status == b"R" and list(fields) == record.printed(b"S", record.touched, age) for record in records
    ):
        return False
    return None


def _is_sign(fields: Sequence[bytes], before: Mapping[bytes, _Record], after: Mapping[bytes, _Record]) -> bool:
    """Whether a row agrees with the newer record in all that never changes, so that its session was listed."""
    if len(fields) != _FIELDS or not fields[12].removeprefix(b"-").isdigit():
        return False
    first, last = before.get(fields[1]), after.get(fields[1])
    if first is None or last is None or not last.is_clean():
        return False
    fixed = [last.session, last.display, last.hostname, last.created, last.username]
    return [fields[index] for index in (1, 2, 3, 5, 11)] == fixed


def prove_load(section: Section, *, stderr: bytes) -> Proven:
    """Judge a section of load figures."""
    _check_status(section, "reading /proc", stderr)
    try:
        LoadReport.from_stdout(section.body)
    except ValueError as exc:
        raise ListingFailed(f"the load figures can't be read: {exc}") from exc
    return Proven(section.body)


def prove_mounts(section: Section, *, scope: str, uid: int, login: str, mark: bytes, stderr: bytes) -> Proven:
    """Judge a section of mounts; the believed lines are ``session|client|path``."""
    if scope == "server" and uid != 0:
        raise not_permitted(login, uid)
    if scope == "server" and section.attributes.get("backend") == "sqlite":
        return _mount_records(section, mark, stderr)
    _check_status(section, "x2golistmounts", stderr)
    kept: list[bytes] = []
    rejected: list[str] = []
    said = ""
    for number, line in enumerate(section.body.split(b"\n"), 1):
        if line.count(b"|") >= 2:
            kept.append(line + b"\n")
        elif line.strip():
            said = said or show(line.partition(b"|")[2] or line)
            rejected.append(f"line {number}: no mount")
    if rejected and (not kept or scope == "user"):
        raise ListingFailed(f"x2golistmounts printed no mount but: {said or rejected[0]}")
    return Proven(b"".join(kept), tuple(rejected))


def _mount_records(section: Section, mark: bytes, stderr: bytes) -> Proven:
    kept: list[bytes] = []
    rejected: list[str] = []
    for line in section.body.split(b"\n"):
        _record_error(line, mark)
    _check_status(section, "the query of mounts", stderr)
    for line in section.body.split(b"\n"):
        if not line:
            continue
        columns = line.removeprefix(mark + b" mnt ").split(b"|")
        try:
            session, client, path = (bytes.fromhex(column.decode("ascii")) for column in columns)
        except ValueError:
            raise NotProven("a record of the mounts is damaged") from None
        if b"\n" in session + client + path or b"|" in session + client:
            rejected.append(f"a mount of session {show(session, 80)}: its columns hold a separator")
        else:
            kept.append(b"|".join((session, client, path)) + b"\n")
    return Proven(b"".join(kept), tuple(rejected))


def prove_desktops(section: Section, *, stderr: bytes) -> Proven:
    """Judge a section of desktops; the believed lines are ``user@:display``."""
    _check_status(section, "x2golistdesktops", stderr)
    kept: list[bytes] = []
    rejected: list[str] = []
    for number, line in enumerate(section.body.split(b"\n"), 1):
        if _DESKTOP.match(line):
            kept.append(line + b"\n")
        elif line.strip():
            rejected.append(f"line {number}: no desktop")
    if rejected and not kept:
        raise ListingFailed(f"x2golistdesktops printed no desktop but: {_first_words(section.body) or rejected[0]}")
    return Proven(b"".join(kept), tuple(rejected))
