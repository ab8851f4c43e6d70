"""faults: what an exception of paramiko or of the operating system says, as text for a message."""

from __future__ import annotations

from x2gofleet_workers.text import show


def describe(exc: BaseException) -> str:
    """Return what an exception says as one line of plain text; its class where it says nothing."""
    return show(str(exc).encode()) or type(exc).__name__
