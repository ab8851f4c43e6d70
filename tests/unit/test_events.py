"""What two listings tell of each other, and the cursor over all servers' streams."""

from __future__ import annotations

import base64
from collections import Counter

import pytest

from x2gofleet.events import (
    Change,
    EventKind,
    compare,
    decode_cursor,
    decode_entry,
    encode_cursor,
    equal_shares,
)

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


def changes_of(**counts: int) -> list[Change]:
    """Return so many changes of each user, in turn."""
    rounds = range(max(counts.values(), default=0))
    return [
        Change(EventKind.STARTED, f"{user}{number}", user, "R")
        for number in rounds
        for user, count in counts.items()
        if number < count
    ]


@pytest.mark.parametrize(
    ("counts", "most", "kept", "left_out"),
    [
        ({}, 10, {}, {}),
        ({"a": 10}, 10, {"a": 10}, {}),
        ({"a": 11}, 10, {"a": 10}, {"a": 1}),
        ({"a": 100, "b": 3, "c": 1}, 10, {"a": 6, "b": 3, "c": 1}, {"a": 94}),
        ({"a": 100, "b": 100, "c": 2}, 10, {"a": 4, "b": 4, "c": 2}, {"a": 96, "b": 96}),
        ({"a": 9, "b": 9, "c": 9}, 10, {"a": 3, "b": 3, "c": 3}, {"a": 6, "b": 6, "c": 6}),
        ({"a": 5, "b": 1, "c": 1, "d": 1}, 2, {"a": 1, "d": 1}, {"d": 2, "a": 4}),
    ],
)
def test_each_user_has_an_equal_share(
    counts: dict[str, int], most: int, kept: dict[str, int], left_out: dict[str, int]
) -> None:
    changes = changes_of(**counts)
    found = equal_shares(changes, most)
    stayed = [change for change, _ in found]
    assert Counter(change.username for change in stayed) == kept
    assert stayed == [change for change in changes if change in stayed], "in order"
    for user, count in kept.items():
        of_user = [change for change in changes if change.username == user]
        assert [change for change in stayed if change.username == user] == of_user[-count:], "the newest"
    assert {change.username: number for change, number in found if number} == left_out
    assert sum(left_out.values()) == len(changes) - len(stayed)


def entry(stream_id: str = "5-0", **more: str) -> list[object]:
    fields = {"kind": "resumed", "at": "4", "session": "s", "username": "alice", "status": "R", **more}
    return [stream_id.encode(), [part.encode() for pair in fields.items() for part in pair]]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, (0, "")),
        ({"left_out": "7", "left_out_to": "3-1"}, (7, "3-1")),
        ({"left_out": "7"}, (7, "5-0")),
        *(({"left_out": text, "left_out_to": "3-1"}, (0, "")) for text in ("0", "-1", "x", "9" * 20, "1e9", "\u0663")),
        ({"left_out": "7", "left_out_to": "x"}, (0, "")),
    ],
)
def test_what_an_entry_says_of_events_that_are_left_out(more: dict[str, str], expected: tuple[int, str]) -> None:
    event = decode_entry("ts01", entry(**more))
    assert (event.left_out, event.left_out_to) == expected


@pytest.mark.parametrize(
    ("position", "missed"),
    [(None, 7), ("2-9", 7), ("3-0", 7), ("3-1", 0), ("3-10", 0), ("10-0", 0)],
)
def test_who_has_read_to_what_was_left_out_has_missed_nothing(position: str | None, missed: int) -> None:
    event = decode_entry("ts01", entry(left_out="7", left_out_to="3-1"))
    cursor = encode_cursor({} if position is None else {"ts01": position})
    assert event.missed_since(cursor) == missed
    assert event.missed_since(encode_cursor({"ts02": "10-0"})) == 7
    assert decode_entry("ts01", entry()).missed_since(cursor) == 0
