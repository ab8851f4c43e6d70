"""replies: RESP3 replies in the shapes of RESP2, one row per type and per command whose reply has another shape."""

from __future__ import annotations

import math
from typing import Any

import pytest
import redis

from x2gofleet.connection.replies import in_resp2

ERROR = redis.exceptions.ResponseError("WRONGTYPE")


@pytest.mark.parametrize(
    ("command", "resp3", "resp2"),
    [
        ("GET", b"\xff", b"\xff"),
        ("GET", None, None),
        ("GET", ERROR, ERROR),
        ("INCR", 7, 7),
        ("INCR", -(2**63), -(2**63)),
        ("EVAL", 2**63, b"9223372036854775808"),
        ("EVAL", True, 1),
        ("EVAL", [False, None], [0, None]),
        ("EVAL", [1, [b"a", {b"k": {b"n": 0.25}}]], [1, [b"a", [b"k", [b"n", b"0.25"]]]]),
        ("SMEMBERS", {b"a"}, [b"a"]),
        ("HGETALL", {b"a": b"1", b"b": b"2"}, [b"a", b"1", b"b", b"2"]),
        ("hgetall", {}, []),
        (b"HGETALL", {b"a": b"1"}, [b"a", b"1"]),
        ("HGETALL", [b"a", b"1"], [b"a", b"1"]),
        ("ZSCORE", 1.5, b"1.5"),
        ("ZSCORE", 3.0, b"3"),
        ("ZSCORE", -0.5, b"-0.5"),
        ("ZSCORE", 1_764_000_000_123.0, b"1764000000123"),
        ("ZSCORE", math.inf, b"inf"),
        ("ZSCORE", -math.inf, b"-inf"),
        ("ZRANGE", [[b"a", 1.0], [b"b", 2.5]], [b"a", b"1", b"b", b"2.5"]),
        ("ZRANGE", [b"a", b"1"], [b"a", b"1"]),
        ("ZRANGE", [], []),
        ("ZPOPMIN", [b"a", 1.0], [b"a", b"1"]),
        ("ZPOPMIN", [[b"a", 1.0]], [b"a", b"1"]),
        ("HRANDFIELD", [[b"f", b"v"]], [b"f", b"v"]),
        ("ZMSCORE", [1.5, None], [b"1.5", None]),
        ("XREAD", {b"s": [[b"1-1", [b"f", b"v"]]]}, [[b"s", [[b"1-1", [b"f", b"v"]]]]]),
        ("XREAD", [[b"s", [[b"1-1", [b"f", b"v"]]]]], [[b"s", [[b"1-1", [b"f", b"v"]]]]]),
        ("XREAD", None, None),
        ("XRANGE", [[b"1-1", [b"f", b"v"]]], [[b"1-1", [b"f", b"v"]]]),
        ("CONFIG", {b"maxmemory": b"0"}, [b"maxmemory", b"0"]),
    ],
)
def test_a_reply(command: str | bytes, resp3: Any, resp2: Any) -> None:
    (found,) = in_resp2([(command, "key")], [resp3])
    assert found == resp2
    assert type(found) is type(resp2)


def test_doubles_survive() -> None:
    for value in (0.1, 1 / 3, 1e20, 2.0**53 + 2, 5e-324, 1.7976931348623157e308):
        (found,) = in_resp2([("ZSCORE", "k", "m")], [value])
        assert float(found) == value


def test_a_transaction_is_converted_command_by_command() -> None:
    commands = [("MULTI",), ("HGETALL", "h"), ("XREAD", "STREAMS", "s", "0"), ("EXEC",), ("HGETALL", "h")]
    replies = [b"OK", b"QUEUED", b"QUEUED", [{b"a": b"1"}, {b"s": []}], {b"a": b"1"}]
    assert in_resp2(commands, replies) == [
        b"OK",
        b"QUEUED",
        b"QUEUED",
        [[b"a", b"1"], [[b"s", []]]],
        [b"a", b"1"],
    ]


@pytest.mark.parametrize("reply", [None, ERROR])
def test_a_transaction_that_was_not_done(reply: Any) -> None:
    commands = [("MULTI",), ("HGETALL", "h"), ("EXEC",), ("HGETALL", "h")]
    assert in_resp2(commands, [b"OK", b"QUEUED", reply, {b"a": b"1"}])[2:] == [reply, [b"a", b"1"]]
    assert in_resp2([("MULTI",), ("DISCARD",), ("HGETALL", "h")], [b"OK", b"OK", {}]) == [b"OK", b"OK", []]
