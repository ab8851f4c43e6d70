"""The server's side of the probe protocol, from one request line to the bytes that answer it; no I/O."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from x2gofleet_workers.simulator.counters import Counters
from x2gofleet_workers.simulator.faults import Fault, FaultKind, garbage
from x2gofleet_workers.simulator.fleet import ServerModel
from x2gofleet_workers.simulator.users import Login

PROTOCOL_VERSION = 1
NOBODY = Login(username="nobody", uid=65534)
_UNREADABLE = b"unable to open database file"
_REQUEST = re.compile(rb"poll ([0-9a-f]{32}) (server|user) ([1-9][0-9]{0,4})((?: [^ ]+)+)")
_BOUNDARY = re.compile(rb"poll ([0-9a-f]{32})(?: |$)")
_SECTION = re.compile(rb"load|sessions=(?:-|[0-9]{1,18})|mounts|desktops(?:=[^ =]+)?")


class ProbeAnswers:
    """One started probe: whose it is, and which signature it handed out last.

    :param login: as whom the probe runs.
    :param counters: where its polls are counted.
    :param draw: randomness for the garbage fault.
    """

    def __init__(
        self,
        *,
        model: ServerModel,
        login: Login,
        counters: Counters,
        clock: Callable[[], float],
        draw: random.Random,
    ) -> None:
        self._model, self._login, self._counters, self._clock, self._draw = (
            model,
            login,
            counters,
            clock,
            draw,
        )
        self._issued = 0
        self._same_request = b""
        self._same_answer = (b"", b"")
        self._done = self._done_line(login)

    def hello(self, fault: Fault | None) -> bytes:
        """Return the line that a probe prints first."""
        login = self._shown_login(fault)
        return (
            f"x2gofleet-probe {PROTOCOL_VERSION} uid={login.uid} user={login.username} host={self._model.server_id}\n"
        ).encode()

    def answer(self, line: bytes, fault: Fault | None) -> bytes:
        """Return the whole answer to one request line (without its newline)."""
        request = _REQUEST.fullmatch(line)
        if request is None:
            return self._error(line, b"expected: poll BOUNDARY server|user TIMEOUT_S SECTION...")
        boundary, scope, _, tail = request.groups()
        if fault is not None and fault.kind is FaultKind.GARBAGE:
            self._counters.garbage_answers += 1
            return garbage(boundary.decode(), self._counters.garbage_answers, self._draw)
        # The unchanged poll is nearly every poll of a load test: nothing is built that was built before.
        if tail == self._same_request and self._issued == self._model.revision and fault is None and scope == b"server":
            self._counters.same_answers += 1
            before, after = self._same_answer
            return boundary + before + boundary + after
        sections = tail[1:].split(b" ")
        unknown = [section for section in sections if not _SECTION.fullmatch(section)]
        if unknown:
            return self._error(line, b"unknown section " + unknown[0][:64])
        if scope == b"user" and any(section.startswith(b"desktops=") for section in sections):
            return self._error(line, b"desktops of another user in user scope")
        is_empty = fault is not None and fault.kind is FaultKind.EMPTY
        parts = [self._section(boundary, section, scope == b"server", fault) for section in sections]
        parts.append(boundary + (self._done_line(self._shown_login(fault)) if is_empty else self._done))
        return b"".join(parts)

    def _shown_login(self, fault: Fault | None) -> Login:
        is_empty = fault is not None and fault.kind is FaultKind.EMPTY
        return NOBODY if is_empty and self._login.is_root else self._login

    def _done_line(self, login: Login) -> bytes:
        return f" done uid={login.uid} host={self._model.server_id}\n".encode()

    def _error(self, line: bytes, text: bytes) -> bytes:
        self._counters.error_answers += 1
        found = _BOUNDARY.match(line)
        return (found.group(1) if found else b"-") + b" error " + text + b"\n"

    def _section(self, boundary: bytes, section: bytes, in_server_scope: bool, fault: Fault | None) -> bytes:
        is_empty = fault is not None and fault.kind is FaultKind.EMPTY
        name, _, value = section.partition(b"=")
        if name == b"load":
            return _frame(boundary, b"load", self._model.load_stdout(self._clock()))
        if name == b"desktops":
            username = value.decode(errors="replace") or self._login.username
            is_allowed = self._login.is_root or username == self._login.username
            stdout = self._model.desktops(username) if is_allowed and not is_empty else b""
            return _frame(boundary, b"desktops", stdout, status=0 if is_allowed else 1)
        if name == b"mounts":
            is_unreadable = fault is not None and fault.kind is FaultKind.MOUNTS
            return self._mounts(boundary, in_server_scope, is_empty, is_unreadable)
        if in_server_scope:
            return self._server_sessions(boundary, value, is_empty)
        self._counters.full_listings += 1
        return _frame(boundary, b"sessions backend=sqlite sig=-", b"" if is_empty else self._user_sessions())

    def _user_sessions(self) -> bytes:
        username, now = self._login.username, self._clock()
        return self._model.user_listing(username, now) + self._model.shadow_listing(username, now)

    def _mounts(self, boundary: bytes, in_server_scope: bool, is_empty: bool, is_unreadable: bool) -> bytes:
        if is_unreadable and not in_server_scope:
            return _frame(boundary, b"mounts backend=sqlite", b"", status=1)
        if not in_server_scope:
            mounts = () if is_empty else self._model.mounts(username=self._login.username)
            stdout = "".join("|".join(mount) + "\n" for mount in mounts)
            return _frame(boundary, b"mounts backend=sqlite", stdout.encode())
        if is_empty:
            return _frame(boundary, b"mounts backend=sqlite", b"")
        if is_unreadable or not self._login.is_root:
            return _frame(boundary, b"mounts backend=sqlite", boundary + b" recerr " + _UNREADABLE + b"\n")
        lines = [
            boundary + b" mnt " + "|".join(column.encode().hex() for column in mount).encode() + b"\n"
            for mount in self._model.mounts()
        ]
        return _frame(boundary, b"mounts backend=sqlite", b"".join(lines))

    def _server_sessions(self, boundary: bytes, signature: bytes, is_empty: bool) -> bytes:
        if is_empty or not self._login.is_root:
            self._counters.full_listings += 1
            unreadable = boundary + b" records before\n" + boundary + b" recerr " + _UNREADABLE + b"\n"
            body = _listed(boundary, b"", b"") if is_empty else unreadable
            return _frame(boundary, b"sessions backend=sqlite sig=-", body)
        revision = self._model.revision
        if signature == b"%d" % revision and self._issued == revision:
            self._counters.same_answers += 1
            self._remember_same(signature)
            return boundary + b" same sessions sig=" + signature + b"\n"
        self._issued, self._same_request = revision, b""
        self._counters.full_listings += 1
        head = boundary + b" rec "
        records = b"".join([head + record + b"\n" for record in self._model.records()])
        body = _listed(boundary, records, self._model.listing(self._clock()))
        return _frame(boundary, b"sessions backend=sqlite sig=%d" % revision, body)

    def _remember_same(self, signature: bytes) -> None:
        self._same_request = b" sessions=" + signature
        self._same_answer = (b" same sessions sig=" + signature + b"\n", self._done)


def _listed(boundary: bytes, records: bytes, listing: bytes) -> bytes:
    return b"".join(
        (
            *(boundary, b" records before\n", records, boundary, b" listing\n", listing),
            *(b"\n", boundary, b" listed 0\n", boundary, b" records after\n", records),
        )
    )


def _frame(boundary: bytes, opening: bytes, body: bytes, *, status: int = 0) -> bytes:
    name = opening.partition(b" ")[0]
    return b"%b begin %b\n%b\n%b end %b %d\n" % (boundary, opening, body, boundary, name, status)
