"""store: the schema's writes, as workers make them: leases, snapshots, states, the published inventory.

Every write about a target is one Lua script over that target's keys and checks the writer's lease (lua/*.lua), so
that a worker that was paused or cut off can't overwrite what its successor wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Any, cast

import redis

from x2gofleet.connection import Command, Link, WrongKeyType, link_of, unavailable
from x2gofleet.errors import CacheUnavailable
from x2gofleet.events import Change, equal_shares
from x2gofleet.fleet import PublishedFleet
from x2gofleet.hints import hint_field
from x2gofleet.keys import Keys, server_of
from x2gofleet.kinds import Kind
from x2gofleet.snapshot import SCHEMA_VERSION

FLEET_TTL_MS = 24 * 3600 * 1000
REQUEST_TTL_MS = 60 * 1000
HOSTS_TTL_MS = 24 * 3600 * 1000
# Longer than the longest back-off: of two servers with one host name, each finds the other while both fail.
HOST_NAME_VALID_MS = 90 * 1000
ANY_LISTING = "*"
EVENTS_KEPT = 1000
EVENTS_TTL_MS = 7 * 24 * 3600 * 1000


log = logging.getLogger(__name__)


def _decoded(text: bytes) -> str:
    """Return a text of Redis's, whoever wrote it."""
    return text.decode("utf-8", "replace")


def _escape_glob(text: str) -> str:
    return "".join(f"\\{char}" if char in "*?[]\\" else char for char in text)


class Outcome(StrEnum):
    """What a script did with a write; the words are those of lua/*.lua."""

    STORED = "stored"
    ABSENT = "absent"
    LOST = "lost"
    OLDER = "older"
    EXPIRED = "expired"
    FUTURE = "future"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write about one target: proven by ``nonce``, ordered by ``fence``."""

    target: str
    nonce: str
    fence: int


@dataclass(frozen=True, slots=True)
class Listing:
    """A full listing of one kind, ready to be stored. Times are ms on the clock of Redis.

    ``changes`` are told since the listing whose digest is ``replaces``: "" where there is none, ``*`` for any.
    ``source`` is what the rows were made from: ``records``, ``command`` or ``probe``. ``host_name`` is the name under
    which the server has its sessions, "" where the listing does not show it.
    """

    kind: Kind
    stdout: bytes
    digest: str
    polled_at_ms: int
    listed_at_ms: int
    duration_ms: int
    ttl_ms: int
    state_ttl_ms: int
    exit_status: int = 0
    rejected_rows: int = 0
    source: str = "command"
    host_name: str = ""
    replaces: str = ANY_LISTING
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Publication:
    """What came of publishing: ``version`` is what is published now, since ``published_at_ms`` on Redis's clock."""

    accepted: bool
    version: str
    published_at_ms: int


@dataclass(frozen=True, slots=True)
class Member:
    """A live worker, as it tells of itself."""

    id: str
    weight: float = 1.0
    inventory: str = ""


class Script:
    """One Lua script: EVALSHA, and EVAL where the server doesn't know it."""

    def __init__(self, name: str, *, part: str | None = None) -> None:
        """Read ``lua/<name>.lua``, after ``lua/parts/<part>.lua`` whose functions it uses."""
        folder = resources.files("x2gofleet").joinpath("lua")
        files = [folder.joinpath(f"{name}.lua")]
        if part is not None:
            files.insert(0, folder.joinpath("parts", f"{part}.lua"))
        self.text = "".join(file.read_text(encoding="utf-8") for file in files)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def run(self, link: Link, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Run the script with each (keys, arguments) and return the raw replies: one round trip.

        Where a server lacks the script, all calls are made once more: a script must bear that.
        """
        try:
            return link.exchange([("EVALSHA", self.sha, len(keys), *keys, *args) for keys, args in calls])
        except redis.exceptions.NoScriptError:
            return link.exchange([("EVAL", self.text, len(keys), *keys, *args) for keys, args in calls])


def _entries(listing: Listing) -> str:
    """Return the entries of the events stream as lua/store.lua takes them."""
    at = str(listing.polled_at_ms)
    return json.dumps(
        [
            [
                *("kind", change.kind.value, "at", at, "session", change.session),
                *("username", change.username, "status", change.status),
                *(("left_out", str(left_out)) if left_out else ()),
            ]
            for change, left_out in equal_shares(listing.changes, EVENTS_KEPT)
        ]
    )


def drop_other_types(link: Link, keys: Keys, named: Iterable[str]) -> int:
    """Delete those of some keys that hold another type of value than the schema has there; return how many.

    One of them does: an exchange about them failed with WRONGTYPE. Raises redis-py's errors.
    """
    names = list(dict.fromkeys(named))
    # Of a single one there is no other that it could be.
    wrong = names if len(names) == 1 else _of_other_types(link, keys, names)
    for name in wrong:
        log.warning("the key %s held another type of value than x2gofleet stores there: it is deleted", name)
    if wrong:
        link.exchange([("DEL", name) for name in wrong])
    return len(wrong)


def _of_other_types(link: Link, keys: Keys, names: Iterable[str]) -> list[str]:
    probes = {name: probe for name in names if (probe := _probe(keys, name)) is not None}
    try:
        replies = link.exchange(list(probes.values()))
    except WrongKeyType as exc:
        replies = exc.replies
    return [name for name, reply in zip(probes, replies, strict=True) if isinstance(reply, Exception)]


def _probe(keys: Keys, name: str) -> Command | None:
    """Return a command that a worker may use on a key, and that fails where the key has not its own type."""
    last = name.rpartition(":")[2]
    if name == keys.workers():
        return ("ZREMRANGEBYSCORE", name, "(0", "(0")
    if name.startswith(f"{keys.namespace}:refresh:"):
        return None
    if name.startswith(f"{keys.namespace}:{{") and last == "fence":
        return ("GET", name)
    if name == keys.changes() or (name.startswith(f"{keys.namespace}:{{") and last == "events"):
        return ("XLEN", name)
    return ("HGET", name, "")


def _weight(text: bytes | None) -> float:
    try:
        weight = float(text or 1.0)
    except ValueError:
        return 1.0
    return weight if 0 < weight < math.inf else 1.0


class RedisClock:
    """Reads the clock of Redis as a lower bound, without asking each time.

    A reply of TIME was true when it was sent, so that its value plus the monotonic time passed since its receipt is
    never later than the time of Redis.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._anchor: tuple[int, float] | None = None

    def set(self, now_ms: int) -> None:
        """Take over a time that Redis has just replied."""
        self._anchor = (now_ms, self._monotonic())

    def now_ms(self) -> int | None:
        """Return the time of Redis in ms, as a lower bound; None before the first reply."""
        return self.at_ms(self._monotonic())

    def at_ms(self, moment: float) -> int | None:
        """Return the time of Redis at a moment of the monotonic clock, past or future, as a lower bound."""
        anchor = self._anchor
        return None if anchor is None else anchor[0] + math.floor((moment - anchor[1]) * 1000)


class Store:
    """The writes of one worker. All methods raise CacheUnavailable when Redis can't be asked."""

    def __init__(self, client: redis.Redis | Link, keys: Keys, worker_id: str) -> None:
        """Write over a redis-py client, whose own timeouts hold, or over a link."""
        self.link, self.keys, self.worker_id = link_of(client), keys, worker_id
        self.clock = RedisClock()
        self._clocks: dict[str, RedisClock] = {}
        self._acquire, self._renew, self._release = Script("acquire"), Script("renew"), Script("release")
        self._store, self._confirm, self._fail = (Script(name, part="events") for name in ("store", "confirm", "fail"))
        self._discard, self._publish, self._intact = Script("discard"), Script("publish"), Script("intact")
        self._host_name = Script("host_name")
        self._document_digest: tuple[PublishedFleet, str] | None = None
        self._seq = itertools.count(1)

    def close(self) -> None:
        """Close the connections to Redis."""
        self.link.close()

    def _ask(self, commands: Sequence[Command], what: str, *, near: str | None = None) -> list[Any]:
        keys = (str(command[1]) for command in commands if len(command) > 1)
        return self._repairing(lambda: self.link.exchange(commands, near=near), keys, what)

    def _run_all(self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Any]]], what: str) -> list[Any]:
        keys = (key for of_call, _ in calls for key in of_call)
        return self._repairing(lambda: script.run(self.link, calls), keys, what)

    def _repairing(self, ask: Callable[[], list[Any]], keys: Iterable[str], what: str) -> list[Any]:
        """Return what ``ask`` returns; where a key has another type than its own, delete it and ask again, once."""
        try:
            try:
                return ask()
            except redis.exceptions.ResponseError as exc:
                # Redis 6.2 puts other words before those of a command that a script called.
                if "WRONGTYPE" not in str(exc) or not drop_other_types(self.link, self.keys, keys):
                    raise
                return ask()
        except (redis.exceptions.RedisError, OSError) as exc:
            raise unavailable(exc, what) from exc

    def _run(self, script: Script, keys: Sequence[str], args: Sequence[Any], what: str) -> Any:
        return self._run_all(script, [(keys, args)], what)[0]

    def _clock_of(self, target: str | None) -> RedisClock:
        # Each node of a Cluster has a clock of its own, and a target's keys may move to another node.
        if target is None or self.link.one_clock:
            return self.clock
        return self._clocks.setdefault(target, RedisClock())

    def _outcome(self, target: str, reply: Any) -> Outcome:
        self._clock_of(target).set(int(reply[1]))
        return Outcome(reply[0].decode())

    def now_ms(self, target: str | None = None) -> int | None:
        """Return the time of the Redis that has a target's keys, or the inventory, in ms: a lower bound.

        None before its first reply: then ``sync_clock`` asks.
        """
        return self._clock_of(target).now_ms()

    def next_seq(self) -> int:
        """Return a number that grows with each write, whichever target it is about."""
        return next(self._seq)

    def at_ms(self, target: str, moment: float) -> int:
        """Return what the time of the Redis that has a target's keys was at a moment of time.monotonic, in ms."""
        clock = self._clock_of(target)
        known = clock.at_ms(moment)
        if known is None:
            self.sync_clock(target)
            known = clock.at_ms(moment)
        return cast(int, known)

    def sync_clock(self, target: str | None = None) -> int:
        """Ask the Redis that has a target's keys, or the inventory, for its time, in ms, and anchor its clock to it."""
        near = self.keys.fleet() if target is None else self.keys.lease(target)
        now_ms = self._time(near)
        self._clock_of(target).set(now_ms)
        return now_ms

    def _time(self, near: str) -> int:
        ((seconds, micros),) = self._ask([("TIME",)], "asking Redis for its time", near=near)
        return int(seconds) * 1000 + int(micros) // 1000

    def acquire(self, target: str, *, ttl_ms: int, nonce: str | None = None) -> Lease | str:
        """Take the lease of ``target``; return it, or the id of the worker that holds it."""
        nonce = nonce or secrets.token_hex(8)
        keys = (self.keys.lease(target), self.keys.fence(target))
        reply = self._run(self._acquire, keys, (self.worker_id, nonce, ttl_ms), f"taking the lease of {target}")
        if reply[0] == b"acquired":
            return Lease(target, nonce, int(reply[1]))
        return _decoded(reply[1])

    def renew(self, leases: Sequence[Lease], *, ttl_ms: int) -> list[bool]:
        """Renew leases in one round trip; return for each whether it is still held."""
        calls = [((self.keys.lease(lease.target),), (lease.nonce, ttl_ms)) for lease in leases]
        return [reply == 1 for reply in self._run_all(self._renew, calls, "renewing leases")]

    def release(self, lease: Lease) -> bool:
        """Give a lease back; False where it was not held any more."""
        what = f"releasing the lease of {lease.target}"
        return bool(self._run(self._release, (self.keys.lease(lease.target),), (lease.nonce,), what))

    def _listing_keys(self, target: str, kind: Kind) -> tuple[str, ...]:
        keys = self.keys
        return keys.lease(target), keys.snapshot(target, kind), keys.state(target), keys.events(target)

    def stored(self, target: str, kind: Kind) -> tuple[str, bytes] | None:
        """Return digest and stdout of the stored listing, None where there is none."""
        command = ("HMGET", self.keys.snapshot(target, kind), "digest", "stdout")
        ((digest, stdout),) = self._ask([command], f"reading the stored {kind.value} of {target}")
        return (_decoded(digest), stdout) if digest is not None and stdout is not None else None

    def recorded_host_name(self, target: str) -> str:
        """Return the host name under which the server last had its sessions, "" where none is recorded."""
        return self.recorded_host_names([target])[target]

    def recorded_host_names(self, targets: Sequence[str]) -> dict[str, str]:
        """Return the same of many targets, in one round trip."""
        commands = [("HMGET", self.keys.state(target), "host_name") for target in targets]
        found = self._ask(commands, "reading the recorded host names")
        return {
            target: name.decode("utf-8", "replace") if name is not None else ""
            for target, (name,) in zip(targets, found, strict=True)
        }

    def record_host_name(
        self, server: str, host_name: str, database: str, *, valid_ms: int = HOST_NAME_VALID_MS
    ) -> tuple[str, ...]:
        """Record the host name that a server has on a database.

        Returns the other servers that have it there, by what was recorded in the last ``valid_ms``.
        """
        digest = hashlib.blake2b(f"{database}\0{host_name}".encode(), digest_size=16).hexdigest()
        args = (server, digest, valid_ms, HOSTS_TTL_MS)
        found = self._run(self._host_name, (self.keys.hosts(),), args, f"recording the host name of {server}")
        return tuple(sorted(other.decode("utf-8", "replace") for other in found))

    def store(self, lease: Lease, seq: int, listing: Listing) -> Outcome:
        """Store a full listing."""
        target, kind = lease.target, listing.kind
        keys = self._listing_keys(target, kind)
        args = (
            lease.nonce,
            lease.fence,
            seq,
            listing.polled_at_ms,
            listing.ttl_ms,
            listing.state_ttl_ms,
            kind.value,
            listing.digest,
            listing.replaces,
            _entries(listing),
            EVENTS_KEPT,
            EVENTS_TTL_MS,
            listing.host_name,
            *("stdout", listing.stdout),
            *("exit_status", listing.exit_status),
            *("listed_at", listing.listed_at_ms),
            *("duration_ms", listing.duration_ms),
            *("worker", self.worker_id),
            *("schema", SCHEMA_VERSION),
            *("rejected_rows", listing.rejected_rows),
            *("source", listing.source),
        )
        return self._outcome(target, self._run(self._store, keys, args, f"storing the {kind.value} of {target}"))

    def confirm(
        self,
        lease: Lease,
        seq: int,
        kind: Kind,
        *,
        digest: str,
        polled_at_ms: int,
        ttl_ms: int,
        state_ttl_ms: int,
    ) -> Outcome:
        """Confirm that the stored listing with ``digest`` still holds at ``polled_at_ms``."""
        target = lease.target
        keys = self._listing_keys(target, kind)
        args = (
            *(lease.nonce, lease.fence, seq, polled_at_ms, ttl_ms, state_ttl_ms, kind.value, digest),
            *(EVENTS_KEPT, EVENTS_TTL_MS),
        )
        return self._outcome(target, self._run(self._confirm, keys, args, f"confirming the {kind.value} of {target}"))

    def fail(
        self,
        lease: Lease,
        kinds: Iterable[Kind],
        *,
        failed_at_ms: int,
        state_ttl_ms: int,
        error_class: str,
        error_text: str,
    ) -> Outcome:
        """Record that polls of ``kinds`` failed; snapshots stay as they are."""
        target = lease.target
        keys = (self.keys.lease(target), self.keys.state(target), self.keys.events(target))
        args = (
            *(lease.nonce, lease.fence, failed_at_ms, state_ttl_ms, error_class, error_text),
            *(EVENTS_KEPT, EVENTS_TTL_MS),
        )
        names = [kind.value for kind in kinds]
        return self._outcome(target, self._run(self._fail, keys, (*args, *names), f"recording a failure of {target}"))

    def discard(self, lease: Lease, kinds: Iterable[Kind]) -> Outcome:
        """Drop the snapshots of ``kinds``."""
        target = lease.target
        keys = (self.keys.lease(target), *(self.keys.snapshot(target, kind) for kind in kinds))
        return self._outcome(target, self._run(self._discard, keys, (lease.nonce, lease.fence), f"dropping {target}"))

    def publish(self, fleet: PublishedFleet, *, force: bool = False) -> Publication:
        """Publish the inventory, or keep it from expiring, unless a newer one is published.

        ``force`` replaces whatever is there: for a document that can't be read.
        """
        args = (fleet.version, fleet.to_json(), FLEET_TTL_MS, int(force))
        reply = self._run(self._publish, (self.keys.fleet(),), args, "publishing the inventory")
        self.clock.set(int(reply[3]))
        return Publication(reply[0] == b"stored", _decoded(reply[1]), int(reply[2]))

    def is_intact(self, fleet: PublishedFleet, version: str) -> bool:
        """Whether an inventory is published as ``publish`` published it, under that version: the document is compared.

        Redis compares digests, which costs it about 3 ms for each MB of the document.
        """
        known = self._document_digest
        if known is None or known[0] is not fleet:
            # Asked each second, of an inventory that seldom changes.
            document = fleet.to_json().encode()
            self._document_digest = known = fleet, hashlib.sha1(document, usedforsecurity=False).hexdigest()
        args = (version, known[1])
        return bool(self._run(self._intact, (self.keys.fleet(),), args, "looking at the published inventory"))

    def published_version(self) -> str | None:
        """Return the version that is published now."""
        (version,) = self._ask([("HGET", self.keys.fleet(), "version")], "reading the published inventory")
        return _decoded(version) if version else None

    def published(self) -> PublishedFleet | None:
        """Return what is published now. Raises SnapshotCorrupt where no worker published that."""
        command = ("HMGET", self.keys.fleet(), "version", "document")
        ((version, document),) = self._ask([command], "reading the published inventory")
        if version is None and document is None:
            return None
        return PublishedFleet.from_hash(version, document)

    def drop_targets(self, targets: Collection[str]) -> int:
        """Delete all keys but the fence of targets that are in no inventory any more, and the hints of them.

        Returns how many keys went.
        """
        commands = []
        for target in targets:
            names = [self.keys.snapshot(target, kind) for kind in Kind]
            names += [self.keys.state(target), self.keys.lease(target), self.keys.events(target)]
            commands.append(("DEL", *names))
            self._clocks.pop(target, None)
        fields = [hint_field(target, kind) for target in targets for kind in Kind]
        if not fields:
            return 0
        *dropped, _ = self._ask([*commands, ("HDEL", self.keys.fresh(), *fields)], "dropping removed targets")
        self._forget_host_names(targets)
        return sum(dropped)

    def _forget_host_names(self, targets: Collection[str]) -> None:
        # ACL rules of earlier versions do not allow this key. Entries that stay expire soon.
        with contextlib.suppress(CacheUnavailable):
            self._ask([("HDEL", self.keys.hosts(), *targets)], "dropping host names of removed targets")

    def _scan(self, match: str, what: str) -> list[bytes]:
        try:
            return list(self.link.scan(match))
        except (redis.exceptions.RedisError, OSError) as exc:
            raise unavailable(exc, what) from exc

    def users_desktops(self, server: str) -> tuple[str, ...]:
        """Return the targets ``user@server`` of whose desktops there is a snapshot, whoever stored it."""
        pattern = self.keys.snapshot(f"*@{server}", Kind.DESKTOPS).removeprefix(self.keys.namespace)
        found = self._scan(f"{_escape_glob(self.keys.namespace)}{pattern}", f"looking for desktops of {server}")
        names = {key.decode("utf-8", "replace").partition("{")[2].partition("}")[0] for key in found}
        return tuple(sorted(name for name in names if server_of(name) == server))

    def drop_orphans(self, known: Collection[str]) -> int:
        """Delete the snapshots and states of targets that are not ``known``; return how many keys.

        A user's target on a known server (``alice@ts01``) is known with it.
        """
        prefix = f"{self.keys.namespace}:{{"
        orphans: set[str] = set()
        for key in self._scan(f"{_escape_glob(prefix)}*", "looking for removed targets"):
            target = key.decode("utf-8", "replace").removeprefix(prefix).partition("}")[0]
            if target not in known and server_of(target) not in known:
                orphans.add(target)
        return self.drop_targets(orphans)

    def heartbeat(self, facts: dict[str, str | int | float], *, ttl_ms: int) -> tuple[str, ...]:
        """Say that this worker is alive; return the ids of all live workers, this one included."""
        workers, mine = self.keys.workers(), self.keys.worker(self.worker_id)
        now_ms = self.sync_clock()
        if not self.link.one_clock:
            now_ms = self._time(workers)
        told = [part for fact in facts.items() for part in fact]
        replies = self._ask(
            [
                ("ZADD", workers, now_ms, self.worker_id),
                ("ZREMRANGEBYSCORE", workers, "-inf", now_ms - ttl_ms),
                # The clock of Redis was set back: the dead would stay members until it is as late again.
                ("ZREMRANGEBYSCORE", workers, now_ms + ttl_ms, "+inf"),
                ("PEXPIRE", workers, ttl_ms * 10),
                ("HSET", mine, *told),
                ("PEXPIRE", mine, ttl_ms),
                ("ZRANGE", workers, 0, -1),
            ],
            "telling that this worker is alive",
        )
        return tuple(map(_decoded, replies[-1]))

    def describe(self, workers: Sequence[str]) -> tuple[Member, ...]:
        """Return what live workers tell of themselves: one round trip."""
        commands = [("HMGET", self.keys.worker(worker), "weight", "inventory") for worker in workers]
        told = self._ask(commands, "asking which workers are alive")
        return tuple(
            Member(worker, _weight(weight), (inventory or b"").decode("utf-8", "replace"))
            for worker, (weight, inventory) in zip(workers, told, strict=True)
        )

    def leave(self) -> None:
        """Take this worker out of the list of live ones."""
        self._ask(
            [
                ("ZREM", self.keys.workers(), self.worker_id),
                ("DEL", self.keys.worker(self.worker_id)),
                ("DEL", self.keys.refresh_requests(self.worker_id)),
            ],
            "leaving the fleet",
        )

    def take_request(self, *, wait_seconds: float) -> bytes | None:
        """Wait for the next request to this worker, for Request.decode; None when there was none.

        ``wait_seconds`` must be well below the link's command timeout.
        """
        command = ("BLPOP", self.keys.refresh_requests(self.worker_id), wait_seconds)
        (reply,) = self._ask([command], "waiting for requests")
        return None if reply is None else bytes(reply[1])

    def answer_all(self, request_ids: Iterable[str], answer: bytes) -> None:
        """Give the same encoded answer to requests: one round trip."""
        commands: list[Command] = []
        for key in map(self.keys.refresh_answers, request_ids):
            commands += [("RPUSH", key, answer), ("PEXPIRE", key, REQUEST_TTL_MS)]
        self._ask(commands, "answering a request")
