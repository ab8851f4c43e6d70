"""resp: commands -> bytes, bytes -> replies: the Redis protocol (RESP2), without any I/O; hiredis where installed.

Format: https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import redis

try:
    import hiredis as _hiredis
except ImportError:
    hiredis: Any = None
else:
    hiredis = _hiredis

Command = Sequence[Any]

MISSING = object()

_ERRORS: dict[str, type[redis.exceptions.RedisError]] = {
    "ASK": redis.exceptions.AskError,
    "CLUSTERDOWN": redis.exceptions.ClusterDownError,
    "CROSSSLOT": redis.exceptions.ClusterCrossSlotError,
    "EXECABORT": redis.exceptions.ExecAbortError,
    "LOADING": redis.exceptions.BusyLoadingError,
    "MASTERDOWN": redis.exceptions.MasterDownError,
    "MOVED": redis.exceptions.MovedError,
    "NOAUTH": redis.exceptions.AuthenticationError,
    "NOPERM": redis.exceptions.NoPermissionError,
    "NOSCRIPT": redis.exceptions.NoScriptError,
    "OOM": redis.exceptions.OutOfMemoryError,
    "READONLY": redis.exceptions.ReadOnlyError,
    "TRYAGAIN": redis.exceptions.TryAgainError,
    "WRONGPASS": redis.exceptions.AuthenticationError,
}


def error_of(text: str) -> redis.exceptions.RedisError:
    """Return the redis-py exception for the text of an error reply, which keeps the text but for a known code."""
    code, _, rest = text.partition(" ")
    kind = _ERRORS.get(code)
    if kind is None:
        if "max number of clients" in text:
            return redis.exceptions.ConnectionError(text)
        return redis.exceptions.ResponseError(text)
    return kind(rest)


def _encode(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value).encode()
    raise redis.exceptions.DataError(f"{type(value).__name__} is nothing that Redis stores: use bytes, str or numbers")


def _pack_in_python(commands: Iterable[Command]) -> bytes:
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for value in command:
            data = _encode(value)
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def _pack_by_hiredis(commands: Iterable[Command]) -> bytes:
    try:
        return b"".join([hiredis.pack_command(tuple(command)) for command in commands])
    except TypeError:
        return _pack_in_python(commands)


pack: Callable[[Sequence[Command]], bytes] = _pack_in_python if hiredis is None else _pack_by_hiredis


class Reader(Protocol):
    """Takes what came from Redis and gives whole replies; an error reply is given as an exception."""

    def feed(self, data: bytes, /) -> None:
        """Take over bytes as they came."""

    def gets(self) -> Any:
        """Return the next reply, MISSING where more bytes are needed. Raises InvalidResponse for what is no RESP."""


class _Incomplete(Exception):
    """The reply goes on in bytes that have not come yet."""


class PythonReader:
    """A Reader without hiredis."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0

    def feed(self, data: bytes, /) -> None:
        """Take over bytes as they came."""
        self._data += data

    def gets(self) -> Any:
        """Return the next reply, or MISSING."""
        try:
            reply, self._at = self._reply(self._at)
        except _Incomplete:
            return MISSING
        if self._at == len(self._data):
            self._data.clear()
            self._at = 0
        return reply

    def _reply(self, at: int) -> tuple[Any, int]:
        end = self._data.find(b"\r\n", at)
        if end < 0:
            raise _Incomplete
        kind, line, at = self._data[at : at + 1], bytes(self._data[at + 1 : end]), end + 2
        try:
            if kind == b"+":
                return line, at
            if kind == b"-":
                return error_of(line.decode("utf-8", "replace")), at
            if kind == b":":
                return int(line), at
            if kind == b"$":
                return self._bulk(int(line), at)
            if kind == b"*":
                return self._array(int(line), at)
        except ValueError:
            pass
        raise redis.exceptions.InvalidResponse(f"Protocol Error: {bytes(kind + line[:40])!r}")

    def _bulk(self, length: int, at: int) -> tuple[bytes | None, int]:
        if length < 0:
            return None, at
        if len(self._data) < at + length + 2:
            raise _Incomplete
        return bytes(self._data[at : at + length]), at + length + 2

    def _array(self, length: int, at: int) -> tuple[list[Any] | None, int]:
        if length < 0:
            return None, at
        found = []
        for _ in range(length):
            reply, at = self._reply(at)
            found.append(reply)
        return found, at


def new_reader() -> Reader:
    """Return a Reader for one connection."""
    if hiredis is None:
        return PythonReader()
    made: Reader = hiredis.Reader(
        protocolError=redis.exceptions.InvalidResponse, replyError=error_of, notEnoughData=MISSING
    )
    return made
