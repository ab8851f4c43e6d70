"""Feeds broken streams to the decoders of the probe protocol, which may decode them or raise NotProven alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from x2gofleet_workers.probe.frames import HEADER_BYTES, MAX_DATA_BYTES
from x2gofleet_workers.probe.hello import Hello, HelloDecoder
from x2gofleet_workers.probe.protocol import AnswerDecoder, Request, Section, SectionKind

from tests.fuzz.streams import BASES, BYTE_FAULTS, USER, good_stream, mutated
from tests.support.probe_streams import HOSTILE, Conversation, cut_at
from x2gofleet.errors import NotProven

FAILURES_KEPT = 5
_CHECKED_TWICE = 16


class Decoder(Protocol):
    """What is fuzzed; AnswerDecoder, or one with a fault that the fuzzing must find."""

    done: bool
    notices: list[SectionKind]

    @property
    def kept_bytes(self) -> int: ...
    @property
    def moved_bytes(self) -> int: ...
    def feed(self, data: bytes) -> Iterator[Section]: ...


MakeDecoder = Callable[[Request], Decoder]


@dataclass(slots=True)
class Tally:
    """What the runs came to."""

    runs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    failed: int = 0

    def add(self, other: Tally) -> None:
        """Add another tally to this one."""
        self.runs += other.runs
        self.outcomes += other.outcomes
        self.refusals += other.refusals
        self.failed += other.failed
        self.failures = (self.failures + other.failures)[:FAILURES_KEPT]

    def fail(self, text: str) -> None:
        """Count a run that went wrong."""
        self.failed += 1
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append(text)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a decoder ended: which sections it gave, whether the answer was complete, and the text of NotProven."""

    sections: tuple[Section, ...]
    done: bool
    notices: int
    refusal: str


def decoded(decoder: Decoder, pieces: Iterable[bytes]) -> Outcome:
    """Return what a decoder makes of a stream; AssertionError where it keeps or moves too much."""
    sections: list[Section] = []
    refusal = ""
    received = 0
    try:
        for piece in pieces:
            received += len(piece)
            sections.extend(decoder.feed(piece))
            assert decoder.kept_bytes <= HEADER_BYTES + MAX_DATA_BYTES, f"{decoder.kept_bytes} bytes are kept"
    except NotProven as exc:
        refusal = str(exc)
    assert decoder.moved_bytes <= 2 * received, f"{decoder.moved_bytes} moves of {received} bytes"
    return Outcome(tuple(sections), decoder.done, len(decoder.notices), refusal)


def fuzz(runs: int, seed: int, make: MakeDecoder = AnswerDecoder) -> Tally:
    """Feed ``runs`` broken streams to decoders; the same seed gives the same streams."""
    tally, draw = Tally(), random.Random(seed)
    for run in range(runs):
        tally.runs += 1
        base = draw.choice(BASES)
        stream = mutated(base, draw)
        try:
            outcome = _checked(base, stream, draw, make, twice=run % _CHECKED_TWICE == 0)
            if run % _CHECKED_TWICE == 1:
                _check_opaque(draw, make)
            elif run % _CHECKED_TWICE == 2:
                _check_hello(draw)
            elif run % _CHECKED_TWICE == 3:
                _check_request(draw)
        except Exception as exc:
            tally.fail(f"seed {seed}, run {run}: {type(exc).__name__}: {exc}; stream {stream!r}")
            continue
        state = "refused" if outcome.refusal else "complete" if outcome.done else "incomplete"
        tally.outcomes[state] += 1
        if outcome.refusal:
            tally.refusals[" ".join(outcome.refusal.split()[:5])] += 1
    return tally


def _checked(base: Conversation, stream: bytes, draw: random.Random, make: MakeDecoder, *, twice: bool) -> Outcome:
    outcome = decoded(make(base.request), [stream])
    kinds = [section.kind for section in outcome.sections]
    assert kinds == [section.kind for section in base.request.sections][: len(kinds)], f"sections {kinds}"
    assert not outcome.done or len(kinds) == len(base.request.sections), f"done with {kinds}"
    if twice:
        cuts = [draw.randint(0, len(stream)) for _ in range(draw.randint(0, 40))]
        pieces = cut_at(stream, cuts) if draw.random() < 0.8 else cut_at(stream, range(len(stream)))
        assert decoded(make(base.request), pieces) == outcome, "in pieces the stream is something else"
    return outcome


def _check_opaque(draw: random.Random, make: MakeDecoder) -> None:
    """Whatever bytes a command prints, they come back, and nothing else changes."""
    stdout = HOSTILE[0] + good_stream(draw.choice(BASES))
    for _ in range(3):
        stdout = draw.choice(BYTE_FAULTS)(stdout, draw)
    talk = replace(USER, sections=(replace(USER.sections[0], stdout=stdout), *USER.sections[1:]))
    outcome = decoded(make(talk.request), [talk.stream()])
    assert outcome == Outcome(talk.sections, True, 0, ""), "bytes of a payload were read as structure"


def _check_hello(draw: random.Random) -> None:
    stream = b"Last login: today\n" + Hello(0, "root", "ts01").encode() + b"B00000001"
    for _ in range(draw.randint(1, 3)):
        stream = draw.choice(BYTE_FAULTS)(stream, draw)
    decoder, at_once = HelloDecoder(), HelloDecoder()
    try:
        found = at_once.feed(stream)
    except NotProven:
        found = None
    else:
        assert found is None or stream.endswith(at_once.rest)
    try:
        again = next((each for piece in cut_at(stream, range(len(stream))) if (each := decoder.feed(piece))), None)
    except NotProven:
        again = None
    assert again == found, "in pieces the hello is something else"


def _check_request(draw: random.Random) -> None:
    payload = draw.choice(BASES).request.encode()
    for _ in range(draw.randint(1, 3)):
        payload = draw.choice(BYTE_FAULTS)(payload, draw)
    try:
        request = Request.decode(payload)
    except NotProven:
        return
    assert Request.decode(request.encode()) == request
