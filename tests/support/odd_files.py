"""Files of every odd sort, with what is to be said of them: for each file that an administrator names."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from x2gofleet.files import MAX_TEXT_BYTES

Make = Callable[[Path, str], None]


@dataclass(frozen=True, slots=True)
class OddFile:
    """How a file is made of a good text, and what is said of it; ``line`` is None where none is named."""

    name: str
    make: Make
    said: str
    remedy: str
    line: int | None = None


@dataclass(frozen=True, slots=True)
class GoodFile:
    """How a file is made of a good text that reads as it looks."""

    name: str
    make: Make


def _bytes(encoding: Callable[[str], bytes]) -> Make:
    return lambda path, text: _write(path, encoding(text))


def _write(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)


def _large(path: Path, text: str) -> None:
    with path.open("wb") as file:
        file.write(text.encode())
        file.truncate(MAX_TEXT_BYTES + 1)


def _socket(path: Path, _: str) -> None:
    # Its path must be short.
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


ODD = (
    OddFile("missing", lambda path, text: None, "there is no such file", ""),
    OddFile("a dangling link", lambda path, text: path.symlink_to("nowhere"), "there is no such file", ""),
    OddFile("a directory", lambda path, text: path.mkdir(), "it is a directory", "name a regular file"),
    OddFile("a pipe that nobody writes to", lambda path, text: os.mkfifo(path), "it is a pipe", "name a regular file"),
    OddFile("/dev/zero", lambda path, text: path.symlink_to("/dev/zero"), "it is a device", "name a regular file"),
    OddFile("/dev/null", lambda path, text: path.symlink_to("/dev/null"), "it is a device", "name a regular file"),
    OddFile("a terminal", lambda path, text: path.symlink_to("/dev/ptmx"), "it is a device", "name a regular file"),
    OddFile("a socket", _socket, "it can't be read: No such device or address", "see that it is a file"),
    OddFile("a link to itself", lambda path, text: path.symlink_to(path), "it can't be read: Too many levels", "see"),
    OddFile(
        "a file below a file", lambda path, text: path.symlink_to("/dev/null/x"), "it can't be read: Not a dir", "see"
    ),
    OddFile("too large", _large, "it is larger than 16 MiB", "make it smaller"),
    OddFile("UTF-16", _bytes(lambda text: text.encode("utf-16")), "it is UTF-16 text", "save it as UTF-8", 1),
    OddFile(
        "UTF-16, big end first", _bytes(lambda text: b"\xfe\xff" + text.encode("utf-16-be")), "UTF-16", "as UTF-8", 1
    ),
    OddFile("UTF-16 without a mark", _bytes(lambda text: text.encode("utf-16-le")), "zero byte", "as UTF-8 text", 1),
    OddFile("a zero byte", _bytes(lambda text: b"# one\n# \0\n" + text.encode()), "zero byte", "as UTF-8 text", 2),
)
LATIN_1 = OddFile("Latin-1", _bytes(lambda text: b"# one\n# B\xfcro\n" + text.encode()), "no UTF-8", "as UTF-8", 2)
READ = (
    GoodFile("as it is", _bytes(str.encode)),
    GoodFile("a byte order mark", _bytes(lambda text: b"\xef\xbb\xbf" + text.encode())),
    GoodFile("CRLF", _bytes(lambda text: text.replace("\n", "\r\n").encode())),
    GoodFile("CR", _bytes(lambda text: text.replace("\n", "\r").encode())),
    GoodFile("both", _bytes(lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())),
    GoodFile("no end of the last line", _bytes(lambda text: text.rstrip("\n").encode())),
    GoodFile("other scripts in comments", _bytes(lambda text: f"# Büro 東京 😀\n{text}".encode())),
    GoodFile("a link", lambda path, text: _linked(path, text)),
)


def _linked(path: Path, text: str) -> None:
    path.with_name("the-real-one").write_text(text)
    path.symlink_to("the-real-one")
