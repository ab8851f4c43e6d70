"""files: reads a small text file, whatever it is: never blocks, never reads without bound, and says how to fix it.

Every text file that an administrator names (inventory, imported profiles, settings, passwords) is read here.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

MAX_TEXT_BYTES = 16 * 1024 * 1024

_MOST_KEY_PARTS = 32
_KEY_PART = r"""(?:(?<![A-Za-z0-9_-])[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+"""
_LONG_KEY = re.compile(rf"(?:^|[\[{{,])[ \t]*+(?:{_KEY_PART}\.[ \t]*+){{{_MOST_KEY_PARTS}}}", re.MULTILINE)
_PIECE_BYTES = 1024 * 1024
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnusableFile(ValueError):
    """A file is not a text that can be used: ``reason``, ``remedy`` and, where one is at fault, its ``line``."""

    def __init__(self, path: str, reason: str, remedy: str, line: int | None = None, *, missing: bool = False) -> None:
        self.path, self.reason, self.remedy, self.line, self.missing = path, reason, remedy, line, missing
        where = path if line is None else f"{path}:{line}"
        super().__init__(f"{where}: {reason}. {remedy}")


def read_text_file(path: str | Path, *, max_bytes: int = MAX_TEXT_BYTES, errors: str = "strict") -> str:
    r"""Return the text of a regular file, without a byte order mark and with ``\n`` as the end of each line.

    Args:
        path: the file; a link to one will do.
        max_bytes: a larger file is refused.
        errors: what becomes of bytes that are not UTF-8, as for ``bytes.decode``.

    Raises:
        UnusableFile: the file is missing, unreadable, not a regular file, too large, or not UTF-8 text.
    """
    name = str(path)
    raw = _read(name, max_bytes)
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UnusableFile(name, "it is UTF-16 text", "save it as UTF-8", 1)
    if b"\0" in raw:
        line = raw.count(b"\n", 0, raw.index(b"\0")) + 1
        raise UnusableFile(name, "it has a zero byte, which no text has", "save it as UTF-8 text", line)
    try:
        text = raw.decode("utf-8-sig", errors)
    except UnicodeDecodeError as exc:
        line = exc.object.count(b"\n", 0, exc.start) + 1
        # The bytes may be a password: they are in no message, nor in a cause that is printed with it.
        raise UnusableFile(name, "it is no UTF-8 text", "save it as UTF-8", line) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read(name: str, max_bytes: int) -> bytes:
    try:
        # A pipe that nobody writes to would block an open without O_NONBLOCK.
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise UnusableFile(name, "there is no such file", "put it there, or correct its path", missing=True) from None
    except ValueError:
        raise UnusableFile(name, "it can't be read: its path has a zero byte", "correct its path") from None
    except OSError as exc:
        raise _unreadable(name, exc) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = next((word for test, word in _KINDS if test(mode)), "no file")
            raise UnusableFile(name, f"it is {kind}, not a regular file", "name a regular file")
        pieces, size = [], 0
        while piece := os.read(descriptor, min(_PIECE_BYTES, max_bytes + 1 - size)):
            pieces.append(piece)
            size += len(piece)
            if size > max_bytes:
                shown = f"{max_bytes >> 20} MiB" if max_bytes >= 1 << 20 else f"{max_bytes} bytes"
                raise UnusableFile(name, f"it is larger than {shown}", "name the right file, or make it smaller")
    except OSError as exc:
        raise _unreadable(name, exc) from None
    finally:
        os.close(descriptor)
    return b"".join(pieces)


def _unreadable(name: str, error: OSError) -> UnusableFile:
    remedy = f"see that it is a file that uid {os.getuid()} may read"
    return UnusableFile(name, f"it can't be read: {error.strerror or type(error).__name__}", remedy)


class NotToml(ValueError):
    """A text is not TOML: ``reason`` and ``line``. Neither repeats more of the text than a character."""

    def __init__(self, reason: str, line: int) -> None:
        self.reason, self.line = reason, line
        super().__init__(f"{reason} (line {line})")


def load_toml(text: str) -> dict[str, Any]:
    """Return a TOML document, in time that is linear in its length; raises NotToml."""
    # The time of tomllib grows with the square of the parts of a key.
    long_key = _LONG_KEY.search(text)
    if long_key is not None:
        line = text.count("\n", 0, long_key.start()) + 1
        raise NotToml(f"a name has more than {_MOST_KEY_PARTS} parts with dots between them", line)
    try:
        return tomllib.loads(text)
    except RecursionError:
        reason = "it is nested too deep"
    except ValueError as exc:
        # Not only TOMLDecodeError: tomllib lets through what int() says of 5000 digits.
        reason = str(exc)
    found = re.search(r"at line (\d+)", reason)
    line = int(found[1]) if found else text.count("\n") + 1
    raise NotToml(re.sub(r" \(at (line .*|end of document)\)", "", reason), line) from None
