"""Frames in any pieces, their caps, and what a byte costs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x2gofleet_workers.probe.frames import (
    FROM_PROBE,
    HEADER_BYTES,
    MAX_NUMBER,
    TO_PROBE,
    Frame,
    FrameDecoder,
    encode_frame,
    next_number,
)

from tests.support.probe_streams import cut_at
from x2gofleet.errors import NotProven

ALL = {**TO_PROBE, **FROM_PROBE}


def decoded(decoder: FrameDecoder, pieces: list[bytes]) -> list[Frame]:
    frames = []
    for piece in pieces:
        decoder.feed(piece)
        while (frame := decoder.next_frame()) is not None:
            frames.append(frame)
    return frames


frames_drawn = st.lists(
    st.builds(Frame, st.sampled_from(sorted(ALL)), st.integers(0, MAX_NUMBER), st.binary(max_size=60)), max_size=8
)


@settings(deadline=None)
@given(frames_drawn, st.data())
def test_frames_come_back_as_they_were_sent_in_any_pieces(frames: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(frame.type, frame.request, frame.payload) for frame in frames)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    decoder = FrameDecoder(ALL)
    assert decoded(decoder, cut_at(stream, cuts)) == frames
    assert decoder.kept_bytes == 0
    assert decoder.moved_bytes <= 2 * len(stream)


def test_a_frame_as_it_is_sent() -> None:
    assert encode_frame("Q", 0x1F, b"scope=user") == b"Q0000001f0000000ascope=user"


@pytest.mark.parametrize("kind", sorted(ALL))
def test_a_payload_has_a_cap(kind: str) -> None:
    cap = ALL[kind]
    decoder = FrameDecoder(ALL)
    assert decoded(decoder, [encode_frame(kind, 1, bytes(cap))]) == [Frame(kind, 1, bytes(cap))]
    with pytest.raises(ValueError, match=f"at most {cap} bytes"):
        encode_frame(kind, 1, bytes(cap + 1))
    # Refused at the header already: the payload is never collected.
    with pytest.raises(NotProven, match=f"at most {cap} bytes in a frame of type {kind}, got one of {cap + 1} bytes"):
        decoded(decoder, [b"%b00000001%08x" % (kind.encode(), cap + 1)])


def test_the_caps_are_those_of_the_protocol() -> None:
    assert dict(TO_PROBE) == {"S": 1048576, "Q": 65536}
    assert dict(FROM_PROBE) == {
        "D": 1048576, "L": 1048576, "B": 65536, "E": 65536, "Z": 65536, "X": 65536, "N": 65536,
    }  # fmt: skip


def test_numbers_go_round_without_0() -> None:
    assert [next_number(number) for number in (0, 1, MAX_NUMBER - 1, MAX_NUMBER)] == [1, 2, MAX_NUMBER, 1]


def test_no_more_than_one_incomplete_frame_is_kept() -> None:
    decoder = FrameDecoder(FROM_PROBE)
    cap = FROM_PROBE["D"]
    stream = encode_frame("D", 1, bytes(cap))
    decoded(decoder, [stream[:-1]])
    assert decoder.kept_bytes == cap - 1
    decoded(decoder, [stream[-1:] + stream[: HEADER_BYTES - 1]])
    assert decoder.kept_bytes == HEADER_BYTES - 1


class NaiveDecoder:
    """What must not be built: it searches its whole buffer again and moves what is left of it for each frame."""

    def __init__(self) -> None:
        self.moved_bytes = 0
        self._buffer = b""

    def feed(self, data: bytes) -> None:
        self._buffer += data
        self.moved_bytes += len(self._buffer)

    def next_frame(self) -> Frame | None:
        if len(self._buffer) < HEADER_BYTES:
            return None
        length = int(self._buffer[9:HEADER_BYTES], 16)
        end = HEADER_BYTES + length
        if len(self._buffer) < end:
            return None
        frame = Frame(chr(self._buffer[0]), 1, self._buffer[HEADER_BYTES:end])
        self._buffer = self._buffer[end:]
        self.moved_bytes += len(self._buffer)
        return frame


def moves_of_a_byte(decoder: FrameDecoder | NaiveDecoder, *, frames: int, payload: int, step: int) -> float:
    """Return how often a byte is moved on the average, in a stream of equal frames that comes in equal pieces."""
    stream = encode_frame("D", 1, bytes(payload)) * frames
    for at in range(0, len(stream), step):
        decoder.feed(stream[at : at + step])
        while decoder.next_frame() is not None:
            pass
    return decoder.moved_bytes / len(stream)


SHAPES = [
    pytest.param({"payload": 1, "step": 1 << 16}, id="small frames in large pieces"),
    pytest.param({"payload": 1 << 16, "step": 100}, id="large frames in small pieces"),
    pytest.param({"payload": 1000, "step": 999}, id="frames across pieces"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_byte_costs_the_same_in_a_short_stream_and_in_a_long_one(shape: dict[str, int]) -> None:
    size = HEADER_BYTES + shape["payload"]
    short, long = (max(2, length // size) for length in (1 << 17, 1 << 21))
    assert moves_of_a_byte(FrameDecoder(FROM_PROBE), frames=short, **shape) <= 2
    assert moves_of_a_byte(FrameDecoder(FROM_PROBE), frames=long, **shape) <= 2


def test_the_measure_of_costs_sees_a_buffer_that_is_moved() -> None:
    shape = {"payload": 1, "step": 1 << 16}
    assert moves_of_a_byte(NaiveDecoder(), frames=1 << 13, **shape) > 100
