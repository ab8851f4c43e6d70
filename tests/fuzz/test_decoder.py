"""A part of `make fuzz` in every test run, and that the fuzzing and the measures find what they look for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from x2gofleet_workers.probe.frames import HEADER_BYTES
from x2gofleet_workers.probe.protocol import AnswerDecoder, Request, Section, SectionKind

from tests.fuzz.costs import (
    SHAPES,
    SMALLEST_RECORDS,
    Shape,
    calls_of_a_byte,
    decoder_of,
    feed,
    memory_of_a_byte,
    moves_of_a_byte,
)
from tests.fuzz.decoder import fuzz
from tests.fuzz.streams import BASES, frames_of, good_stream
from tests.support.probe_streams import Conversation
from x2gofleet.errors import NotProven

RUNS = int(os.environ.get("FUZZ_RUNS", "1000"))
SHORT, LONG = 1 << 18, 1 << 21


def test_broken_streams_are_decoded_or_not_proven() -> None:
    tally = fuzz(RUNS, seed=2)
    assert tally.failures == []
    assert (tally.runs, tally.failed) == (RUNS, 0)
    # The streams reach everything: answers that end, answers that do not, and many reasons to refuse one.
    assert set(tally.outcomes) == {"complete", "incomplete", "refused"}
    assert len(tally.refusals) > 30


class Unchecked(AnswerDecoder):
    """Raises what its conversions raise."""

    def feed(self, data: bytes) -> Iterator[Section]:
        try:
            yield from super().feed(data)
        except NotProven as exc:
            raise ValueError(str(exc)) from exc


class Forgetful(AnswerDecoder):
    """Begins anew with each piece."""

    def feed(self, data: bytes) -> Iterator[Section]:
        sections = super().feed(data)
        if self.kept_bytes and len(data) < HEADER_BYTES:
            raise NotProven("expected a whole frame")
        return sections


class InBand:
    """Looks for frames by their headers, wherever they are, as one that splits at marks does."""

    def __init__(self, request: Request) -> None:
        self._inner, self._buffer = AnswerDecoder(request), b""
        self.moved_bytes = self.kept_bytes = 0

    @property
    def done(self) -> bool:
        return self._inner.done

    @property
    def notices(self) -> list[SectionKind]:
        return self._inner.notices

    def feed(self, data: bytes) -> Iterator[Section]:
        parts = re.split(rb"([BDLEZXN][0-9a-f]{8})[0-9a-f]{8}", self._buffer + data)
        for head, payload in zip(parts[1::2], parts[2::2], strict=True):
            yield from self._inner.feed(b"%b%08x%b" % (head, len(payload), payload))


class Quadratic(AnswerDecoder):
    """Counts the moves of a decoder that moves all that came before with each piece."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._received = self._moves = 0

    @property
    def moved_bytes(self) -> int:
        return self._moves

    def feed(self, data: bytes) -> Iterator[Section]:
        self._received += len(data)
        self._moves += self._received
        return super().feed(data)


@pytest.mark.parametrize(
    ("faulty", "text"),
    [
        (Unchecked, "ValueError"),
        (Forgetful, "in pieces the stream is something else"),
        (InBand, "bytes of a payload were read as structure|done with|something else"),
        (Quadratic, "moves of"),
    ],
)
def test_the_fuzzing_finds_a_faulty_decoder(faulty: type[AnswerDecoder], text: str) -> None:
    tally = fuzz(400, seed=2, make=faulty)
    assert tally.failed > 0
    assert any(re.search(text, failure) for failure in tally.failures)


@pytest.mark.parametrize("base", BASES)
def test_the_streams_to_be_broken_are_good(base: Conversation) -> None:
    decoder = AnswerDecoder(base.request)
    assert tuple(decoder.feed(good_stream(base))) == base.sections
    assert decoder.done
    assert b"".join(frame.encode() for frame in frames_of(good_stream(base))) == good_stream(base)


@pytest.mark.parametrize("shape", [*SHAPES, SMALLEST_RECORDS], ids=lambda shape: shape.name)
def test_a_byte_costs_the_same_however_long_the_answer_is(shape: Shape) -> None:
    # A quarter more: at the end of the short answer a frame of up to a sixth of it is still incomplete.
    assert calls_of_a_byte(shape, LONG) <= 1.25 * calls_of_a_byte(shape, SHORT)
    assert moves_of_a_byte(shape, LONG) <= 2


@pytest.mark.parametrize("shape", [*SHAPES, SMALLEST_RECORDS], ids=lambda shape: shape.name)
def test_memory_is_a_small_multiple_of_what_came(shape: Shape) -> None:
    assert memory_of_a_byte(shape, LONG) < 6


def test_the_number_of_records_has_a_cap() -> None:
    with pytest.raises(NotProven, match="at most 200000 records"):
        feed(decoder_of(SMALLEST_RECORDS), SMALLEST_RECORDS, 200_000 * 80 + 200_000)
