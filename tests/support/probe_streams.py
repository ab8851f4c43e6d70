"""Answers of a probe for tests of their decoder: strategies that draw whole conversations, and one that has it all."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from x2gofleet_workers.probe.encoding import encode_done, encode_section
from x2gofleet_workers.probe.protocol import (
    AnswerDecoder,
    ErrorCode,
    Listing,
    MountRecord,
    Record,
    Request,
    Scope,
    Section,
    SectionError,
    SectionKind,
    SectionRequest,
    SectionStatus,
)

from tests.support.user_names import USERS

# Payloads in which each byte could be taken for structure, were it read as such.
HOSTILE = (
    b"\nx2gofleet-probe 2 uid=0 user=root host=ts01\nZ00000001" + b"0000000cuid=0 host=a",
    b"E0000000100000009status=ok",
    b"\x00\x00\x04\x01|%41\xff\n\n",
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A request and the answer to it."""

    request: Request
    sections: tuple[Section, ...]
    uid: int = 0
    host: str = "ts01"

    def stream(self, number: int = 1) -> bytes:
        """Return the answer as the probe sends it, where the request has this number."""
        frames = [encode_section(section, self.request.scope, number) for section in self.sections]
        return b"".join((*frames, encode_done(self.uid, self.host, number)))


def fed(decoder: AnswerDecoder, pieces: Iterable[bytes]) -> list[Section]:
    """Return the sections that the pieces of a stream give."""
    return [section for piece in pieces for section in decoder.feed(piece)]


def cut_at(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """Return the stream in pieces."""
    edges = sorted({0, *places, len(stream)})
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


def session_record(session: str = "alice-50-1763800000_stDMATE_dp24", **columns: bytes) -> Record:
    """Return a record of a running session; ``columns`` replaces some."""
    record = {
        "cut": b"",
        "session": session.encode(),
        "username": b"alice",
        "hostname": b"ts01",
        "status": b"R",
        "display": b"50",
        "created": b"2025-11-22T08:26:40",
        "touched": b"2025-11-22T08:26:40",
        "cookie": b"0123456789abcdef0123456789abcdef",
        "client": b"10.0.0.1",
        "agent_pid": b"4711",
        "graphics_port": b"30000",
        "sound_port": b"30001",
        "sshfs_port": b"30002",
        "tekictrl_port": b"-1",
        "tekidata_port": b"-1",
        "age": b"60",
        "creator": b"",
        "foreign_agent": b"",
        "state": b"RUNNING",
    }
    return Record(**(record | columns))


EVERYTHING = Conversation(
    Request(
        Scope.SERVER,
        (
            SectionRequest(SectionKind.LOAD),
            SectionRequest(SectionKind.SESSIONS, "2f.1", Listing.COMMAND),
            SectionRequest(SectionKind.MOUNTS),
            SectionRequest(SectionKind.DESKTOPS, user="DOMAIN\\alice+x"),
            SectionRequest(SectionKind.REFERENCE),
            SectionRequest(SectionKind.DESKTOPS),
        ),
        9,
        watch=True,
    ),
    (
        Section(kind=SectionKind.LOAD, stdout=b"loadavg 0.00 0.01 0.05\n" + HOSTILE[0]),
        Section(
            kind=SectionKind.SESSIONS,
            backend="sqlite",
            host="ts01",
            fields=14,
            signature="2f.2",
            source=Listing.COMMAND,
            others=3,
            other_hosts=("old name", "ts02"),
            left_out=7,
            exit_status=1,
            stderr="50 % of\nit",
            records=(session_record(), session_record("bob-51", cookie=HOSTILE[1], client=HOSTILE[2])),
            lines=HOSTILE[1] + b"\n",
        ),
        Section(
            kind=SectionKind.MOUNTS,
            backend="sqlite",
            host="ts01",
            mounts=(MountRecord(b"", b"bob-51", b"10.0.0.1", HOSTILE[0]),),
        ),
        Section(
            kind=SectionKind.DESKTOPS,
            status=SectionStatus.ERROR,
            user="DOMAIN\\alice+x",
            exit_status=1,
            stderr="su: user does not exist",
            error=SectionError(ErrorCode.COMMAND, "su ended", 1, "su: user does not exist"),
        ),
        Section(kind=SectionKind.REFERENCE, backend="sqlite", host="ts01", exit_status=0, lines=HOSTILE[2]),
        Section(kind=SectionKind.DESKTOPS, exit_status=0, stdout=b"alice@:50\n"),
    ),
)
"""Every kind of section, data that look like frames, an error, two sections of one kind."""

SAME = Conversation(
    Request(Scope.SERVER, (SectionRequest(SectionKind.SESSIONS, "2f.1"),), 9),
    (Section(kind=SectionKind.SESSIONS, status=SectionStatus.SAME, backend="sqlite", host="ts01", signature="2f.1"),),
)
"""The answer to nearly every poll."""

_text = st.text(st.characters(codec="utf-8"), max_size=12)
_host = st.text(st.characters(codec="utf-8", exclude_characters=","), min_size=1, max_size=12)
_signature = st.from_regex(r"[0-9a-z.-]{1,12}", fullmatch=True)
_payload = st.one_of(st.binary(max_size=80), st.sampled_from(HOSTILE))
_column = st.one_of(st.sampled_from((b"", b"50", *HOSTILE)), st.binary(max_size=30))
_exit = st.integers(0, 255)
_cut = st.sampled_from((b"", b"", b"1", b"8,13"))


@st.composite
def _records(draw: st.DrawFn) -> tuple[Record, ...]:
    columns = draw(st.lists(_column, min_size=19, max_size=19))
    turns = draw(st.lists(st.tuples(_cut, st.integers(0, 18)), max_size=3))
    return tuple(Record(cut, *columns[turn:], *columns[:turn]) for cut, turn in turns)


_mounts = st.lists(st.builds(MountRecord, _cut, _column, _column, _column), max_size=3).map(tuple)


@st.composite
def _section(draw: st.DrawFn, scope: Scope, kind: SectionKind) -> tuple[SectionRequest, Section]:
    in_server_scope = scope is Scope.SERVER
    user = draw(USERS) if kind == "desktops" and in_server_scope else ""
    is_listing = kind is SectionKind.SESSIONS and in_server_scope
    request = SectionRequest(kind, user=user)
    if kind is SectionKind.SESSIONS:
        request = SectionRequest(kind, draw(_signature), draw(st.sampled_from(Listing)))
    has_origin = is_listing or kind is SectionKind.REFERENCE or (kind is SectionKind.MOUNTS and in_server_scope)
    origin: dict[str, Any] = {"kind": kind}
    if has_origin:
        fields = draw(st.sampled_from((14, 16)))
        origin |= {"backend": draw(_host), "host": draw(_host), "fields": fields}
    statuses = [SectionStatus.OK, SectionStatus.OK, SectionStatus.ERROR]
    if is_listing and request.signature != "-":
        statuses.append(SectionStatus.SAME)
    status = draw(st.sampled_from(statuses))
    said: dict[str, Any] = {"exit_status": draw(_exit), "stderr": draw(_text)}
    if status is SectionStatus.SAME:
        return request, Section(**origin, status=status, signature=request.signature)
    if status is SectionStatus.ERROR:
        error = SectionError(draw(st.sampled_from(ErrorCode)), draw(_text), said["exit_status"], said["stderr"])
        return request, Section(**origin, user=user, status=status, error=error, **said)
    data: dict[str, Any] = {}
    if is_listing:
        data = {"signature": draw(_signature), "others": draw(st.integers(0, 9)), "records": draw(_records())}
        data["left_out"] = draw(st.integers(0, 9999))
        data["other_hosts"] = tuple(draw(st.lists(_host, max_size=2)))
        if request.listing is Listing.COMMAND and draw(st.booleans()):
            data |= {"source": Listing.COMMAND, "lines": draw(_payload), **said}
    elif kind is SectionKind.REFERENCE:
        data = {"records": draw(_records()), "lines": draw(_payload), **said}
    elif has_origin:
        data = {"mounts": draw(_mounts)}
    else:
        data = {"stdout": draw(_payload)} | (said if kind is not SectionKind.LOAD else {})
    return request, Section(**origin, user=user, **data)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Draw a request with an answer to it, in either scope."""
    scope = draw(st.sampled_from(Scope))
    kinds: Sequence[SectionKind] = list(SectionKind)
    if scope is Scope.USER:
        kinds = [kind for kind in kinds if kind is not SectionKind.REFERENCE]
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4))
    pairs = [draw(_section(scope, kind)) for kind in chosen]
    request = Request(scope, tuple(each for each, _ in pairs), draw(st.integers(1, 600)), draw(st.booleans()))
    return Conversation(request, tuple(each for _, each in pairs), draw(st.integers(0, 2**32 - 1)), draw(_host))
