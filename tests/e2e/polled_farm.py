"""What tests ask of a worker that polls a farm on PostgreSQL."""

from __future__ import annotations

from x2gofleet.errors import RefreshFailed
from x2gofleet.parsing import strip_age

from .polled import PROFILE, PolledFleet

# A failure that passes: polls are requested here, so their own schedule may be slow.
RARELY = {"sessions": 30, "load": 30, "mounts": 30}
# Without notices: a look between polls would connect before a fault begins.
PATIENT = {"deadline": 20, "notices": False}


def names_of(stdout: bytes) -> frozenset[str]:
    """The names of the sessions of a listing."""
    return frozenset(line.split(b"|")[1].decode() for line in stdout.splitlines())


def lines(stdout: bytes) -> list[bytes]:
    """The rows of a listing in an order of their own, without their ages, which pass."""
    return sorted(strip_age(stdout).splitlines())


def listed(polled: PolledFleet, server: str) -> frozenset[str]:
    """The names of the sessions that are cached of a server; something must be."""
    snapshot = polled.snapshot(server=server)
    assert snapshot is not None
    return names_of(snapshot.stdout)


def refresh(polled: PolledFleet, profile: str = PROFILE, *, mounts: bool = False) -> dict[str, str]:
    """Have every server polled now; returns the failures by server."""
    try:
        polled.cache.update(profile, update_sessions=not mounts, update_mounts=mounts, timeout=90)
    except RefreshFailed as exc:
        return exc.errors
    return {}
