"""redis_values: the replies to lookups, checked before they are decoded: their shapes, the types of keys, numbers.

Whoever may write to Redis can store anything, and what listens at the URL need not be a Redis. Whatever comes, callers
get a value or a FleetError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis

from x2gofleet.errors import CacheUnavailable, FleetError, SnapshotCorrupt, Unavailable

Command = tuple[Any, ...]

LARGEST = 2**53
"""The largest number that is read: sums and differences of such are floats too."""

_SURELY_SMALL_DIGITS = 15
_NUMBER = re.compile(rb"-?[0-9]{1,16}\Z")
_FOREIGN = "something other than an x2gofleet worker wrote it"


def number(value: object, what: str) -> int:
    """Return a stored number of at most 2**53, in decimal digits. Raises SnapshotCorrupt, which says ``what`` it is."""
    if type(value) is bytes and len(value) <= _SURELY_SMALL_DIGITS and value.isdigit():
        return int(value)
    if isinstance(value, bytes) and _NUMBER.match(value) and abs(found := int(value)) <= LARGEST:
        return found
    shown = repr(value) if not isinstance(value, bytes) or len(value) <= 40 else f"{value[:40]!r}..."
    raise SnapshotCorrupt(f"{what} can't be read ({shown} is not a number up to 2**53): {_FOREIGN}")


def usable(reply: Any) -> Any:
    """Return a reply that ``checked`` let pass. Raises the error that it put in the place of one."""
    if isinstance(reply, FleetError):
        raise reply
    return reply


def time_ms(reply: Any) -> int:
    """Decode a reply of TIME into ms."""
    seconds, micros = reply
    return int(seconds) * 1000 + int(micros) // 1000


def fields_of(reply: Any) -> dict[bytes, bytes]:
    """Decode a reply of HGETALL: names and values in turn. Raises SnapshotCorrupt for a key of another type."""
    items = iter(usable(reply))
    return dict(zip(items, items, strict=True))


def checked(commands: Sequence[Command], replies: Sequence[Any]) -> list[Any]:
    """Return the replies to commands, each in the shape that Redis gives it.

    The reply about a key that holds another type than x2gofleet stores there is a SnapshotCorrupt in its place, which
    ``usable`` raises: the other replies are as good as ever. Raises CacheUnavailable where a reply is none of Redis's,
    and SnapshotCorrupt for a write to such a key.
    """
    if len(replies) != len(commands):
        raise CacheUnavailable("asking Redis: the number of replies is not that of the commands", Unavailable.OTHER)
    found = []
    for command, reply in zip(commands, replies, strict=True):
        name = command[0]
        is_read, is_right = _SHAPES[name]
        if is_right(reply, command):
            found.append(reply)
        elif isinstance(reply, redis.exceptions.ResponseError):
            error = _wrong_type(command, reply)
            if not is_read:
                raise error from reply
            found.append(error)
        else:
            raise CacheUnavailable(
                f"asking Redis: what answers there is no Redis: its reply to {name} has another form", Unavailable.OTHER
            )
    return found


def _wrong_type(command: Command, reply: Exception) -> SnapshotCorrupt:
    key = next((str(part) for part in command[1:] if isinstance(part, str) and ":" in part), "")
    return SnapshotCorrupt(f"the key {key} can't be read ({reply}): {_FOREIGN}")


_BYTES = frozenset((bytes,))
_BYTES_OR_NONE = frozenset((bytes, type(None)))


def _is_bytes_list(reply: Any, command: Command) -> bool:
    # As quick as it gets: hashes of 5000 servers pass here.
    return type(reply) is list and _BYTES.issuperset(map(type, reply))


def _is_hash(reply: Any, command: Command) -> bool:
    return _is_bytes_list(reply, command) and not len(reply) % 2


def _is_values(reply: Any, command: Command) -> bool:
    return type(reply) is list and len(reply) == len(command) - 2 and _BYTES_OR_NONE.issuperset(map(type, reply))


def _is_value(reply: Any, command: Command) -> bool:
    return reply is None or isinstance(reply, bytes)


def _is_number(reply: Any, command: Command) -> bool:
    return type(reply) is int and abs(reply) < 2**63


def _is_time(reply: Any, command: Command) -> bool:
    return (
        _is_bytes_list(reply, command)
        and len(reply) == 2
        and all(part.isdigit() and len(part) <= limit for part, limit in zip(reply, (12, 6), strict=True))
    )


def _is_members(reply: Any, command: Command) -> bool:
    return _is_bytes_list(reply, command) and not (command[-1] == "WITHSCORES" and len(reply) % 2)


def _is_entries(reply: Any, command: Command) -> bool:
    return type(reply) is list and all(
        type(entry) is list and len(entry) == 2 and isinstance(entry[0], bytes) and _is_hash(entry[1], command)
        for entry in reply
    )


def _is_streams(reply: Any, command: Command) -> bool:
    if reply is None:
        return True
    return type(reply) is list and all(
        type(stream) is list and len(stream) == 2 and isinstance(stream[0], bytes) and _is_entries(stream[1], command)
        for stream in reply
    )


def _is_popped(reply: Any, command: Command) -> bool:
    return reply is None or (_is_bytes_list(reply, command) and len(reply) == 2)


def _is_placed(reply: Any, command: Command) -> bool:
    """Of lua/place.lua: the index of the choice, when its reservation expires, and a number for each candidate."""
    return (
        type(reply) is list
        and len(reply) >= 2
        and type(reply[0]) is int
        and isinstance(reply[1], bytes)
        and _NUMBER.match(reply[1]) is not None
        and all(type(count) is int for count in reply[2:])
    )


_Shape = Callable[[Any, Command], bool]
# By command: whether it only reads one key, and the shape of its reply in RESP2.
_SHAPES: Mapping[str, tuple[bool, _Shape]] = {
    "TIME": (False, _is_time),
    "HGET": (True, _is_value),
    "HMGET": (True, _is_values),
    "HGETALL": (True, _is_hash),
    "XRANGE": (True, _is_entries),
    "XREVRANGE": (True, _is_entries),
    "XREAD": (False, _is_streams),
    "ZRANGE": (True, _is_members),
    "ZREVRANGE": (True, _is_members),
    "BLPOP": (False, _is_popped),
    "EVAL": (False, _is_placed),
    **dict.fromkeys(("EXISTS", "PTTL", "HSET", "PEXPIRE", "DEL", "RPUSH", "ZREM"), (False, _is_number)),
}
