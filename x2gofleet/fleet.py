"""PublishedFleet: the inventory as workers publish it and readers use it: profiles, targets, servers.

Readers need nothing but the Redis URL: which targets a profile has comes from here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from x2gofleet.errors import SnapshotCorrupt
from x2gofleet.kinds import Kind


@dataclass(frozen=True, slots=True)
class PublishedServer:
    """What readers know of a server: ``hostname`` is the name its session rows carry."""

    id: str
    hostname: str
    labels: tuple[str, ...] = ()
    weight: float = 1.0
    drain: bool = False


@dataclass(frozen=True, slots=True)
class PublishedTarget:
    """What readers know of a target: its server, scope (``server`` or ``user``) and the kinds it is polled for."""

    id: str
    server: str
    scope: str
    username: str | None
    kinds: frozenset[Kind]


@dataclass(frozen=True, slots=True)
class PublishedFleet:
    """One version of the inventory.

    ``left_out`` are the names of profiles that exist elsewhere, as x2gobroker's, and that the inventory can't answer
    for: nobody is to take another profile for them.
    """

    servers: Mapping[str, PublishedServer]
    targets: Mapping[str, PublishedTarget]
    profiles: Mapping[str, tuple[str, ...]]
    version: str = field(default="")
    left_out: frozenset[str] = frozenset()

    def to_json(self) -> str:
        """Return the document that is stored in Redis; ``version`` is stored beside it."""
        return json.dumps(
            {
                "servers": {
                    server.id: {
                        "hostname": server.hostname,
                        "labels": list(server.labels),
                        "weight": server.weight,
                        "drain": server.drain,
                    }
                    for server in self.servers.values()
                },
                "targets": {
                    target.id: {
                        "server": target.server,
                        "scope": target.scope,
                        "username": target.username,
                        "kinds": sorted(target.kinds),
                    }
                    for target in self.targets.values()
                },
                "profiles": {name: list(targets) for name, targets in self.profiles.items()},
                # Only where there are some: the same inventory has the same document in earlier versions.
                **({"left_out": sorted(self.left_out)} if self.left_out else {}),
            },
            sort_keys=True,
        )

    def digest(self) -> str:
        """Return a digest of the content, equal for equal inventories."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=8).hexdigest()

    @classmethod
    def from_json(cls, document: str | bytes, version: str) -> PublishedFleet:
        """Decode a document; raises SnapshotCorrupt for one that no worker wrote."""
        try:
            raw: dict[str, Any] = json.loads(document)
            servers = {
                name: PublishedServer(
                    name, item["hostname"], tuple(item["labels"]), float(item["weight"]), bool(item["drain"])
                )
                for name, item in raw["servers"].items()
            }
            targets = {
                name: PublishedTarget(
                    name,
                    item["server"],
                    item["scope"],
                    item["username"],
                    frozenset(Kind(kind) for kind in item["kinds"]),
                )
                for name, item in raw["targets"].items()
            }
            profiles = {name: tuple(items) for name, items in raw["profiles"].items()}
            left_out = frozenset(str(name) for name in raw.get("left_out", ()))
            _ = [servers[target.server] for target in targets.values()]
            _ = [targets[name] for names in profiles.values() for name in names]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
            raise SnapshotCorrupt(f"the published inventory can't be read: {type(exc).__name__}: {exc}") from exc
        return cls(servers, targets, profiles, version, left_out)
