"""files: the bytes of a key or known_hosts file, read without waiting for anything, up to a limit."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

Identity = tuple[int, ...]


class NotUsable(Exception):
    """What a path leads to is not a file of an acceptable size; the text says what it is."""


@dataclass(frozen=True, slots=True)
class FileContent:
    """What a file held, and what it was: ``mode`` and ``owner`` as of fstat."""

    data: bytes
    identity: Identity
    mode: int
    owner: int


def identity_of(found: os.stat_result) -> Identity:
    """Return what differs when a file was changed or replaced."""
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev)


def read_file(path: str, limit_bytes: int) -> FileContent:
    """Read a regular file, through links; a FIFO or device is never waited for.

    Raises OSError, and NotUsable for anything but a regular file of at most ``limit_bytes``.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise NotUsable(_kind(found.st_mode))
        if found.st_size > limit_bytes:
            raise NotUsable(f"a file of {found.st_size} bytes, more than {limit_bytes}")
        data = bytearray()
        while len(data) <= limit_bytes and (piece := os.read(descriptor, limit_bytes + 1 - len(data))):
            data += piece
        if len(data) > limit_bytes:
            raise NotUsable(f"a file of more than {limit_bytes} bytes")
        return FileContent(bytes(data), identity_of(found), found.st_mode, found.st_uid)
    finally:
        os.close(descriptor)


def _kind(mode: int) -> str:
    for check, name in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if check(mode):
            return name
    return "not a file"
