"""replies: what a server answers in RESP3 -> what it answers to the same command in RESP2, which all decoders expect.

A caller's own client may speak either protocol, with or without hiredis. The links made from a URL always speak RESP2.
Types of both protocols: https://github.com/redis/redis-specifications/blob/master/protocol/RESP3.md
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import redis

Command = Sequence[Any]

# redis-py has imported it where it uses it. Before 3.2 what a server pushes can't be told from a reply.
_HIREDIS = sys.modules.get("hiredis") if redis.utils.HIREDIS_AVAILABLE else None
_PUSH = getattr(_HIREDIS, "PushNotification", None)
TAKES_PUSHES_FOR_REPLIES = _HIREDIS is not None and _PUSH is None

_INT64 = range(-(2**63), 2**63)
_EXACT_FLOATS = 2.0**53

# RESP3: a map of lists; RESP2: a list of [name, list].
_MAPS_OF_LISTS = frozenset((b"XREAD", b"XREADGROUP"))
# RESP3: a list of [member, score]; RESP2: member, score, member, score, ...
_LISTS_OF_PAIRS = frozenset(
    (
        *(b"ZRANGE", b"ZREVRANGE", b"ZRANGEBYSCORE", b"ZREVRANGEBYSCORE", b"ZDIFF", b"ZINTER", b"ZUNION"),
        *(b"ZRANDMEMBER", b"ZPOPMIN", b"ZPOPMAX", b"HRANDFIELD"),
    )
)


def is_push(reply: Any) -> bool:
    """Whether this is no reply but what a server pushes in RESP3, which redis-py 5 with hiredis passes on."""
    return _PUSH is not None and type(reply) is _PUSH


def in_resp2(commands: Sequence[Command], replies: Sequence[Any]) -> list[Any]:
    """Return the undecoded replies to ``commands`` in the shapes of RESP2.

    ``replies`` may come from either protocol and from either parser of redis-py; error replies, as exceptions, stay as
    they are. The reply to EXEC is converted command by command.
    """
    found: list[Any] = []
    queued: list[Command] | None = None
    for command, reply in zip(commands, replies, strict=True):
        name = _name(command)
        if queued is None:
            queued = [] if name == b"MULTI" else None
            found.append(_of_command(name, reply))
        elif name in (b"EXEC", b"DISCARD"):
            # A transaction that was aborted has no list of replies.
            in_order = isinstance(reply, list) and len(reply) == len(queued)
            found.append(in_resp2(queued, reply) if in_order else _plain(reply))
            queued = None
        else:
            queued.append(command)
            found.append(_plain(reply))
    return found


def _name(command: Command) -> bytes:
    name = command[0]
    return name.encode().upper() if isinstance(name, str) else bytes(name).upper()


def _of_command(name: bytes, reply: Any) -> Any:
    if name in _MAPS_OF_LISTS and isinstance(reply, dict):
        return [[key, _plain(value)] for key, value in reply.items()]
    if name in _LISTS_OF_PAIRS and isinstance(reply, list) and any(isinstance(pair, list) for pair in reply):
        return [_plain(part) for pair in reply for part in pair]
    return _plain(reply)


def _plain(reply: Any) -> Any:
    """Return one value, and all that is in it, by the types of RESP2: bytes, 64-bit numbers, lists and None."""
    if reply is None or isinstance(reply, bytes):
        return reply
    if isinstance(reply, bool):
        return int(reply)
    if isinstance(reply, int):
        return reply if reply in _INT64 else b"%d" % reply
    if isinstance(reply, float):
        return _double(reply)
    if isinstance(reply, dict):
        return [_plain(part) for item in reply.items() for part in item]
    if isinstance(reply, (list, tuple, set, frozenset)):
        return [_plain(part) for part in reply]
    return reply


def _double(value: float) -> bytes:
    """Return a double as servers print it in RESP2: a whole number without a point, else the shortest exact form."""
    if math.isfinite(value) and value.is_integer() and abs(value) <= _EXACT_FLOATS:
        return b"%d" % value
    return repr(value).encode()
