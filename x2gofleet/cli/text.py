"""text: what the tables are made of: cell widths, ages for people."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime


def cell_width(text: str) -> int:
    """Return how many columns of a terminal ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fold(text: str, width: int) -> Iterator[str]:
    """Yield ``text`` in pieces of at most ``width`` columns, at least one piece, losing nothing."""
    piece, taken = "", 0
    for char in text:
        size = _char_width(char)
        if taken + size > width and piece:
            yield piece
            piece, taken = "", 0
        piece, taken = piece + char, taken + size
    yield piece


def duration(seconds: float | None) -> str:
    """Return seconds as people say them: ``1.2 s``, ``42 s``, ``12 min``, ``5 h``, ``3 d``; ``-`` for None."""
    if seconds is None:
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 47.5 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} d"


_LATEST_MS = 253_402_300_799_999


def iso(time_ms: int | None) -> str | None:
    """Return ms since the epoch as ``2026-11-22T21:09:57.123Z``; a time after the year 9999 as that."""
    if time_ms is None:
        return None
    time_ms = max(0, min(time_ms, _LATEST_MS))
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return ``1 server``, ``2 servers``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
