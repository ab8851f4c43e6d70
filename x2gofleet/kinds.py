"""Kind: what a snapshot lists; the last part of a snapshot's Redis key."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """One of the things that is polled. ``cache_type`` arguments take its values as plain strings."""

    SESSIONS = "sessions"
    DESKTOPS = "desktops"
    MOUNTS = "mounts"
    LOAD = "load"

    @classmethod
    def parse(cls, value: str | Kind) -> Kind:
        """Return the Kind named ``value``; raise ValueError naming the known ones otherwise."""
        try:
            return cls(value)
        except ValueError:
            known = ", ".join(kind.value for kind in cls)
            raise ValueError(f"unknown cache type {value!r}; known: {known}") from None
