"""acl: role, namespace and server version -> the ACL rules of a Redis user that can do its work, and nothing else.

What each role sends is listed here by hand, and tests/integration/test_acl.py compares it with what Redis saw it send:
a command or key that the code begins or ceases to use is a failing test.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from x2gofleet.keys import DEFAULT_NAMESPACE, Keys
from x2gofleet.kinds import Kind

OLDEST_VERSION = (6, 2)
KEY_RIGHTS_VERSION = (7, 0)
_VERSION = re.compile(r"([0-9]{1,4})(?:\.([0-9]{1,4}))?(?:\.[0-9]{1,8})*\Z")
_PREFIX = re.compile(r"[A-Za-z0-9._:@-]{0,64}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class Role(StrEnum):
    """What a user is for: lookups; lookups, registrations and requests; all that a worker does."""

    READER = "reader"
    BROKER = "broker"
    WORKER = "worker"


class Access(StrEnum):
    """What commands do with keys, as ACL rules begin since Redis 7."""

    READ = "%R~"
    WRITE = "%W~"
    BOTH = "~"


class Topology(StrEnum):
    """What connections go to: one server (also through a proxy), a group that sentinels watch, or a Cluster."""

    STANDALONE = "standalone"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


# What connections send by themselves.
_CONNECTING = {
    Topology.STANDALONE: ("select",),
    Topology.SENTINEL: ("select", "role"),
    Topology.CLUSTER: ("cluster|slots", "cluster|nodes", "asking"),
}


@dataclass(frozen=True, slots=True)
class Right:
    """Commands that may be used on keys that match any of some glob patterns.

    A subcommand is written ``script|load``. Every command may be used on every key, as ``access`` allows it.
    """

    commands: tuple[str, ...]
    keys: tuple[str, ...] = ()
    access: Access = Access.BOTH


def parse_version(text: str) -> tuple[int, int]:
    """Return (major, minor) of ``7``, ``7.0`` or ``7.0.15``.

    Raises ValueError for other texts, and for servers older than Redis 6.2, which x2gofleet does not know.
    """
    found = _VERSION.match(text)
    if found is None:
        raise ValueError(f"{text!r} is no version of Redis or Valkey: give one such as 7.0")
    version = int(found[1]), int(found[2] or 0)
    if version < OLDEST_VERSION:
        raise ValueError(f"{text} is older than Redis 6.2, the oldest that x2gofleet supports")
    return version


def rights(
    role: Role, keys: Keys, topology: Topology = Topology.STANDALONE, *, may_eval: bool = True
) -> tuple[Right, ...]:
    """Return what a role may do; the first right is what goes without a selector.

    A broker that may not run scripts can neither place nor reserve; a worker always may.
    """
    match role:
        case Role.READER:
            first, *others = (_lookups(keys),)
        case Role.BROKER:
            first, *others = (_lookups(keys), *_requests(keys), _reservations(keys, may_eval=may_eval))
        case Role.WORKER:
            first, *others = _work(keys)
    return replace(first, commands=(*_CONNECTING[topology], *first.commands)), *others


def _of_targets(keys: Keys) -> tuple[str, ...]:
    snapshots = (keys.snapshot("*", kind) for kind in Kind)
    return (*snapshots, keys.state("*"), keys.lease("*"), keys.events("*"))


def _lookups(keys: Keys) -> Right:
    commands = ("time", "hget", "hmget", "hgetall", "exists", "pttl", "xrange", "xrevrange", "xread")
    of_namespace = (keys.fleet(), keys.uuid("*"), keys.fresh(), keys.changes())
    return Right(commands, (*_of_targets(keys), *of_namespace), Access.READ)


def _requests(keys: Keys) -> tuple[Right, ...]:
    return (
        Right(("hset", "pexpire", "del"), (keys.uuid("*"),), Access.WRITE),
        Right(("zrevrange", "exists"), (keys.workers(), keys.worker("*")), Access.READ),
        Right(("rpush", "pexpire"), (keys.refresh_requests("*"),), Access.WRITE),
        Right(("blpop",), (keys.refresh_answers("*"),)),
    )


def _reservations(keys: Keys, *, may_eval: bool) -> Right:
    script = ("eval", "zcount", "zscore", "zrem", "zremrangebyscore", "zadd", "pexpire", "pttl")
    return Right((*(script if may_eval else ("zrem",)), "zrange"), (f"{keys.namespace}:reserved:{{servers}}:*",))


def _work(keys: Keys) -> tuple[Right, ...]:
    scripts = ("evalsha", "eval")
    return (
        Right(
            (
                *("time", "scan", *scripts),
                *("get", "set", "del", "hget", "hmget", "hset", "hdel", "pexpire", "pexpireat"),
                *("xadd", "xlen", "xrevrange"),
            ),
            (*_of_targets(keys), keys.fence("*")),
        ),
        Right((*scripts, "hget", "hmget", "hset", "pexpire", "del"), (keys.fleet(),)),
        Right(("eval", "hgetall", "hset", "hdel", "pexpire"), (keys.fresh(),)),
        Right((*scripts, "hget", "hset", "hdel", "pexpire", "del"), (keys.hosts(),)),
        Right(("xadd", "pexpire"), (keys.changes(),), Access.WRITE),
        Right(("zadd", "zremrangebyscore", "zrange", "zrem", "pexpire", "del"), (keys.workers(),)),
        Right(("hset", "hget", "hmget", "pexpire", "del"), (keys.worker("*"),)),
        Right(("blpop", "del"), (keys.refresh_requests("*"),)),
        Right(("rpush", "pexpire"), (keys.refresh_answers("*"),), Access.WRITE),
    )


def rules(
    role: Role,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    server_version: tuple[int, int],
    topology: Topology = Topology.STANDALONE,
    password_sha256: str | None = None,
    may_eval: bool = True,
) -> list[str]:
    """Return the rules of a user, as ACL SETUSER and an aclfile take them after the user's name.

    Applied to a user that exists, they replace what it may do, and its passwords only where ``password_sha256`` (64
    hex digits) is given. A user that they create without one has no password, and nobody can log in as it.

    Redis 6.2 has neither selectors nor rights to read or write alone: there the user may run each of its commands on
    each of its keys (``limits`` says what this comes to). ``may_eval`` is as for ``rights``.
    """
    granted = rights(role, Keys(namespace), topology, may_eval=may_eval)
    by_key = server_version >= KEY_RIGHTS_VERSION
    found = ["on", "resetkeys", "resetchannels", "-@all"]
    if password_sha256 is not None:
        if not _SHA256.match(password_sha256):
            raise ValueError("a password's SHA-256 is 64 hex digits in lower case")
        found += ["resetpass", f"#{password_sha256}"]
    if not by_key:
        return found + _plain(granted)
    found.append("clearselectors")
    found += _confined(granted[0])
    for right in granted[1:]:
        first, *middle, last = _confined(right)
        found += [f"({first}", *middle, f"{last})"]
    return found


def _confined(right: Right) -> list[str]:
    return [*(f"{right.access.value}{key}" for key in right.keys), *(f"+{command}" for command in right.commands)]


def _plain(granted: Sequence[Right]) -> list[str]:
    keys = dict.fromkeys(key for right in granted for key in right.keys)
    commands = dict.fromkeys(command for right in granted for command in right.commands)
    return [*(f"~{key}" for key in keys), *(f"+{command}" for command in commands)]


def limits(role: Role, server_version: tuple[int, int], *, may_eval: bool = True) -> tuple[str, ...]:
    """Return what the rules of a role can't keep it from, and what they do, a sentence each."""
    found = []
    if role is Role.BROKER and may_eval:
        found.append(
            "the broker places logins by EVAL, so its user can run a script that does not end: Redis answers nobody "
            "until it is killed (SCRIPT KILL, by an administrator); --without-eval makes a broker that can't place"
        )
    if role is Role.BROKER and not may_eval:
        found.append("the broker may not run scripts: it looks up, registers and refreshes, and can't place or reserve")
    if role is Role.BROKER and server_version < KEY_RIGHTS_VERSION:
        found.append(
            "Redis 6.2 can't tell keys that a user may read from keys that it may write: the broker can overwrite and "
            "delete snapshots, leases, events and the inventory of the namespace; Redis 7 or Valkey confines it"
        )
    if role is Role.WORKER:
        found.append("the worker uses SCAN, which shows it the names of all keys in its database, but no contents")
    return tuple(found)


def user_name(role: Role, prefix: str) -> str:
    """Return the name of a role's user; raises ValueError for a prefix that an ACL file would not take."""
    if not _PREFIX.match(prefix):
        raise ValueError(f"{prefix!r} can't begin a user's name: use letters, digits, '.', '_', ':', '@' and '-'")
    return f"{prefix}{role.value}"
