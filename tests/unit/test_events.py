"""What two listings tell of each other, and the cursor over all servers' streams."""

from __future__ import annotations

import base64

import pytest

from x2gofleet.events import EventKind, compare, decode_cursor, decode_entry, encode_cursor

COOKIE = "0123456789abcdef0123456789abcdef"


def row(
    user: str, display: int, status: str = "R", *, pid: str = "1368", age: int = 5, client: str = "127.0.0.1"
) -> bytes:
    ports = f"{display}01|{display}02" if pid else "|"
    return (
        f"{pid}|{user}-{display}-1763800000_stDMATE_dp24|{display}|vm|{status}|2026-11-22T20:24:30|"
        f"{COOKIE if pid else ''}|"
        f"{client}|{ports}|2026-11-22T20:24:30|{user}|{age}|{display}03|-1|-1\n"
    ).encode()


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (b"", row("alice", 50), [("started", "alice", "R")]),
        (row("alice", 50), row("alice", 50, "S"), [("suspended", "alice", "S")]),
        (row("alice", 50, "S"), row("alice", 50), [("resumed", "alice", "R")]),
        (row("alice", 50), row("alice", 50, "F"), [("ended", "alice", "F")]),
        (row("alice", 50), b"", [("ended", "alice", "F")]),
        (row("alice", 50, "F"), b"", []),
        (b"", row("alice", 50, "F"), []),
        (row("alice", 50, pid=""), row("alice", 50), [("changed", "alice", "R")]),
        (row("alice", 50), row("alice", 50, "T"), [("changed", "alice", "T")]),
        (row("alice", 50), row("alice", 50, client="10.0.0.9"), [("changed", "alice", "R")]),
        (row("alice", 50, age=1), row("alice", 50, age=9), []),
        (row("alice", 50), b"no row at all\n" + row("alice", 50), []),
        (
            row("alice", 50) + row("bob", 51),
            row("carla", 52) + row("bob", 51, "S"),
            [("started", "carla", "R"), ("suspended", "bob", "S"), ("ended", "alice", "F")],
        ),
    ],
)
def test_what_happened(before: bytes, after: bytes, expected: list[tuple[str, str, str]]) -> None:
    changes = compare(before, after)
    assert [(change.kind.value, change.username, change.status) for change in changes] == expected
    assert COOKIE not in repr(changes)


def test_a_cursor_comes_back_as_it_went() -> None:
    positions = {"ts01": "1763800000000-0", "alice@ts02": "1763800000001-7"}
    assert decode_cursor(encode_cursor(positions)) == positions
    assert decode_cursor(None) == {}


@pytest.mark.parametrize(
    "cursor",
    [
        *("x", "1763800000000-0", "eyJ0czAxIjogIisifQ==", "W10=", "é", "\udcff"),
        # What Redis would refuse as an id of a stream.
        encode_cursor({"ts01": "\N{SUPERSCRIPT TWO}-0"}),
        encode_cursor({"ts01": "99999999999999999999999-0"}),
        encode_cursor({"ts01": "0-18446744073709551616"}),
        base64.urlsafe_b64encode(b"[" * 100_000).decode(),
    ],
)
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(ValueError, match="cursor"):
        decode_cursor(cursor)


def test_an_entry_of_the_stream() -> None:
    entry = [b"1763800000000-0", [b"kind", b"server_down", b"at", b"1763799999999", b"text", b"Unreachable: gone"]]
    event = decode_entry("ts01", entry)
    assert (event.kind, event.server, event.at_ms, event.text) == (
        EventKind.SERVER_DOWN,
        "ts01",
        1763799999999,
        "Unreachable: gone",
    )
