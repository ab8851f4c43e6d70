"""Odd content for Redis and odd replies of it, and every lookup that they must not break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis

Call = Callable[[Any], Any]

USER = "alice"
ASKING_CALLS: dict[str, Call] = {
    "is_cached": lambda cache: cache.is_cached("mate"),
    "is_cached sessions": lambda cache: cache.is_cached("mate", cache_type="sessions", username=USER),
    "list_sessions": lambda cache: cache.list_sessions(profile_name="mate"),
    "list_sessions of a user": lambda cache: cache.list_sessions(profile_name="mate", username=USER),
    "list_sessions of a UUID": lambda cache: cache.list_sessions("6c3f"),
    "find_sessions": lambda cache: cache.find_sessions(username=USER),
    "list_desktops": lambda cache: cache.list_desktops(profile_name="mate", username=USER),
    "list_mounts": lambda cache: cache.list_mounts(profile_name="mate", username=USER),
    "load": lambda cache: cache.load("mate"),
    "snapshots of a profile": lambda cache: cache.snapshots(profile_name="mate", username=USER),
    "snapshots of a server": lambda cache: cache.snapshots(server="ts01"),
    "view": lambda cache: cache.view("sessions"),
    "view of load": lambda cache: cache.view("load", profile_name="mate"),
    "servers": lambda cache: cache.servers(),
    "events": lambda cache: cache.events(),
    "profiles": lambda cache: cache.profiles(),
    "reservations": lambda cache: cache.reservations("mate"),
}
"""Lookups that only read."""

OTHER_CALLS: dict[str, Call] = {
    "update": lambda cache: cache.update("mate", timeout=0.001),
    "update_all": lambda cache: cache.update_all(timeout=0.001),
    "delete": lambda cache: cache.delete("mate", timeout=0.001),
    "check_cache": lambda cache: cache.check_cache(timeout=0.001),
    "register_session": lambda cache: cache.register_session("6c40", "mate", USER),
    "forget_session": lambda cache: cache.forget_session("6c40"),
    "place": lambda cache: cache.place("mate", "bob"),
    "reserve": lambda cache: cache.reserve("ts01", USER),
    "release": lambda cache: cache.release("ts01", USER),
}
"""Calls that write requests, registrations and reservations."""

CALLS = {**ASKING_CALLS, **OTHER_CALLS}

DEEP = b"[" * 100_000
SURROGATE = rb'"\ud800"'
DIGITS = b"9" * 400
ODD_BYTES: dict[str, bytes] = {
    "nothing": b"",
    "no UTF-8": b"\xff\xfe",
    "400 digits": DIGITS,
    "400 digits below 0": b"-" + DIGITS,
    "5000 digits": b"9" * 5000,
    "infinity": b"inf",
    "not a number": b"nan",
    "digits of another script": "١٢".encode(),
    "100 000 brackets": DEEP,
    "a lone surrogate in JSON": SURROGATE,
    "a lone surrogate in bytes": b"\xed\xa0\x80",
    "an escape": b"\x1b[2J\x00\r\n",
    "another JSON": b'{"servers": [], "targets": 1e999, "profiles": null}',
    "a number of 5000 digits in JSON": b'{"servers": %b}' % (b"9" * 5000),
}

_WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"


def _nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


ODD_REPLIES: dict[str, Any] = {
    "nil": None,
    "zero": 0,
    "a number": 3,
    "a number below 0": -1,
    "a number of 400 digits": 10**400,
    "nothing": b"",
    "bytes": b"x",
    "digits": DIGITS,
    "a text": "text",
    "a double": 1.5,
    "true": True,
    "an empty list": [],
    "a list of nil": [None],
    "a list of two nils": [None, None],
    "an odd number of bytes": [b"x"],
    "two texts": [b"x", b"y"],
    "two numbers of 400 digits": [DIGITS, DIGITS],
    "two numbers": [1, 2],
    "bytes and a list": [b"x", []],
    "lists of lists": [[b"x", [b"a"]], [b"y"]],
    "an entry that is not a pair": [[b"1-1"]],
    "an entry of nil": [[b"1-1", None]],
    "an entry of another id": [[b"yesterday", [b"kind", b"started", b"at", b"1"]]],
    "an entry of no UTF-8": [[b"\xff", [b"\xff", b"\xff"]]],
    "a map": {b"a": b"b"},
    "a set": {b"a"},
    "deep lists": _nested(5000),
    "an error about the type": redis.exceptions.ResponseError(_WRONG_TYPE),
}
