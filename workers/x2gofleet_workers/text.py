"""text: makes what servers, files and Redis contain safe to show on a terminal, in a log or on a page."""

from __future__ import annotations


def show(raw: bytes, limit: int = 200) -> str:
    """Return bytes from outside as one line of printable text, at most ``limit`` characters."""
    text = raw.decode("utf-8", "replace")
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
