"""model: what a file of session profiles comes to: profiles with their hosts, and those that were left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from x2gofleet.errors import InventoryError

Source = Literal["x2gobroker", "x2goclient"]


@dataclass(frozen=True, slots=True)
class ImportedHost:
    """One server as a session profile names it; ``name`` is the address where the file gives only that."""

    name: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class ImportedProfile:
    """One session profile: ``name`` is the fleet's name for it, ``user`` and ``key`` are '' where none is fixed."""

    source: Source
    path: str
    name: str
    hosts: tuple[ImportedHost, ...]
    user: str
    key: str
    line: int
    host_line: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A profile that is not used: the name that a broker asks about it by, and what is wrong with it."""

    name: str
    error: InventoryError
