"""A connection to PostgreSQL that costs no process and no package: startup and the extended query protocol.

Only for a Unix socket whose pg_hba rule is `trust`. Format: "Message Formats" in PostgreSQL's documentation.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Self

Row = tuple[str | None, ...]

_PROTOCOL_3_0 = 196_608


class PostgresError(Exception):
    """PostgreSQL refused a connection or a statement; the text is the server's own."""


class PostgresConnection:
    """One connection; use as a context manager or `close` it.

    socket_path: of the server's Unix socket. role, database: as whom and where. Raises PostgresError when the server
    refuses, OSError when it does not answer.
    """

    def __init__(
        self, socket_path: Path, *, role: str, database: str, application_name: str = "", timeout_seconds: float = 30.0
    ) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout_seconds)
            self._socket.connect(str(socket_path))
            self._stream = self._socket.makefile("rb")
        except BaseException:
            self._socket.close()
            raise
        try:
            words = ("user", role, "database", database, "application_name", application_name)
            body = struct.pack("!I", _PROTOCOL_3_0) + b"".join(map(_text, words)) + b"\0"
            self._socket.sendall(struct.pack("!I", len(body) + 4) + body)
            self._read_until_ready()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; the server ends the session and rolls its transaction back."""
        self._stream.close()
        self._socket.close()

    def query(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Run one statement with `$1`, `$2` ... bound as text; returns its rows as text, None for NULL."""
        values = [None if value is None else str(value).encode() for value in parameters]
        bound = b"".join(
            struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value for value in values
        )
        self._socket.sendall(
            _message(b"P", _text("") + _text(statement) + struct.pack("!H", 0))
            + _message(b"B", b"\0\0" + struct.pack("!HH", 0, len(values)) + bound + struct.pack("!H", 0))
            + _message(b"E", b"\0" + struct.pack("!I", 0))
            + _message(b"S", b"")
        )
        return self._read_until_ready()

    def _read_until_ready(self) -> list[Row]:
        rows: list[Row] = []
        refusal = ""
        while True:
            kind, body = self._message()
            if kind == b"D":
                rows.append(_row(body))
            elif kind == b"E":
                refusal = _refusal(body)
                if refusal.startswith("FATAL"):
                    raise PostgresError(refusal)
            elif kind == b"R" and body != b"\0\0\0\0":
                raise PostgresError("the server wants a password; this connection is for `trust` alone")
            elif kind == b"Z":
                if refusal:
                    raise PostgresError(refusal)
                return rows

    def _message(self) -> tuple[bytes, bytes]:
        head = self._stream.read(5)
        if len(head) < 5:
            raise PostgresError("the server closed the connection")
        length = struct.unpack("!I", head[1:])[0] - 4
        return head[:1], self._stream.read(length)


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def _row(body: bytes) -> Row:
    values: list[str | None] = []
    at = 2
    for _ in range(struct.unpack("!H", body[:2])[0]):
        length = struct.unpack("!i", body[at : at + 4])[0]
        at += 4
        values.append(None if length < 0 else body[at : at + length].decode())
        at += max(0, length)
    return tuple(values)


def _refusal(body: bytes) -> str:
    """The severity and the text of an ErrorResponse."""
    fields = {field[:1]: field[1:].decode(errors="replace") for field in body.split(b"\0") if field}
    return f"{fields.get(b'V', fields.get(b'S', 'ERROR'))}: {fields.get(b'M', '')}"
