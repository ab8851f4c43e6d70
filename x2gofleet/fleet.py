"""PublishedFleet: the inventory as workers publish it and readers use it: profiles, targets, servers.

Readers need nothing but the Redis URL: which targets a profile has comes from here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from x2gofleet.errors import SnapshotCorrupt
from x2gofleet.keys import is_server_id, server_of, target_id, user_of
from x2gofleet.kinds import Kind

MAX_DOCUMENT_BYTES = 16 << 20
MAX_VERSION_BYTES = 128


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
            if len(document) > MAX_DOCUMENT_BYTES:
                raise ValueError(f"it is longer than {MAX_DOCUMENT_BYTES} bytes")
            # Numbers of thousands of digits are refused with ValueError, deep nesting with RecursionError.
            raw = _table(json.loads(document))
            servers = {name: _server(name, _table(item)) for name, item in _table(raw["servers"]).items()}
            targets = {name: _target(name, _table(item)) for name, item in _table(raw["targets"]).items()}
            profiles = {_text(name): _texts(items) for name, items in _table(raw["profiles"]).items()}
            left_out = frozenset(_texts(raw.get("left_out", [])))
            _ = [servers[target.server] for target in targets.values()]
            _ = [targets[name] for names in profiles.values() for name in names]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as exc:
            raise _unreadable(f"{type(exc).__name__}: {exc}") from exc
        return cls(servers, targets, profiles, version, left_out)

    @classmethod
    def from_hash(cls, version: bytes | None, document: bytes | None) -> PublishedFleet:
        """Decode the two fields that are stored; raises SnapshotCorrupt as ``from_json`` does."""
        if version is None or document is None:
            raise _unreadable(f"its {'version' if version is None else 'document'} is missing")
        if len(version) > MAX_VERSION_BYTES:
            raise _unreadable(f"its version is longer than {MAX_VERSION_BYTES} bytes")
        try:
            return cls.from_json(document, version.decode())
        except UnicodeDecodeError as exc:
            raise _unreadable("its version is not UTF-8") from exc


def _unreadable(why: str) -> SnapshotCorrupt:
    # What is foreign may be long, and hold anything.
    shown = why if len(why) <= _SHOWN else f"{why[:_SHOWN]}..."
    return SnapshotCorrupt(f"the published inventory can't be read: {shown}")


_SHOWN = 200


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__} where an object belongs")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} where a text belongs")
    # Raises ValueError for lone surrogates, which JSON can escape and nobody can print or use in a key.
    value.encode()
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"a {type(value).__name__} where a list belongs")
    return tuple(map(_text, value))


def _server(name: str, item: Mapping[str, Any]) -> PublishedServer:
    if not is_server_id(name):
        raise ValueError(f"{name!r} is not a valid server id")
    weight = item["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"the weight of {name} is not a number above 0")
    if not isinstance(item["drain"], bool):
        raise TypeError(f"drain of {name} is neither true nor false")
    return PublishedServer(name, _text(item["hostname"]), _texts(item["labels"]), float(weight), item["drain"])


def _target(name: str, item: Mapping[str, Any]) -> PublishedTarget:
    server, scope, username = _text(item["server"]), item["scope"], item["username"]
    # Raises ValueError for a user name that can't be one.
    if target_id(server, username) != name or server_of(name) != server or user_of(name) != username:
        raise ValueError(f"{name!r} is not the id of a target")
    if scope != ("server" if username is None else "user"):
        raise ValueError(f"the scope of {name} does not fit it")
    return PublishedTarget(name, server, scope, username, frozenset(map(Kind, _texts(item["kinds"]))))
