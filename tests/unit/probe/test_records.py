"""Records: columns of any bytes come back; what is cut is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x2gofleet_workers.probe.records import (
    MAX_COLUMN_BYTES,
    MountRecord,
    Record,
    decode_mounts,
    decode_records,
    encode_record,
)

from tests.support.probe_streams import session_record
from x2gofleet.errors import NotProven

COLUMN = st.binary(max_size=40)


@settings(deadline=None)
@given(st.lists(COLUMN, min_size=19, max_size=19), st.integers(1, 3))
def test_any_bytes_in_any_column_come_back(columns: list[bytes], count: int) -> None:
    record = Record(b"", *columns)
    assert list(decode_records(encode_record(record) * count)) == [record] * count
    mount = MountRecord(b"", *columns[:3])
    assert list(decode_mounts(encode_record(mount) * count)) == [mount] * count


def test_the_columns_are_those_of_the_protocol() -> None:
    assert [each.name for each in fields(Record)] == [
        "cut", "session", "username", "hostname", "status", "display", "created", "touched", "cookie", "client",
        "agent_pid", "graphics_port", "sound_port", "sshfs_port", "tekictrl_port", "tekidata_port", "age", "creator",
        "foreign_agent", "state",
    ]  # fmt: skip
    assert [each.name for each in fields(MountRecord)] == ["cut", "session", "client", "path"]


def test_a_record_as_it_is_sent() -> None:
    assert encode_record(MountRecord(b"", b"s", b"", b"/a\n")) == b"\0\0\0\0\0\0\0\1s\0\0\0\0\0\0\0\3/a\n"


def test_columns_that_are_too_long_are_cut_and_named() -> None:
    record = session_record(cookie=b"c" * (MAX_COLUMN_BYTES + 1), state=b"s" * 5000, client=b"x" * MAX_COLUMN_BYTES)
    (found,) = decode_records(encode_record(record))
    assert found == replace(record, cut=b"8,19", cookie=b"c" * MAX_COLUMN_BYTES, state=b"s" * MAX_COLUMN_BYTES)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_not_proven(payload: bytes) -> None:
    decoders: tuple[Callable[[bytes], Iterator[Record | MountRecord]], ...] = (decode_records, decode_mounts)
    for decode in decoders:
        try:
            found = list(decode(payload))
        except NotProven:
            continue
        assert b"".join(map(encode_record, found)) == payload


def test_a_truncated_record_is_never_one() -> None:
    payload = encode_record(session_record())
    assert list(decode_records(b"")) == []
    for length in range(1, len(payload)):
        with pytest.raises(NotProven, match=r"^expected"):
            list(decode_records(payload[:length]))


def test_a_records_repr_has_no_cookie() -> None:
    assert "secret" not in repr(session_record(cookie=b"secret"))
