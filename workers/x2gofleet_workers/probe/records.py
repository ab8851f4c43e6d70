"""records: the rows of a session database as the probe sends them: columns of bytes, each with its length."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from operator import attrgetter

from x2gofleet.errors import NotProven

COLUMNS = 20
MOUNT_COLUMNS = 4
MAX_COLUMN_BYTES = 1024
MAX_RECORDS = 200_000
_LENGTH = struct.Struct(">I")
_CUT = re.compile(rb"[0-9]{1,2}(?:,[0-9]{1,2})*")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the sessions table, as raw bytes: any user may have written any of them.

    ``cut``: comma-separated numbers of the columns that are too long and were cut, usually empty.
    ``created`` and ``touched``: naive local time of the server. ``age``: in seconds. ``creator``: the database user
    (PostgreSQL). ``foreign_agent``: the owner of process ``agent_pid`` where it is not the session's user. ``state``:
    the word of the agent's state file, ``!`` and a reason where the file is not used.
    """

    cut: bytes
    session: bytes
    username: bytes
    hostname: bytes
    status: bytes
    display: bytes
    created: bytes
    touched: bytes
    cookie: bytes = field(repr=False)
    client: bytes
    agent_pid: bytes
    graphics_port: bytes
    sound_port: bytes
    sshfs_port: bytes
    tekictrl_port: bytes
    tekidata_port: bytes
    age: bytes
    creator: bytes
    foreign_agent: bytes
    state: bytes

    def text_columns(self) -> tuple[bytes, ...]:
        """Return the columns of text that are printed in a row."""
        return (self.session, self.username, self.hostname, self.cookie, self.client)

    def numbers(self) -> tuple[bytes, ...]:
        """Return the columns of numbers that may be empty or negative: the agent's process id and the ports."""
        return (
            self.agent_pid,
            self.graphics_port,
            self.sound_port,
            self.sshfs_port,
            self.tekictrl_port,
            self.tekidata_port,
        )

    def columns(self) -> tuple[bytes, ...]:
        """Return all columns in the protocol's order."""
        columns: tuple[bytes, ...] = _ALL_COLUMNS(self)
        return columns


_ALL_COLUMNS = attrgetter(*(each.name for each in fields(Record)))


@dataclass(frozen=True, slots=True)
class MountRecord:
    """One record of the mounts table, as raw bytes; ``cut`` as in Record."""

    cut: bytes
    session: bytes
    client: bytes
    path: bytes

    def columns(self) -> tuple[bytes, ...]:
        """Return all columns in the protocol's order."""
        return (self.cut, self.session, self.client, self.path)


def encode_record(record: Record | MountRecord) -> bytes:
    """Return a record as it is sent; columns that are too long are cut, and named in ``cut``."""
    cut, *columns = record.columns()
    numbers = [number for number, column in enumerate(columns, 1) if len(column) > MAX_COLUMN_BYTES]
    if numbers:
        cut = ",".join(map(str, numbers)).encode()
    return b"".join(_LENGTH.pack(len(column)) + column for column in (cut, *(c[:MAX_COLUMN_BYTES] for c in columns)))


def encode_records(records: Iterable[Record | MountRecord]) -> bytes:
    """Return records one after the other, as the payload of one frame."""
    return b"".join(map(encode_record, records))


def decode_records(payload: bytes) -> Iterator[Record]:
    """Yield the session records of one frame; raises NotProven for a payload that is not whole records."""
    for columns in _columns(payload, COLUMNS):
        yield Record(*columns)


def decode_mounts(payload: bytes) -> Iterator[MountRecord]:
    """Yield the mount records of one frame; raises NotProven for a payload that is not whole records."""
    for columns in _columns(payload, MOUNT_COLUMNS):
        yield MountRecord(*columns)


def _columns(payload: bytes, count: int) -> Iterator[list[bytes]]:
    at, end, length_at = 0, len(payload), _LENGTH.unpack_from
    while at < end:
        columns: list[bytes] = []
        for number in range(count):
            start = at + _LENGTH.size
            if start > end:
                raise NotProven(f"expected a record of {count} columns, got {number} and the end of the frame")
            length: int = length_at(payload, at)[0]
            if length > MAX_COLUMN_BYTES:
                raise NotProven(f"expected at most {MAX_COLUMN_BYTES} bytes in column {number}, got {length}")
            at = start + length
            if at > end:
                raise NotProven(f"expected {length} bytes in column {number} of a record, got {end - start}")
            columns.append(payload[start:at])
        if columns[0] and not _CUT.fullmatch(columns[0]):
            raise NotProven("expected numbers of columns in the first column of a record, got something else")
        yield columns
