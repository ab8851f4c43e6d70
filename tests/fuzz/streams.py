"""Answers of a probe, broken on purpose: at any byte, and at any frame, so that what lies deep is reached too."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from x2gofleet_workers.probe.encoding import encode_notice
from x2gofleet_workers.probe.frames import HEADER_BYTES
from x2gofleet_workers.probe.protocol import (
    ErrorCode,
    Listing,
    MountRecord,
    Request,
    Scope,
    Section,
    SectionError,
    SectionKind,
    SectionRequest,
    SectionStatus,
)

from tests.support.probe_streams import EVERYTHING, HOSTILE, SAME, Conversation, session_record

USER = Conversation(
    Request(
        Scope.USER,
        (SectionRequest(SectionKind.SESSIONS), SectionRequest(SectionKind.MOUNTS), SectionRequest(SectionKind.LOAD)),
        9,
    ),
    (
        Section(kind=SectionKind.SESSIONS, exit_status=0, stdout=HOSTILE[0]),
        Section(kind=SectionKind.MOUNTS, exit_status=1, stderr="no"),
        Section(kind=SectionKind.LOAD, stdout=b"loadavg 0.00 0.01 0.05\n"),
    ),
    1000,
)
FAILED = Conversation(
    Request(Scope.SERVER, (SectionRequest(SectionKind.SESSIONS), SectionRequest(SectionKind.LOAD)), 9, watch=True),
    (
        Section(
            kind=SectionKind.SESSIONS,
            status=SectionStatus.ERROR,
            error=SectionError(ErrorCode.LOCKED, "database is locked"),
        ),
        Section(kind=SectionKind.LOAD, stdout=b"x"),
    ),
)
LISTED = Conversation(
    Request(
        Scope.SERVER,
        (SectionRequest(SectionKind.SESSIONS, listing=Listing.COMMAND), SectionRequest(SectionKind.MOUNTS)),
        9,
        watch=True,
    ),
    (
        Section(
            kind=SectionKind.SESSIONS,
            backend="postgres",
            host="ts01",
            fields=14,
            signature="a.1",
            records=tuple(session_record(f"alice-{display}", cookie=HOSTILE[1]) for display in range(50, 54)),
        ),
        Section(
            kind=SectionKind.MOUNTS,
            backend="postgres",
            host="ts01",
            mounts=(MountRecord(b"3", b"alice-50", b"10.0.0.1", HOSTILE[2]),),
        ),
    ),
)
BASES = (SAME, USER, FAILED, LISTED, EVERYTHING)
VALUES = (
    b"",
    b"0",
    b"1",
    b"-",
    b"-1",
    b"4294967296",
    b"9" * 40,
    b"ok",
    b"same",
    b"error",
    b"%00",
    b"%",
    b"load",
    b"a,b",
)


@dataclass(slots=True)
class RawFrame:
    """A frame that may be wrong: its length is what its header says, whatever its payload has."""

    kind: bytes
    number: int
    payload: bytes
    length: int

    def encode(self) -> bytes:
        """Return the frame as it stands."""
        return b"%b%08x%08x%b" % (self.kind, self.number & 0xFFFFFFFF, self.length & 0xFFFFFFFF, self.payload)


def frames_of(stream: bytes) -> list[RawFrame]:
    """Return the frames of a good stream."""
    frames, at = [], 0
    while at < len(stream):
        length = int(stream[at + 9 : at + HEADER_BYTES], 16)
        start, end = at + HEADER_BYTES, at + HEADER_BYTES + length
        frames.append(RawFrame(stream[at : at + 1], int(stream[at + 1 : at + 9], 16), stream[start:end], length))
        at = end
    return frames


_GOOD = {id(base): (base.stream() + (encode_notice() if base.request.watch else b"")) for base in BASES}
_FRAMES = {id(base): frames_of(_GOOD[id(base)]) for base in BASES}


def good_stream(base: Conversation) -> bytes:
    """Return the answer of one of BASES to request 1, and its notice where one was asked for."""
    return _GOOD[id(base)]


def mutated(base: Conversation, draw: random.Random) -> bytes:
    """Return the answer of ``base`` with one to three faults."""
    frames = [replace(frame) for frame in _FRAMES[id(base)]]
    turns = draw.choice((1, 1, 2, 3))
    for _ in range(turns):
        if frames and draw.random() < 0.7:
            draw.choice(FRAME_FAULTS)(frames, draw)
    stream = b"".join(frame.encode() for frame in frames)
    if draw.random() < 0.5:
        stream = draw.choice(BYTE_FAULTS)(stream, draw)
    return stream


def _drop(frames: list[RawFrame], draw: random.Random) -> None:
    del frames[draw.randrange(len(frames))]


def _double(frames: list[RawFrame], draw: random.Random) -> None:
    frames.insert(draw.randrange(len(frames) + 1), replace(draw.choice(frames)))


def _swap(frames: list[RawFrame], draw: random.Random) -> None:
    one, other = draw.randrange(len(frames)), draw.randrange(len(frames))
    frames[one], frames[other] = frames[other], frames[one]


def _retype(frames: list[RawFrame], draw: random.Random) -> None:
    draw.choice(frames).kind = draw.choice((b"B", b"D", b"L", b"E", b"Z", b"X", b"N", b"Q", b"S", b"b", b"\xff"))


def _renumber(frames: list[RawFrame], draw: random.Random) -> None:
    draw.choice(frames).number = draw.choice((0, 1, 2, 0xFFFFFFFF, draw.getrandbits(32)))


def _relength(frames: list[RawFrame], draw: random.Random) -> None:
    frame = draw.choice(frames)
    frame.length = draw.choice((0, frame.length - 1, frame.length + 1, 1 << 20, (1 << 20) + 1, draw.getrandbits(32)))


def _repay(frames: list[RawFrame], draw: random.Random) -> None:
    frame = draw.choice(frames)
    frame.payload = draw.choice(BYTE_FAULTS)(frame.payload, draw)
    frame.length = len(frame.payload)


def _reword(frames: list[RawFrame], draw: random.Random) -> None:
    frame = draw.choice(frames)
    words = frame.payload.split(b" ")
    place = draw.randrange(len(words))
    key = words[place].partition(b"=")[0]
    words[place] = key + b"=" + draw.choice(VALUES)
    if draw.random() < 0.2:
        words.insert(place, draw.choice(words))
    frame.payload = b" ".join(words)
    frame.length = len(frame.payload)


def _cut(frames: list[RawFrame], draw: random.Random) -> None:
    place = draw.randrange(len(frames))
    frame = frames[place]
    at = draw.randint(0, len(frame.payload))
    head, tail = frame.payload[:at], frame.payload[at:]
    frames[place : place + 1] = [
        RawFrame(frame.kind, frame.number, head, len(head)),
        RawFrame(frame.kind, frame.number, tail, len(tail)),
    ]


def _flip(stream: bytes, draw: random.Random) -> bytes:
    if not stream:
        return stream
    found = bytearray(stream)
    found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
    return bytes(found)


def _insert(stream: bytes, draw: random.Random) -> bytes:
    at = draw.randint(0, len(stream))
    return stream[:at] + draw.choice((draw.randbytes(draw.randint(1, 40)), *HOSTILE)) + stream[at:]


def _truncate(stream: bytes, draw: random.Random) -> bytes:
    return stream[: draw.randint(0, len(stream))]


def _remove(stream: bytes, draw: random.Random) -> bytes:
    start = draw.randint(0, len(stream))
    return stream[:start] + stream[start + draw.randint(0, 30) :]


def _repeat(stream: bytes, draw: random.Random) -> bytes:
    start = draw.randint(0, len(stream))
    end = start + draw.randint(0, 60)
    return stream[:end] + stream[start:end] + stream[end:]


def _join(stream: bytes, draw: random.Random) -> bytes:
    other = good_stream(draw.choice(BASES))
    return stream[: draw.randint(0, len(stream))] + other[draw.randint(0, len(other)) :]


FRAME_FAULTS: tuple[Callable[[list[RawFrame], random.Random], None], ...] = (
    _drop, _double, _swap, _retype, _renumber, _relength, _repay, _reword, _reword, _cut,
)  # fmt: skip
BYTE_FAULTS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _insert, _truncate, _remove, _repeat, _join,
)  # fmt: skip
