"""requests: what a worker asks of a probe: a scope, a time limit, and sections in an order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from x2gofleet.errors import NotProven
from x2gofleet.kinds import Kind
from x2gofleet.usernames import check_username
from x2gofleet_workers.probe.frames import MAX_WORDS_BYTES
from x2gofleet_workers.probe.words import decode_words, encode_words, number_of, text_of

NO_SIGNATURE = "-"
MAX_SECONDS = 600
MAX_SIGNATURE_BYTES = 64
_SIGNATURE = re.compile(r"[0-9a-z.-]{1,64}")
_HEAD_WORDS = ("scope", "seconds", "watch", "connect")
_EACH_POLL = "each_poll"


class Scope(StrEnum):
    """Whose sessions are meant: everybody's on the server, or the probe's own user's."""

    SERVER = "server"
    USER = "user"


class SectionKind(StrEnum):
    """What a section of an answer is about: a kind of snapshot, or X2Go's own query to compare records with."""

    SESSIONS = "sessions"
    DESKTOPS = "desktops"
    MOUNTS = "mounts"
    LOAD = "load"
    REFERENCE = "reference"

    @property
    def kind(self) -> Kind | None:
        """The kind of snapshot that the section gives; None for the reference."""
        return None if self is SectionKind.REFERENCE else Kind(self.value)


class Listing(StrEnum):
    """What the rows of a server's sessions are made from: the database's records, or x2golistsessions_root."""

    RECORDS = "records"
    COMMAND = "command"


def is_signature(text: str) -> bool:
    """Whether ``text`` can be the signature of a listing, or ``-`` for none."""
    return _SIGNATURE.fullmatch(text) is not None


_SECTION_WORDS: Mapping[SectionKind, tuple[str, ...]] = MappingProxyType(
    {
        SectionKind.SESSIONS: ("section", "signature", "listing"),
        SectionKind.DESKTOPS: ("section", "user"),
        SectionKind.MOUNTS: ("section",),
        SectionKind.LOAD: ("section",),
        SectionKind.REFERENCE: ("section",),
    }
)


@dataclass(frozen=True, slots=True)
class SectionRequest:
    """One section that is asked for.

    ``signature`` (sessions): that of the listing that the worker has; the answer may then be that it is the same.
    ``listing`` (sessions in server scope): what the rows are made from. ``user`` (desktops in server scope): whose
    desktops, "" for those of the probe's own user. Raises ValueError for what cannot be asked.
    """

    kind: SectionKind
    signature: str = NO_SIGNATURE
    listing: Listing = Listing.RECORDS
    user: str = ""

    def __post_init__(self) -> None:
        if not is_signature(self.signature):
            raise ValueError(f"expected a signature of 1 to {MAX_SIGNATURE_BYTES} of 0-9 a-z . -")
        if self.user:
            check_username(self.user)
        if self.kind is not SectionKind.SESSIONS and (self.signature != NO_SIGNATURE or self.listing != "records"):
            raise ValueError(f"a section {self.kind} has no signature and no listing")
        if self.kind is not SectionKind.DESKTOPS and self.user:
            raise ValueError(f"a section {self.kind} has no user")

    def encode(self) -> bytes:
        """Return the section as a line of words."""
        pairs: list[tuple[str, str]] = [("section", self.kind)]
        if self.kind is SectionKind.SESSIONS:
            pairs += [("signature", self.signature), ("listing", self.listing)]
        if self.user:
            pairs.append(("user", self.user))
        return encode_words(pairs)

    @classmethod
    def decode(cls, line: bytes) -> SectionRequest:
        """Return the section of a line of words; raises NotProven."""
        words = decode_words(line, "a section", ("section", "signature", "listing", "user"))
        try:
            kind = SectionKind(text_of(words, "section"))
        except ValueError:
            raise NotProven(f"unknown section; known: {', '.join(SectionKind)}") from None
        decode_words(line, f"section {kind}", _SECTION_WORDS[kind])
        try:
            return cls(
                kind,
                text_of(words, "signature") or NO_SIGNATURE,
                Listing(text_of(words, "listing") or Listing.RECORDS),
                words.get("user", b"").decode(),
            )
        except ValueError as exc:
            raise NotProven(f"section {kind}: {exc}") from None


@dataclass(frozen=True, slots=True)
class Request:
    """One request: the sections come in this order.

    ``seconds``: after so many, sections that are not complete are given up with the error ``timeout``. ``watch``:
    whether a notice is wanted when the sessions change after this answer. ``each_poll``: whether the probe connects to
    PostgreSQL for each poll, instead of keeping a connection. Raises ValueError for what cannot be asked.
    """

    scope: Scope
    sections: tuple[SectionRequest, ...]
    seconds: int
    watch: bool = False
    each_poll: bool = False
    _encoded: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.seconds <= MAX_SECONDS:
            raise ValueError(f"expected seconds from 1 to {MAX_SECONDS}, got {self.seconds}")
        if not self.sections:
            raise ValueError("expected at least one section")
        others = any(section.user or section.kind is SectionKind.REFERENCE for section in self.sections)
        if others and self.scope is Scope.USER:
            raise ValueError("in user scope there are no desktops of another user and no reference")
        object.__setattr__(self, "_encoded", self._encode())
        if len(self._encoded) > MAX_WORDS_BYTES:
            raise ValueError(f"expected a request of at most {MAX_WORDS_BYTES} bytes")

    def encode(self) -> bytes:
        """Return the request as the payload of a frame of type Q."""
        return self._encoded

    def _encode(self) -> bytes:
        head: list[tuple[str, str | int]] = [("scope", self.scope), ("seconds", self.seconds)]
        if self.watch:
            head.append(("watch", 1))
        if self.each_poll:
            head.append(("connect", _EACH_POLL))
        return b"\n".join((encode_words(head), *(section.encode() for section in self.sections)))

    @classmethod
    def decode(cls, payload: bytes) -> Request:
        """Return the request of a payload; raises NotProven that says what is wrong with it."""
        head, *lines = payload.split(b"\n")
        words = decode_words(head, "a request", _HEAD_WORDS)
        watch = "watch" in words and number_of(words, "watch", "a request", most=1) == 1
        seconds = number_of(words, "seconds", "a request", most=MAX_SECONDS)
        sections = tuple(SectionRequest.decode(line) for line in lines)
        try:
            return cls(
                Scope(text_of(words, "scope")), sections, seconds, watch, text_of(words, "connect") == _EACH_POLL
            )
        except ValueError as exc:
            raise NotProven(f"a request: {exc}") from None
