"""acl: ``x2gofleet acl``: what a server is and a passwords file -> lines that make the users of x2gofleet's roles."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import redis

from x2gofleet.acl import Role, Topology, limits, parse_version, rules, user_name
from x2gofleet.cli.results import ANSWERED, UNAVAILABLE, USAGE, tell
from x2gofleet.connection import link_from_url, redact_url, unavailable
from x2gofleet.connection.urls import RedisUrl
from x2gofleet.errors import CacheUnavailable
from x2gofleet.files import UnusableFile, read_text_file
from x2gofleet.text import json_text

_STARTS = {"aclfile": "user", "commands": "ACL SETUSER"}
_TOPOLOGIES = {"sentinel": Topology.SENTINEL, "cluster": Topology.CLUSTER}


def acl(options: argparse.Namespace, *, url: str, namespace: str) -> int:
    """Print the users of the roles; Redis is asked only for its version, where ``--server-version`` doesn't tell it."""
    roles = [Role(name) for name in dict.fromkeys(options.role)] or list(Role)
    try:
        passwords = read_passwords(options.passwords) if options.passwords else {}
        names = {role: user_name(role, options.user_prefix) for role in roles}
        topology = Topology(options.topology or _TOPOLOGIES.get(RedisUrl.parse(url).kind, Topology.STANDALONE))
        server = compatible = options.server_version
        if server is None:
            server, compatible = ask_version(url)
        version = parse_version(compatible)
    except CacheUnavailable as exc:
        tell(
            f"{redact_url(url)} can't be asked for its version: {str(exc).rstrip('.')}. Give the server's version by "
            "--server-version, such as 7.0, or by --redis-url a user who may run INFO"
        )
        return UNAVAILABLE
    except ValueError as exc:
        tell(str(exc))
        return USAGE
    may_eval = not options.without_eval
    users = {
        role: rules(
            role,
            namespace=namespace,
            server_version=version,
            topology=topology,
            password_sha256=passwords.get(role),
            may_eval=may_eval,
        )
        for role in roles
    }
    notes = [f"{role.value}: {text}" for role in roles for text in limits(role, version, may_eval=may_eval)]
    notes += _login_notes({role: name for role, name in names.items() if role not in passwords})
    if options.json:
        print(json_text(_document(namespace, server, topology, names, users, notes), indent=2))
        return ANSWERED
    for role, found in users.items():
        print(_STARTS[options.format], names[role], *found)
    sys.stdout.flush()
    for note in notes:
        tell(note)
    return ANSWERED


def _login_notes(names: Mapping[Role, str]) -> list[str]:
    found = []
    if names:
        example = next(iter(names.values()))
        found.append(
            f"no password is set for {', '.join(names.values())}: nobody can log in as a new user until one is, by "
            f"ACL SETUSER {example} '>PASSWORD', or with --passwords FILE, where FILE has lines such as "
            f"{next(iter(names)).value}=PASSWORD"
        )
    found.append(
        "the user default can do everything without a password unless you restrict it: once an administrator of your "
        "own can log in, ACL SETUSER default off"
    )
    return found


def _document(
    namespace: str,
    server: str,
    topology: Topology,
    names: Mapping[Role, str],
    users: Mapping[Role, Sequence[str]],
    notes: Sequence[str],
) -> dict[str, Any]:
    return {
        "namespace": namespace,
        "server_version": server,
        "topology": topology.value,
        "users": [{"role": role.value, "name": names[role], "rules": list(found)} for role, found in users.items()],
        "notes": list(notes),
    }


def read_passwords(path: Path) -> dict[Role, str]:
    """Return the SHA-256 (hex) of each role's password in a file of lines ``role=password``.

    Empty lines and lines that begin with ``#`` are passed over; all that follows the first ``=`` is the password.
    Raises ValueError for a file that can't be read or understood; the message never has a password.
    """
    try:
        text = read_text_file(path)
    except UnusableFile as exc:
        raise ValueError(f"--passwords: {exc}") from None
    found: dict[Role, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, equals, password = line.partition("=")
        where = f"--passwords: {path}, line {number}"
        if not equals or name.strip() not in list(Role):
            raise ValueError(f"{where}: expected ROLE=PASSWORD with a ROLE of {', '.join(Role)}")
        role = Role(name.strip())
        if role in found:
            raise ValueError(f"{where}: {role.value} has a password already; keep one line of it")
        if not password:
            raise ValueError(f"{where}: the password of {role.value} is empty; write one after the =")
        found[role] = hashlib.sha256(password.encode()).hexdigest()
    return found


def ask_version(url: str) -> tuple[str, str]:
    """Ask a server what it is: return (name and version for people, the version of Redis it is compatible with).

    Raises CacheUnavailable.
    """
    link = link_from_url(url, connect_timeout_seconds=2.0, command_timeout_seconds=2.0)
    try:
        reply = link.exchange([("INFO", "server")])[0]
    except (redis.exceptions.RedisError, OSError) as exc:
        raise unavailable(exc, "INFO") from exc
    finally:
        link.close()
    told = dict(line.partition(":")[::2] for line in reply.decode("utf-8", "replace").splitlines())
    version = told.get("redis_version", "")
    if not version:
        raise CacheUnavailable("its INFO has no redis_version: it is no Redis or Valkey that x2gofleet knows")
    return (f"Valkey {told['valkey_version']}" if "valkey_version" in told else f"Redis {version}"), version
