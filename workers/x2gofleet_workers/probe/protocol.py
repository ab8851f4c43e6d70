"""protocol: version 2 of the conversation between a worker and the probe on a polled server.

The probe is one Perl text. A worker starts it over SSH (``perl -e LOADER``, the text follows on stdin), or it is
installed root-owned as the forced command of a key.

Both directions are frames, ``TYPE(1 letter) REQUEST(8 hex digits) LENGTH(8 hex digits) PAYLOAD``. REQUEST is the number
of the request that a frame belongs to (1, 2, ... ffffffff, 1, ...), 0 for ``S``, ``N`` and an ``X`` to what has no
number. Small structures are words: ``key=value`` separated by one space, percent-encoded.

To the probe:

- ``S``: the probe's text, first, where the worker starts it with the loader. An installed probe passes it over.
- ``Q``: a request; lines of words. ``scope=server|user seconds=N [watch=1] [connect=each_poll]``, then a line for each
  section, in order:
  ``section=load``, ``section=sessions signature=TOKEN|- listing=records|command``, ``section=mounts``,
  ``section=desktops [user=NAME]``, ``section=reference`` (X2Go's own query between two equal readings of the records).
- End of input: the probe ends.

From the probe: noise of login shells (at most 64 KiB), the hello (hello.py), then for each request and each section in
order:

- ``B`` words: ``kind=KIND [backend=NAME host=NAME fields=16|14] [address=TEXT database=TEXT connections=N reserved=N
  role_limit=N tls=TEXT]``, the latter for sessions on PostgreSQL.
- ``D``: data. Records (records.py) where a server's sessions, mounts or the reference were requested, else raw stdout.
- ``L``: raw lines of X2Go's own listing, after the records.
- ``E`` words, one of: ``status=ok [records=N] [others=M other_hosts=NAME,...] [left_out=N]
  [signature=TOKEN source=records|command] [exit=N stderr=TEXT]``; ``status=same signature=TOKEN``, where the request's
  signature still holds; ``status=error error=CODE text=TEXT [exit=N stderr=TEXT]``, which makes the data before it
  void.

Then ``Z`` words ``uid=N host=NAME``: the answer is complete. ``X`` words ``error=CODE text=TEXT`` instead of an answer:
the request was refused. ``N`` words ``changed=sessions`` between answers, at most one per request with watch=1: the
sessions changed since they were listed.

Payloads are taken by their length and columns by theirs; nothing in them is ever read as structure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from x2gofleet.errors import NotProven
from x2gofleet.text import show
from x2gofleet_workers.probe.decoding import Begin, SectionDecoder, error_code
from x2gofleet_workers.probe.frames import (
    FROM_PROBE,
    HEADER_BYTES,
    NO_REQUEST,
    Frame,
    FrameDecoder,
    encode_frame,
    next_number,
)
from x2gofleet_workers.probe.hello import MAX_UID, PROBE_NAME, PROTOCOL_VERSION, Hello, HelloDecoder, parse_hello
from x2gofleet_workers.probe.records import MountRecord, Record
from x2gofleet_workers.probe.requests import Listing, Request, Scope, SectionKind, SectionRequest
from x2gofleet_workers.probe.sections import ErrorCode, Section, SectionError, SectionStatus
from x2gofleet_workers.probe.words import decode_words, name_of, number_of, text_of

__all__ = [
    "PROBE_NAME",
    "PROTOCOL_VERSION",
    "AnswerDecoder",
    "ErrorCode",
    "Hello",
    "HelloDecoder",
    "Listing",
    "MountRecord",
    "Record",
    "Request",
    "Scope",
    "Section",
    "SectionError",
    "SectionKind",
    "SectionRequest",
    "SectionStatus",
    "parse_hello",
]

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ANSWER_FRAMES = 64 * 1024
_DONE_WORDS = ("uid", "host")
_REFUSAL_WORDS = ("error", "text")
_NOTICE_WORDS = ("changed",)


class AnswerDecoder:
    """Decodes the answer to one request as it arrives, and the notices before and after it.

    ``done`` is set when the answer is complete, with ``uid`` and ``host``. ``notices`` are the kinds that changed, by
    the notices that came before or after the answer: feed what comes while no request is open, too. ``noticed`` is
    set where one came after the answer.

    :param request: the request; send ``request_frame()``.
    :param after: the decoder of the request before it on the same channel, which is done. It gives its unfinished
        input away and must not be fed any more.
    """

    def __init__(self, request: Request, *, after: AnswerDecoder | None = None) -> None:
        if after is not None and not after.done:
            raise ValueError("a request follows when the answer before it is complete")
        self.request = request
        self.number: int = 1 if after is None else next_number(after.number)
        self.done: bool = False
        self.uid = -1
        self.host = ""
        self.notices: list[SectionKind] = []
        self.noticed = False
        self._frames: FrameDecoder = FrameDecoder(FROM_PROBE) if after is None else after._frames
        self._may_notice: bool = after is not None and after._may_notice
        self._waiting = deque(request.sections)
        self._section: SectionDecoder | None = None
        self._begun = False
        self._received_bytes = self._received_frames = 0
        self._fault: NotProven | None = None

    def request_frame(self) -> bytes:
        """Return the request as it is sent."""
        return encode_frame("Q", self.number, self.request.encode())

    @property
    def moved_bytes(self) -> int:
        """How many bytes were moved on this channel so far, as FrameDecoder counts them."""
        return self._frames.moved_bytes

    @property
    def kept_bytes(self) -> int:
        """How many bytes of an incomplete frame are kept."""
        return self._frames.kept_bytes

    def feed(self, data: bytes) -> Iterator[Section]:
        """Take in bytes and yield the sections that they complete.

        Raises NotProven for a stream that is not an answer to the request; the decoder then stays unusable.
        """
        self._frames.feed(data)
        return self._sections()

    def _sections(self) -> Iterator[Section]:
        if self._fault is not None:
            raise self._fault
        try:
            while (frame := self._frames.next_frame()) is not None:
                section = self._take(frame)
                if section is not None:
                    yield section
        except NotProven as exc:
            self._fault = exc
            self._section = None
            raise

    def _take(self, frame: Frame) -> Section | None:
        if frame.type == "N":
            self._notice(frame)
            return None
        self._received_bytes += HEADER_BYTES + len(frame.payload)
        self._received_frames += 1
        if self._received_bytes > MAX_ANSWER_BYTES or self._received_frames > MAX_ANSWER_FRAMES:
            most = f"{MAX_ANSWER_BYTES} bytes in {MAX_ANSWER_FRAMES} frames"
            raise NotProven(f"expected an answer of at most {most}, got more")
        if self.done:
            raise NotProven(f"expected nothing but notices after the answer, got a frame of type {frame.type}")
        if frame.type == "X":
            raise self._refusal(frame)
        if frame.request != self.number:
            came = f"a frame of type {frame.type} of request {frame.request}"
            raise NotProven(f"expected the answer to request {self.number}, got {came}")
        self._begun = True
        if frame.type in "BZ":
            self._between(frame)
            return None
        return self._within(frame)

    def _between(self, frame: Frame) -> None:
        """Take in the beginning of a section or the end of the answer."""
        if self._section is not None:
            raise NotProven(f"expected the rest of {self._expected_kind()}, got a frame of type {frame.type}")
        if frame.type == "Z":
            self._finish(frame)
            return
        begin = Begin.decode(frame.payload)
        if not self._waiting or begin.kind is not self._waiting[0].kind:
            raise NotProven(f"expected {self._expected_kind()}, got the section {begin.kind}")
        self._section = SectionDecoder(self._waiting[0], self.request.scope, begin)

    def _within(self, frame: Frame) -> Section | None:
        """Take in data, lines or the end of a section."""
        if self._section is None:
            raise NotProven(f"expected {self._expected_kind()}, got a frame of type {frame.type}")
        match frame.type:
            case "D":
                self._section.data(frame.payload)
            case "L":
                self._section.lines(frame.payload)
            case _:
                section = self._section.end(frame.payload)
                self._section = None
                self._waiting.popleft()
                return section
        return None

    def _expected_kind(self) -> str:
        return f"the section {self._waiting[0].kind}" if self._waiting else "the end of the answer"

    def _finish(self, frame: Frame) -> None:
        if self._waiting:
            raise NotProven(f"expected {self._expected_kind()}, got the end of the answer")
        where = "the end of the answer"
        words = decode_words(frame.payload, where, _DONE_WORDS)
        self.uid, self.host = number_of(words, "uid", where, most=MAX_UID), name_of(words, "host", where)
        self.done, self._may_notice = True, self.request.watch

    def _refusal(self, frame: Frame) -> NotProven:
        if frame.request not in (self.number, NO_REQUEST) or self._begun:
            return NotProven(f"expected {self._expected_kind()}, got a refusal of request {frame.request}")
        words = decode_words(frame.payload, "a refusal", _REFUSAL_WORDS)
        code, text = error_code(words, "a refusal"), show(text_of(words, "text"))
        return NotProven(f"expected an answer, got a refusal of the request ({code}): {text or 'nothing was said'}")

    def _notice(self, frame: Frame) -> None:
        if frame.request != NO_REQUEST:
            raise NotProven(f"expected a notice to belong to request {NO_REQUEST}, got one of request {frame.request}")
        if self._begun and not self.done:
            raise NotProven(f"expected {self._expected_kind()}, got a notice within the answer")
        if not self._may_notice:
            raise NotProven("expected at most one notice for each request that asks for one, got another")
        changed = decode_words(frame.payload, "a notice", _NOTICE_WORDS)
        if text_of(changed, "changed") != SectionKind.SESSIONS:
            raise NotProven("expected a notice that sessions changed, got another")
        self._may_notice = False
        self.notices.append(SectionKind.SESSIONS)
        self.noticed = self.done
