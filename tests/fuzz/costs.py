"""What the decoder costs: calls, moves, time and memory for each byte of long streams of several shapes."""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from x2gofleet_workers.probe.decoding import Begin
from x2gofleet_workers.probe.encoding import FRAME_BYTES, encode_begin
from x2gofleet_workers.probe.frames import MAX_DATA_BYTES, encode_frame
from x2gofleet_workers.probe.protocol import AnswerDecoder, Request, Scope, SectionKind, SectionRequest
from x2gofleet_workers.probe.records import Record, encode_record

from tests.support.probe_streams import session_record

PIECE_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """One frame that is sent again and again within a section, and the size of the pieces in which it arrives."""

    name: str
    kind: SectionKind
    payload: bytes
    piece_bytes: int = PIECE_BYTES

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield the first ``size`` bytes of an answer that does not end, in pieces."""
        frame = encode_frame("D", 1, self.payload)
        ahead = frame * (self.piece_bytes * 4 // len(frame) + 1)
        waiting, left = encode_begin(Begin(self.kind, "sqlite", "ts01"), 1), size
        while left:
            waiting += ahead
            usable = min(left, len(waiting) - len(waiting) % self.piece_bytes)
            for at in range(0, usable, self.piece_bytes):
                yield waiting[at : min(at + self.piece_bytes, usable)]
            waiting, left = waiting[usable:], left - usable


def _records(count: int, **columns: bytes) -> bytes:
    return b"".join(encode_record(session_record(f"alice-{number}", **columns)) for number in range(count))


_SMALLEST = Record(*(b"" for _ in range(20)))
SHAPES = (
    Shape("records", SectionKind.SESSIONS, _records(150, client=b"x" * 120)),
    Shape("records with long columns", SectionKind.SESSIONS, _records(20, cookie=b"c" * 1024, client=b"x" * 1024)),
    Shape("stdout", SectionKind.DESKTOPS, b"alice@:50\n" * (FRAME_BYTES // 10)),
    Shape("stdout in frames of 2 KB", SectionKind.DESKTOPS, b"x" * 2000),
    Shape("frames of 1 MB in pieces of 100 bytes", SectionKind.DESKTOPS, bytes(MAX_DATA_BYTES), 100),
)
SMALLEST_RECORDS = Shape("the smallest records", SectionKind.SESSIONS, encode_record(_SMALLEST) * 800)


def decoder_of(shape: Shape) -> AnswerDecoder:
    """Return a decoder that waits for the section of ``shape``."""
    return AnswerDecoder(Request(Scope.SERVER, (SectionRequest(shape.kind),), 9))


def feed(decoder: AnswerDecoder, shape: Shape, size: int) -> int:
    """Feed an answer of ``size`` bytes that does not end, and return how many bytes that were."""
    received = 0
    for piece in shape.pieces(size):
        received += len(piece)
        for _ in decoder.feed(piece):
            raise AssertionError("a section that did not end was complete")
    return received


def calls_of_a_byte(shape: Shape, size: int, *, make: Callable[[Shape], AnswerDecoder] = decoder_of) -> float:
    """Return how many functions are called for each byte, those in C included."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        if event in ("call", "c_call"):
            calls += 1

    decoder = make(shape)
    pieces = list(shape.pieces(size))
    sys.setprofile(count)
    try:
        for piece in pieces:
            for _ in decoder.feed(piece):
                pass
    finally:
        sys.setprofile(None)
    return calls / sum(map(len, pieces))


def moves_of_a_byte(shape: Shape, size: int) -> float:
    """Return how often each byte is moved on the average before it reaches its section."""
    decoder = decoder_of(shape)
    received = feed(decoder, shape, size)
    return decoder.moved_bytes / received


def seconds_of_a_byte(shape: Shape, start: int, size: int) -> float:
    """Return the processor time for each of ``size`` bytes that come after ``start`` bytes of the same answer."""
    decoder = decoder_of(shape)
    spent = received = measured = 0.0
    for piece in shape.pieces(start + size):
        began = time.process_time_ns()
        for _ in decoder.feed(piece):
            pass
        if received >= start:
            spent += time.process_time_ns() - began
            measured += len(piece)
        received += len(piece)
    return spent / 1e9 / measured


def memory_of_a_byte(shape: Shape, size: int) -> float:
    """Return the most memory that was used, for each byte of the answer; what one piece takes is not counted."""
    pieces = list(shape.pieces(size))
    decoder = decoder_of(shape)
    tracemalloc.start()
    try:
        for piece in pieces:
            for _ in decoder.feed(piece):
                pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak / sum(map(len, pieces))


def growth(work: Callable[[], object], larger: Callable[[], object]) -> float:
    """Return how many times the processor time of ``work`` the larger one takes; the least of three tries of each."""
    return _processor_seconds(larger) / _processor_seconds(work)


def _processor_seconds(work: Callable[[], object]) -> float:
    spent = []
    for _ in range(3):
        began = time.process_time_ns()
        work()
        spent.append(time.process_time_ns() - began)
    return max(min(spent), 1) / 1e9
