"""Writes the fleet.toml that polls a simulated fleet, with the key and the known_hosts file it names."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

HEADER = "# Written by x2gofleet-worker simulate: a fleet of simulated servers on loopback."


class ListedServer(NamedTuple):
    """What an inventory and a known_hosts file say of one server; ``host_key`` is an OpenSSH public key line."""

    server_id: str
    address: str
    port: int
    labels: tuple[str, ...]
    host_key: str


def write_inventory(path: Path, servers: Iterable[ListedServer], client_key: bytes) -> None:
    """Write ``path`` and beside it, named after it, the private key (mode 0600) and known_hosts.

    :param client_key: private key in OpenSSH's format.
    :raises FileExistsError: ``path`` exists and was not written by the simulator.
    """
    path = path.absolute()
    if path.exists() and not path.read_bytes().startswith(HEADER.encode()):
        raise FileExistsError(f"{path} was not written by the simulator; name another file for the inventory")
    listed = tuple(servers)
    key_file = path.with_name(f"{path.stem}-simulated.key")
    known_hosts = path.with_name(f"{path.stem}-simulated.known_hosts")
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(key_file, client_key)
    _replace(known_hosts, "".join(_known_host(server) for server in listed).encode())
    _replace(path, _toml(listed, key_file, known_hosts).encode())


def _known_host(server: ListedServer) -> str:
    algorithm, key = server.host_key.split()[:2]
    name = server.address if server.port == 22 else f"[{server.address}]:{server.port}"
    return f"{name} {algorithm} {key}\n"


def _toml(servers: tuple[ListedServer, ...], key_file: Path, known_hosts: Path) -> str:
    lines = [
        HEADER,
        "",
        "[defaults]",
        'user = "root"',
        f"key_file = {_quoted(key_file)}",
        f"known_hosts = {_quoted(known_hosts)}",
    ]
    for server in servers:
        lines += [
            "",
            f"[servers.{server.server_id}]",
            f"host = {_quoted(server.address)}",
            f"port = {server.port}",
            f"labels = {_list(server.labels)}",
        ]
    profiles: Mapping[str, tuple[str, ...]] = {
        label: tuple(server.server_id for server in servers if label in server.labels) for label in ("mate", "xfce")
    }
    for name, members in profiles.items():
        if members:
            lines += ["", f"[profiles.{name}]", f"labels = {_list((name,))}"]
    lines += ["", "[profiles.all]", f"servers = {_list(server.server_id for server in servers)}", ""]
    return "\n".join(lines)


def _quoted(value: str | Path) -> str:
    """A JSON string is a TOML basic string, but for DEL, which no sane path holds."""
    return json.dumps(str(value), ensure_ascii=False)


def _list(values: Iterable[str]) -> str:
    return "[" + ", ".join(_quoted(value) for value in values) + "]"


def _replace(path: Path, content: bytes) -> None:
    """Put a file in place whole, readable by its owner alone, whatever was there before."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
