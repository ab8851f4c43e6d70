"""encoding: an answer as the probe sends it, from typed sections: for the simulator and for tests of the decoder."""

from __future__ import annotations

from collections.abc import Iterable

from x2gofleet_workers.probe.decoding import Begin
from x2gofleet_workers.probe.frames import NO_REQUEST, encode_frame
from x2gofleet_workers.probe.records import MountRecord, Record, encode_record
from x2gofleet_workers.probe.requests import NO_SIGNATURE, Listing, Scope, SectionKind
from x2gofleet_workers.probe.sections import MORE_FIELDS, ErrorCode, Section, SectionStatus
from x2gofleet_workers.probe.words import encode_words

FRAME_BYTES = 64 * 1024

_Pairs = list[tuple[str, str | int | bytes]]


def encode_section(section: Section, scope: Scope, number: int) -> bytes:
    """Return all frames of a section of the answer to request ``number``."""
    parts = [encode_begin(Begin(section.kind, section.backend, section.host, section.fields), number)]
    if section.status is SectionStatus.OK:
        parts.append(encode_records((*section.records, *section.mounts), number))
        parts.append(encode_data("D", section.stdout, number))
        parts.append(encode_data("L", section.lines, number))
    parts.append(encode_frame("E", number, encode_words(_end(section, scope))))
    return b"".join(parts)


def encode_begin(begin: Begin, number: int) -> bytes:
    """Return the frame that begins a section."""
    pairs: _Pairs = [("kind", begin.kind)]
    if begin.backend or begin.host:
        pairs += [("backend", begin.backend), ("host", begin.host)]
    if begin.fields != MORE_FIELDS:
        pairs.append(("fields", begin.fields))
    facts = begin.database
    texts = (("database", facts.identity), ("address", facts.address), ("tls", facts.tls))
    pairs += [pair for pair in texts if pair[1]]
    if facts.connections is not None:
        pairs += [("connections", facts.connections), ("reserved", facts.reserved)]
    if facts.role_limit is not None:
        pairs.append(("role_limit", facts.role_limit))
    return encode_frame("B", number, encode_words(pairs))


def encode_records(records: Iterable[Record | MountRecord], number: int) -> bytes:
    """Return frames of data that hold ``records``; no record spans two frames."""
    frames: list[bytes] = []
    waiting: list[bytes] = []
    size = 0
    for record in records:
        encoded = encode_record(record)
        if size + len(encoded) > FRAME_BYTES:
            frames.append(encode_frame("D", number, b"".join(waiting)))
            waiting, size = [], 0
        waiting.append(encoded)
        size += len(encoded)
    if waiting:
        frames.append(encode_frame("D", number, b"".join(waiting)))
    return b"".join(frames)


def encode_data(kind: str, data: bytes, number: int) -> bytes:
    """Return ``data`` as frames of type ``kind``, D or L; none where it is empty."""
    pieces = (data[at : at + FRAME_BYTES] for at in range(0, len(data), FRAME_BYTES))
    return b"".join(encode_frame(kind, number, piece) for piece in pieces)


def encode_done(uid: int, host: str, number: int) -> bytes:
    """Return the frame that ends an answer."""
    return encode_frame("Z", number, encode_words((("uid", uid), ("host", host))))


def encode_refusal(code: ErrorCode, text: str, number: int = NO_REQUEST) -> bytes:
    """Return the frame that refuses a request."""
    return encode_frame("X", number, encode_words((("error", code), ("text", text))))


def encode_notice() -> bytes:
    """Return the frame that says that the sessions changed."""
    return encode_frame("N", NO_REQUEST, encode_words((("changed", SectionKind.SESSIONS),)))


def _end(section: Section, scope: Scope) -> _Pairs:
    pairs: _Pairs = [("status", section.status)]
    if section.error is not None:
        pairs += [("error", section.error.code), ("text", section.error.text)]
        return pairs + _command(section)
    if section.same:
        return [*pairs, ("signature", section.signature)]
    is_listing = section.kind is SectionKind.SESSIONS and scope is Scope.SERVER
    has_mounts = section.kind is SectionKind.MOUNTS and scope is Scope.SERVER
    if is_listing or has_mounts or section.kind is SectionKind.REFERENCE:
        pairs.append(("records", len(section.records) + len(section.mounts)))
    if section.left_out:
        pairs.append(("left_out", section.left_out))
    if section.others or section.other_hosts:
        pairs += [("others", section.others), ("other_hosts", ",".join(section.other_hosts))]
    if is_listing:
        pairs += [("signature", section.signature), ("source", section.source)]
    elif section.signature != NO_SIGNATURE or section.source is not Listing.RECORDS:
        raise ValueError(f"a section {section.kind} in scope {scope} has no signature and no source")
    return pairs + _command(section)


def _command(section: Section) -> _Pairs:
    pairs: _Pairs = []
    if section.exit_status is not None:
        pairs.append(("exit", section.exit_status))
    if section.stderr:
        pairs.append(("stderr", section.stderr))
    return pairs
