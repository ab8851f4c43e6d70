"""The tables of tests/data about imported session profiles: what is read, and what is left out and how it is fixed."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from x2gofleet_workers.importing import ImportedProfile

DATA = Path(__file__).parent.parent / "data"
SOURCES = ("x2gobroker", "x2goclient")

Profiles = dict[str, dict[str, list[Any]]]


@dataclass(frozen=True, slots=True)
class Fault:
    """A file with one profile at fault: what is said of it, and what is done about it in the file or in fleet.toml."""

    source: str
    name: str
    text: str
    line: int
    key: str
    reason: str
    remedy: str
    fixed: str = ""
    toml: str = ""
    encoding: str = "utf-8"

    @property
    def raw(self) -> bytes:
        return self.text.encode(self.encoding)


@dataclass(frozen=True, slots=True)
class Good:
    """A file that is read, and what it comes to. ``users``: user and key of profiles of X2Go Client."""

    source: str
    name: str
    text: str
    profiles: Profiles
    servers: Mapping[str, tuple[str, int]]
    users: Mapping[str, tuple[str, str]]
    original: bool
    settings: bool


def faults() -> list[Fault]:
    return [Fault(source, **entry) for source, entries in _load("import_faults.toml") for entry in entries]


def good() -> list[Good]:
    return [
        Good(
            source,
            entry["name"],
            entry["text"],
            {
                profile: {host: [address, port] for host, address, port in hosts}
                for profile, hosts in entry["profiles"].items()
            },
            {name: (address, port) for name, (address, port) in entry["servers"].items()},
            {name: (user, key) for name, (user, key) in entry.get("users", {}).items()},
            entry.get("original", True),
            entry.get("settings", True),
        )
        for source, entries in _load("imports.toml")
        for entry in entries
    ]


def _load(name: str) -> list[tuple[str, list[dict[str, Any]]]]:
    return list(tomllib.loads((DATA / name).read_text(encoding="utf-8")).items())


def described(profiles: tuple[ImportedProfile, ...]) -> Profiles:
    """Return the hosts of each profile with addresses and ports."""
    return {profile.name: {host.name: [host.address, host.port] for host in profile.hosts} for profile in profiles}
