"""text: makes what servers, Redis, users and files contain safe to show on a terminal, in a log or on a page.

Every program of x2gofleet prints, logs and serves text through this module alone.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import unicodedata
from types import TracebackType
from typing import Any, TextIO

_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BLANKS = frozenset("\t\n\r\v\f")


def clean(text: str) -> str:
    """Return ``text`` as one line without anything that a terminal might obey or that changes how other text is read.

    Line ends and tabs become spaces; control, format (bidirectional, zero-width), surrogate and unassigned
    characters become U+FFFD, so that two different names never look the same for want of one.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        " " if char in _BLANKS else _REPLACEMENT if unicodedata.category(char) in _UNSAFE_CATEGORIES else char
        for char in text
    )


def show(found: bytes | str, limit: int = 200) -> str:
    """Return what came from outside for a message: clean, with single spaces, at most ``limit`` characters."""
    text = found.decode("utf-8", "replace") if isinstance(found, bytes) else found
    return shortened(" ".join(clean(text).split()), limit)


def escaped(text: str) -> str:
    r"""Return ``text`` as one line in which what can't be printed is written as Python does (``\u202e``): for names
    that somebody has to find in a file."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def shortened(text: str, limit: int) -> str:
    """Return at most ``limit`` characters of ``text``, the last of them an ellipsis where some are left out."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def json_text(document: Any, *, indent: int | None = None) -> str:
    """Return a document as JSON in printable ASCII."""
    return json.dumps(document, indent=indent).replace("\x7f", "\\u007f")


def say(text: str, *, file: TextIO | None = None) -> None:
    """Print one line, on stdout unless told otherwise, and flush it."""
    print(clean(text), file=sys.stdout if file is None else file, flush=True)


class CleanFormatter(logging.Formatter):
    """Writes a record as one line; the lines of a traceback are indented, so that none looks like a record."""

    def format(self, record: logging.LogRecord) -> str:
        # Another handler may have left its own text of the traceback in the record.
        own = copy.copy(record)
        own.exc_text = None
        return super().format(own)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return clean(super().formatMessage(record))

    def formatException(  # noqa: N802
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join(f"  {clean(line)}" for line in text.split("\n"))
