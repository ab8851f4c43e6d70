"""A file system that answers nobody, as a network's when its server is gone."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_MNT_DETACH = 2


@contextlib.contextmanager
def hung_file_system(folder: Path) -> Iterator[Path]:
    """Mount on ``folder`` a file system in which every access waits until the block ends; skips without the rights."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir()
    try:
        driver = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        pytest.skip(f"a file system of one's own needs /dev/fuse: {exc}")
    try:
        # Nobody reads the requests of this driver, the kernel's first one included.
        options = f"fd={driver},rootmode=40000,user_id=0,group_id=0"
        if libc.mount(b"hung", os.fsencode(folder), b"fuse", 0, options.encode()) != 0:
            pytest.skip(f"a file system of one's own needs root: {os.strerror(ctypes.get_errno())}")
        try:
            yield folder
        finally:
            libc.umount2(os.fsencode(folder), _MNT_DETACH)
    finally:
        # Whoever waits gets an error now.
        os.close(driver)
