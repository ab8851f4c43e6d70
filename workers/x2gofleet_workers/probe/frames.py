"""frames: the unit of the probe protocol in both directions: type, request number, length, payload.

``TYPE(1 letter) REQUEST(8 hex digits) LENGTH(8 hex digits) PAYLOAD(LENGTH bytes)``, without separators. A payload is
taken by its length alone: nothing in it can end a frame or begin another one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from x2gofleet.errors import NotProven

HEADER_BYTES = 17
MAX_DATA_BYTES = 1024 * 1024
MAX_TEXT_BYTES = 1024 * 1024
MAX_WORDS_BYTES = 64 * 1024
MAX_NUMBER = 0xFFFFFFFF
NO_REQUEST = 0
_HEADER = re.compile(rb"[A-Z][0-9a-f]{16}")

TO_PROBE: Mapping[str, int] = MappingProxyType({"S": MAX_TEXT_BYTES, "Q": MAX_WORDS_BYTES})
"""Frame types that a worker sends, each with the cap of its payload in bytes: the probe's text and requests."""

FROM_PROBE: Mapping[str, int] = MappingProxyType(
    {"D": MAX_DATA_BYTES, "L": MAX_DATA_BYTES, **dict.fromkeys("BEZXN", MAX_WORDS_BYTES)}
)
"""Frame types that a probe sends, each with the cap of its payload in bytes: data, raw lines, and words."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. ``request`` is the number of the request that it belongs to, 0 where it belongs to none."""

    type: str
    request: int
    payload: bytes = field(default=b"", repr=False)


def encode_frame(kind: str, request: int, payload: bytes) -> bytes:
    """Return a frame as it is sent. Raises ValueError for a payload over the cap of its type."""
    cap = TO_PROBE.get(kind) or FROM_PROBE[kind]
    if len(payload) > cap:
        raise ValueError(f"a frame of type {kind} has at most {cap} bytes, got {len(payload)}")
    return b"%b%08x%08x%b" % (kind.encode(), request, len(payload), payload)


def next_number(number: int) -> int:
    """Return the number of the request after request ``number``; 0 is skipped, it belongs to no request."""
    return number + 1 if number < MAX_NUMBER else 1


class FrameDecoder:
    """Splits a stream into frames, whatever pieces it arrives in.

    Each byte is moved at most twice, and no more than one incomplete frame is kept. ``moved_bytes`` counts the moves,
    so that a test can show that the cost of a byte does not grow with what came before it.

    :param caps: the frame types that may come, each with the cap of its payload in bytes.
    """

    def __init__(self, caps: Mapping[str, int]) -> None:
        self.moved_bytes = 0
        self._caps = caps
        self._data = b""
        self._at = 0
        self._partial = bytearray()
        self._header: tuple[str, int, int] | None = None

    @property
    def kept_bytes(self) -> int:
        """How many bytes are kept, of a frame that is not complete or of frames that were not fetched."""
        return len(self._partial) + len(self._data) - self._at

    def feed(self, data: bytes) -> None:
        """Take in the next bytes of the stream; fetch all complete frames with ``next_frame`` before feeding more."""
        if self._at < len(self._data):
            data = self._data[self._at :] + data
            self.moved_bytes += len(data)
        self._data, self._at = data, 0

    def next_frame(self) -> Frame | None:
        """Return the next frame, None where it has not arrived in whole; raises NotProven for a malformed header."""
        if self._header is None:
            header = self._take(HEADER_BYTES)
            if header is None:
                return None
            self._header = self._checked(header)
        kind, request, length = self._header
        payload = self._take(length)
        if payload is None:
            return None
        self._header = None
        return Frame(kind, request, payload)

    def _take(self, length: int) -> bytes | None:
        """Return the next ``length`` bytes once all of them are there."""
        start, end = self._at, self._at + length - len(self._partial)
        if end > len(self._data):
            if start < len(self._data):
                self._partial += memoryview(self._data)[start:]
                self.moved_bytes += len(self._data) - start
            self._data, self._at = b"", 0
            return None
        self._at = end
        self.moved_bytes += length
        if not self._partial:
            return self._data[start:end]
        self._partial += memoryview(self._data)[start:end]
        self.moved_bytes += end - start
        taken, self._partial = bytes(self._partial), bytearray()
        return taken

    def _checked(self, header: bytes) -> tuple[str, int, int]:
        kind = chr(header[0])
        cap = self._caps.get(kind)
        if cap is None or not _HEADER.fullmatch(header):
            # What came is not quoted: after a fault of the framing it may be a part of a cookie.
            raise NotProven(
                f"expected the header of a frame (one of {' '.join(sorted(self._caps))} and 16 hex digits), "
                f"got {HEADER_BYTES} bytes that are not one, the first is 0x{header[0]:02x}"
            )
        length = int(header[9:], 16)
        if length > cap:
            raise NotProven(f"expected at most {cap} bytes in a frame of type {kind}, got one of {length} bytes")
        return kind, int(header[1:9], 16), length
