"""The roles of `x2gofleet acl` on every version of Redis: each can do its work, and nothing that its work doesn't need.

What a role sends is what MONITOR shows of its connections while it does all that it can do.
"""

from __future__ import annotations

import codecs
import inspect
import json
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import redis
from redis.crc import key_slot
from x2gofleet_workers.health import live_workers
from x2gofleet_workers.hints import HintTeller
from x2gofleet_workers.simulator import running_simulation

from tests.acl_users import user_of, with_credentials
from tests.conftest import FleetBuilder
from tests.processes import WorkerProcess
from tests.servers import VERSIONS, Version, running_server
from tests.topologies import ServerProcess, cluster, free_port, sentinel_group
from tests.waiting import LOOKUP_SECONDS, PATIENT, wait_until
from x2gofleet import FleetCache
from x2gofleet.acl import Access, Right, Role, Topology, parse_version, rights, rules
from x2gofleet.cli import main
from x2gofleet.connection import client_from_url, link_from_url, link_of
from x2gofleet.errors import CacheUnavailable, RefreshFailed, Unavailable
from x2gofleet.events import Change, EventKind
from x2gofleet.hints import Hint
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.snapshot import digest_of
from x2gofleet.store import EVENTS_KEPT, Lease, Listing, Outcome, Store

from .conftest import PATIENT_SECONDS
from .reader import LOAD, Request, StubWorker, row

ROLES = list(Role)
# What anybody may send who is not logged in yet.
FREE = {"auth", "hello", "quit", "reset"}
BROKERS_METHODS = {
    *("register_session", "forget_session", "update", "update_all", "delete", "check_cache"),
    *("place", "reservations", "reserve", "release"),
}
LIFECYCLE = {"from_url", "close"}


@dataclass(frozen=True)
class Sent:
    """One command that a role sent, itself or from within a script."""

    name: str
    arguments: tuple[bytes, ...]
    keys: tuple[tuple[str, frozenset[str]], ...] = ()


@dataclass
class Server:
    """A Redis whose roles are tried by TCP, while everybody else uses its unix socket."""

    url: str
    own_url: str
    client: redis.Redis
    users: ExitStack
    running: Version

    @property
    def version(self) -> tuple[int, int]:
        return parse_version(self.client.info("server")["redis_version"])

    @property
    def confines(self) -> bool:
        """Whether it knows rights of keys."""
        return self.version >= (7, 0)

    def user(self, namespace: str, role: Role) -> str:
        """Return a URL with the credentials of a new user of a role."""
        return self.users.enter_context(user_of(self.client, self.url, namespace, role))

    def calls(self, command: str) -> int:
        """Return how often a command was run."""
        told = self.client.info("commandstats").get(f"cmdstat_{command}", {})
        return int(told.get("calls", 0))

    def refusals(self) -> list[Any]:
        """Return what was refused since the last call."""
        found = self.client.execute_command("ACL", "LOG")
        self.client.execute_command("ACL", "LOG", "RESET")
        return list(found)

    def keys_of(self, sent: Sent) -> Sent:
        """Ask Redis which keys a command touches, and how."""
        if not sent.arguments:
            return sent
        line = (*sent.name.encode().split(b"|"), *sent.arguments)
        try:
            if not self.confines:
                return Sent(*self._parts(sent), tuple((k.decode(), frozenset()) for k in self._ask("GETKEYS", *line)))
            found = self._ask("GETKEYSANDFLAGS", *line)
        except redis.exceptions.ResponseError as exc:
            if "no key" not in str(exc):
                raise
            return sent
        return Sent(*self._parts(sent), tuple((key.decode(), _access(flags)) for key, flags in found))

    @staticmethod
    def _parts(sent: Sent) -> tuple[str, tuple[bytes, ...]]:
        return sent.name, sent.arguments

    def _ask(self, *command: Any) -> list[Any]:
        connection = self.client.connection_pool.get_connection()
        try:
            connection.send_command("COMMAND", *command)
            return list(connection.read_response())
        finally:
            self.client.connection_pool.release(connection)


def _access(flags: Sequence[bytes]) -> frozenset[str]:
    return frozenset(
        ("R" if b"access" in flags else "") + ("W" if {b"insert", b"update", b"delete"} & set(flags) else "")
    )


@pytest.fixture(scope="module", params=VERSIONS.values(), ids=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    version: Version = request.param
    port = free_port()
    options = {"port": str(port), "bind": "127.0.0.1"}
    if version.release != "6.2":
        # Else these are refused to everybody, whatever the user may do.
        options |= {"enable-debug-command": "yes", "enable-module-command": "yes"}
    with running_server(version, options) as running:
        # Not database 0, which a connection is in without asking.
        own_url = running.url.replace("db=0", "db=1")
        client = client_from_url(own_url, **PATIENT)
        with client, ExitStack() as users:
            yield Server(f"redis://127.0.0.1:{port}/1", own_url, client, users, version)


@pytest.fixture
def keys() -> Keys:
    return Keys(f"test:{secrets.token_hex(6)}")


class Watch:
    """Notes each command that comes by TCP, with those that its scripts run, until the block ends."""

    _LINE = re.compile(rb"\+[0-9.]+ \[[0-9]+ ([^\]]+)\] (.*)\r\n", re.DOTALL)
    _TEXT = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)

    def __init__(self, server: Server) -> None:
        self._server = server
        self.sent: set[Sent] = set()

    def __enter__(self) -> Watch:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(urlsplit(self._server.own_url).path)
        self._socket.settimeout(30)
        self._lines = self._socket.makefile("rb")
        self._socket.sendall(b"MONITOR\r\n")
        assert self._lines.readline() == b"+OK\r\n"
        return self

    def __exit__(self, failure: object, *_: object) -> None:
        mark = secrets.token_hex(8).encode()
        self._server.client.execute_command("ECHO", mark)
        of_role = False
        for line in self._lines:
            found = self._LINE.fullmatch(line)
            assert found is not None, line
            client, text = found[1], found[2]
            words = [codecs.escape_decode(word)[0] for word in self._TEXT.findall(text)]
            if words[-1] == mark:
                break
            if client != b"lua":
                of_role = client.startswith(b"127.0.0.1:")
            if of_role and words[0].lower().decode() not in FREE:
                name, *arguments = words
                lower = name.decode().lower()
                if lower in ("script", "cluster", "client"):
                    lower = f"{lower}|{arguments.pop(0).decode().lower()}"
                self.sent.add(Sent(lower, tuple(arguments)))
        self._lines.close()
        self._socket.close()
        if failure is None:
            self.sent = {self._server.keys_of(each) for each in self.sent}


class Recorder:
    """Passes everything on to an object, and notes which of its methods were called."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.called.add(name)
        return getattr(self._inner, name)


def public_methods(cls: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(cls, callable) if not name.startswith("_")} - LIFECYCLE


# Lives: all that each role can do.


@contextmanager
def filled(server: Server, keys: Keys) -> Iterator[FleetBuilder]:
    """A fleet in which ts01 is up and ts02 is down, and a session is registered."""
    client = client_from_url(server.own_url, **PATIENT)
    fleet = FleetBuilder(Store(client, keys, "w1"))
    fleet.publish({"mate": ["ts01", "ts02"]})
    fleet.listing("ts01", "sessions", row("alice"))
    fleet.listing("ts01", "mounts", b"")
    fleet.listing("ts01", "load", LOAD)
    fleet.listing("alice@ts01", "desktops", b"alice@:50\n")
    fleet.failure("ts02")
    fleet.store.heartbeat({"host": "h"}, ttl_ms=60_000)
    with FleetCache(client, namespace=keys.namespace, lookup_seconds=LOOKUP_SECONDS) as cache:
        cache.register_session("6c3f", "mate", "alice")
        yield fleet
    client.close()


def look_up(cache: Any) -> None:
    """Call every method that a reader has, and see that each answers."""
    assert cache.profiles() == ("mate",)
    assert cache.is_cached(profile_name="mate", cache_type="sessions")
    assert cache.is_cached(session_uuid="6c3f")
    assert len(cache.list_sessions("6c3f")) == 1
    assert len(cache.find_sessions(username="alice").rows) == 1
    assert list(cache.list_desktops(profile_name="mate", username="alice")) == ["alice@:50"]
    assert list(cache.list_mounts(profile_name="mate")) == []
    assert set(cache.load("mate")) == {"ts01"}
    assert len(cache.snapshots(profile_name="mate", kind="sessions")) == 1
    assert cache.view("sessions", profile_name="mate").cached
    assert [status.up for status in cache.servers()] == [True, False]
    assert [event.kind for event in cache.events().events] == ["server_down"]


def follow(server: Server, keys: Keys, url: str, fleet: FleetBuilder) -> None:
    """Look up in a mirror, and see that it comes to know of a change."""
    hints = HintTeller(link_from_url(server.own_url), keys)
    with FleetCache.from_url(url, namespace=keys.namespace, mirror=True, lookup_seconds=PATIENT_SECONDS) as cache:
        cache.resync()
        look_up(cache)
        wait_until(lambda: b" cmd=xread " in raw(server.client, "CLIENT", "LIST"), "the mirror waits for changes")
        fleet.listing("ts01", "sessions", row("alice") + row("bob", 51))
        at_ms = fleet.store.sync_clock()
        before = server.calls("xread")
        hints.stored("ts01", Kind.SESSIONS, Hint(at_ms, at_ms, at_ms + 60_000, "changed"))
        hints.tell()
        wait_until(lambda: server.calls("xread") > before, "the mirror is told")
        wait_until(lambda: len(cache.find_sessions(username="bob").rows) == 1, "the mirror knows of bob")
    hints.stop()


def read(server: Server, keys: Keys, url: str) -> None:
    """Live the life of a reader."""
    with (
        filled(server, keys) as fleet,
        FleetCache.from_url(url, namespace=keys.namespace, lookup_seconds=PATIENT_SECONDS) as cache,
    ):
        recorder = Recorder(cache)
        look_up(recorder)
        recorder.resync()
        follow(server, keys, url, fleet)
        assert recorder.called == public_methods(FleetCache) - BROKERS_METHODS


def broker(server: Server, keys: Keys, url: str) -> None:
    """Live the life of a broker."""
    with filled(server, keys) as fleet:

        def obey(request: Request) -> Request:
            for kind in request.get("kinds", ()):
                fleet.listing(request["target"], kind, LOAD if kind == "load" else b"")
            stored = [[request["target"], kind] for kind in request.get("kinds", ())]
            return {"target": request.get("target", ""), "stored": stored, "error": "", "dropped": 0}

        with (
            StubWorker(server.own_url, keys, "w1", obey),
            FleetCache.from_url(url, namespace=keys.namespace, lookup_seconds=PATIENT_SECONDS) as cache,
        ):
            look_up(cache)
            follow(server, keys, url, fleet)
            recorder = Recorder(cache)
            recorder.register_session("7d4e", "mate", "bob")
            recorder.forget_session("7d4e")
            assert {found.server for found in recorder.update("mate")} == {"ts01", "ts02"}
            recorder.update_all()
            recorder.delete("mate")
            recorder.check_cache()
            fleet.listing("ts01", "sessions", row("carol"))
            fleet.listing("ts02", "sessions", b"")
            assert recorder.place("mate", "alice").server == "ts02"
            recorder.reserve("ts01", "carol")
            assert recorder.reservations("mate") == {"ts01": 0, "ts02": 1}
            # Carol has her session: what was reserved for it is given back by the next choice.
            assert recorder.place("mate", "dave").server in ("ts01", "ts02")
            assert recorder.release("ts02", "alice") is True
            assert recorder.called == BROKERS_METHODS


def listing(at_ms: int, stdout: bytes, **more: Any) -> Listing:
    return Listing(Kind.SESSIONS, stdout, digest_of(Kind.SESSIONS, stdout), at_ms, at_ms, 12, 60_000, 90_000, **more)


def write(url: str, keys: Keys) -> None:
    """Call every method of a worker's store."""
    with client_from_url(url, **PATIENT) as client:
        store: Any = Recorder(Store(client, keys, "w1"))
        assert store.renew([Lease("ts01", "none", 1)], ttl_ms=60_000) == [False]
        lease = store.acquire("ts01", ttl_ms=60_000)
        assert isinstance(lease, Lease)
        assert store.acquire("ts01", ttl_ms=60_000, nonce=lease.nonce) == lease
        assert store.renew([lease], ttl_ms=60_000) == [True]
        store.fail(
            lease, [Kind.SESSIONS], failed_at_ms=store.sync_clock(), state_ttl_ms=90_000, error_class="E", error_text=""
        )
        # So many that the stream is cut.
        changes = (Change(EventKind.STARTED, "s", "alice", "R"),) * EVENTS_KEPT
        for replaces in ("", "*"):
            found = listing(store.sync_clock(), row(), replaces=replaces, changes=changes)
            assert store.store(lease, store.next_seq(), found) is Outcome.STORED
        assert store.stored("ts01", Kind.SESSIONS) == (found.digest, found.stdout)
        assert store.recorded_host_name("ts01") == ""
        assert store.recorded_host_names(["ts01", "ts02"]) == {"ts01": "", "ts02": ""}
        assert store.record_host_name("ts01", "ts01", "1.2") == ()
        assert store.record_host_name("ts02", "ts01", "1.2") == ("ts01",)
        assert store.record_host_name("ts01", "renamed", "1.2") == ()
        assert store.record_host_name("ts02", "renamed-too", "1.2") == ()
        store.fail(
            lease, [Kind.SESSIONS], failed_at_ms=store.sync_clock(), state_ttl_ms=90_000, error_class="E", error_text=""
        )
        confirmed = store.confirm(
            lease,
            store.next_seq(),
            Kind.SESSIONS,
            digest=found.digest,
            polled_at_ms=store.sync_clock(),
            ttl_ms=60_000,
            state_ttl_ms=90_000,
        )
        assert confirmed is Outcome.STORED
        fleet = FleetBuilder(store)
        published = fleet.publish({"mate": ["ts01"]})
        store.publish(published)
        assert store.published_version() == published.version
        assert store.published() == published
        assert store.is_intact(published, published.version)
        desktops = store.acquire("alice@ts01", ttl_ms=60_000)
        now = store.sync_clock()
        empty = Listing(Kind.DESKTOPS, b"", digest_of(Kind.DESKTOPS, b""), now, now, 1, 60_000, 90_000)
        store.store(desktops, store.next_seq(), empty)
        assert store.users_desktops("ts01") == ("alice@ts01",)
        assert store.discard(desktops, [Kind.DESKTOPS]) is Outcome.STORED
        assert store.release(desktops)
        assert store.drop_orphans(()) > 0
        assert store.drop_targets(["ts01"]) == 0
        assert store.heartbeat({"host": "h"}, ttl_ms=60_000) == ("w1",)
        assert [member.id for member in store.describe(["w1"])] == ["w1"]
        assert live_workers(client, keys, "h") == ("w1",)
        assert store.take_request(wait_seconds=0.01) is None
        before_ms = store.now_ms("ts01")
        assert store.at_ms("ts01", time.monotonic()) >= before_ms
        store.answer_all(["r2", "r3"], b"{}")
        store.leave()
        assert store.called - {"link", "keys", "clock"} == public_methods(Store)
        tell(url, keys)


def tell(url: str, keys: Keys) -> None:
    """Tell mirrors of a poll, of a snapshot that was dropped, and sweep."""
    hints = HintTeller(link_from_url(url), keys)
    hints.stored("ts01", Kind.SESSIONS, Hint(1, 1, 2, "digest"))
    hints.dropped("ts01", [Kind.LOAD])
    hints.tell()
    assert hints.sweep() == 1
    hints.stop()


def polls(cache: FleetCache) -> bool:
    profiles = cache.profiles()
    return bool(profiles) and all(cache.is_cached(name, cache_type="sessions") for name in profiles)


def work(server: Server, keys: Keys, url: str) -> None:
    """Live the life of a worker: each write by itself, then a real process that polls and obeys."""
    server.client.script_flush()
    # Keys of another type than theirs are deleted first.
    for key in (keys.fleet(), keys.hosts(), keys.workers(), keys.state("ts01")):
        server.client.set(key, "x", ex=60)
    write(url, keys)
    with tempfile.TemporaryDirectory(prefix="x2gofleet-test-") as name, running_simulation(2, 4) as simulation:
        folder = Path(name)
        simulation.write_inventory(folder / "fleet.toml")
        options = ["--inventory", str(folder / "fleet.toml"), "--redis-url", url, "--namespace", keys.namespace]
        worker = WorkerProcess("w2", folder / "log", options, {})
        try:
            with FleetCache.from_url(server.own_url, namespace=keys.namespace, lookup_seconds=PATIENT_SECONDS) as cache:
                wait_until(lambda: polls(cache) or not worker.alive, "it polls")
                assert worker.alive, worker.said
                profile = cache.profiles()[0]
                assert cache.update(profile, update_desktops=True, update_mounts=True, username="alice", timeout=20)
                cache.delete(profile)
                cache.check_cache()
        finally:
            worker.stop()
        assert "Traceback" not in worker.said, worker.said
        assert "NOPERM" not in worker.said, worker.said


LIVES: dict[Role, Callable[[Server, Keys, str], None]] = {
    Role.READER: read,
    Role.BROKER: broker,
    Role.WORKER: work,
}

Seen = dict[tuple[int, Role], tuple[Keys, set[Sent]]]


@pytest.fixture(scope="module")
def seen() -> Seen:
    return {}


@pytest.fixture(params=ROLES, ids=[role.value for role in ROLES])
def role(request: pytest.FixtureRequest) -> Role:
    found: Role = request.param
    return found


@pytest.fixture
def life(server: Server, role: Role, seen: Seen) -> tuple[Keys, set[Sent]]:
    """The keys that a role lived with, and all that it sent; nothing was refused."""
    known = (id(server), role)
    if known not in seen:
        keys = Keys(f"test:{secrets.token_hex(6)}")
        url = server.user(keys.namespace, role)
        server.refusals()
        with Watch(server) as watch:
            LIVES[role](server, keys, url)
        assert server.refusals() == []
        seen[known] = keys, watch.sent
    return seen[known]


def used_of(right: Right, sent: set[Sent]) -> tuple[set[str], set[str], set[str]]:
    """Return the commands, key patterns and kinds of access of a right that were used."""
    commands, patterns, access = set(), set(), set()
    for each in sent:
        if each.name not in right.commands:
            continue
        matched = [[p for p in right.keys if matches(key, p)] for key, _ in each.keys]
        if all(matched):
            commands.add(each.name)
            patterns.update(p for found in matched for p in found)
            access.update(letter for _, flags in each.keys for word in flags for letter in word)
    return commands, patterns, access


def matches(key: str, pattern: str) -> bool:
    return fnmatchcase(key, pattern)


def test_a_role_has_the_rights_that_its_life_needs_and_no_other(
    server: Server, role: Role, life: tuple[Keys, set[Sent]]
) -> None:
    keys, sent = life
    granted = rights(role, keys)
    assert {each.name for each in sent} == {command for right in granted for command in right.commands}
    for right in granted:
        commands, patterns, access = used_of(right, sent)
        assert commands == set(right.commands), right
        assert patterns == set(right.keys), right
        if server.confines:
            assert access == {Access.READ: {"R"}, Access.WRITE: {"W"}, Access.BOTH: {"R", "W"}}[right.access], right


def commands_of(server: Server) -> dict[str, int]:
    """Return every command of a server, its subcommands where it tells of them, and how many words each needs."""
    found: dict[str, int] = {}

    def note(entry: Any) -> None:
        subcommands = entry[9] if len(entry) > 9 else ()
        if not subcommands:
            found[entry[0].decode().lower()] = abs(entry[1])
        for each in subcommands:
            note(each)

    connection = server.client.connection_pool.get_connection()
    try:
        connection.send_command("COMMAND")
        for entry in connection.read_response():
            note(entry)
    finally:
        server.client.connection_pool.release(connection)
    return found


def refused(client: redis.Redis, *command: Any) -> bool:
    """Whether the user may not send a command; what else comes of it is no matter."""
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command(*command)
        connection.read_response()
    except redis.exceptions.NoPermissionError:
        return True
    except redis.exceptions.ResponseError as exc:
        # EXEC tells the reason within an error of its own.
        return "NOPERM" in str(exc)
    finally:
        connection.disconnect()
        client.connection_pool.release(connection)
    return False


def test_every_command_but_its_own_is_refused(server: Server, role: Role, keys: Keys) -> None:
    granted = {command for right in rights(role, keys) for command in right.commands}
    with client_from_url(server.user(keys.namespace, role), **PATIENT) as client:
        tried = 0
        for name, words in commands_of(server).items():
            if name in FREE | granted:
                continue
            line = name.split("|")
            line += [keys.fleet()] * max(0, words - len(line))
            assert refused(client, *line), name
            tried += 1
    print(f"{role.value}: {len(granted)} commands granted, {tried} refused")
    assert tried > 150


DANGEROUS = [
    ("KEYS", "*"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("DEBUG", "SLEEP", "0"),
    ("SCRIPT", "FLUSH"),
    ("SCRIPT", "KILL"),
    ("SHUTDOWN", "NOSAVE"),
    ("REPLICAOF", "127.0.0.1", "1"),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "default", "off"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("MONITOR",),
    ("SWAPDB", "0", "1"),
    ("MIGRATE", "h", "1", "k", "0", "1"),
    ("INFO",),
]


def test_dangerous_commands_are_refused_from_scripts_too(server: Server, role: Role, keys: Keys) -> None:
    with client_from_url(server.user(keys.namespace, role), **PATIENT) as client:
        for command in DANGEROUS:
            assert refused(client, *command), command
        script = "local r = redis.pcall('KEYS', '*') return r.err or 'done'"
        if role is not Role.READER:
            said = client.execute_command("EVAL", script, 0)
            assert b"permission" in said or b"user executing the script can't run this command" in said
        else:
            assert refused(client, "EVAL", script, 0)
            assert refused(client, "EVALSHA", "0" * 40, 0)


def test_what_a_role_sends_is_refused_in_every_other_namespace(
    server: Server, role: Role, life: tuple[Keys, set[Sent]]
) -> None:
    keys, sent = life
    with client_from_url(server.user(keys.namespace, role), **PATIENT) as client:
        tried = set()
        for each in sent:
            if not each.keys:
                continue
            # Another one, one that this one's name begins, and none.
            for other in ("other", f"{keys.namespace}:b", f"{keys.namespace}b"):
                arguments = [
                    argument.replace(keys.namespace.encode(), other.encode(), 1)
                    if argument.startswith(keys.namespace.encode())
                    else argument
                    for argument in each.arguments
                ]
                assert refused(client, each.name, *arguments), (each.name, arguments)
                tried.add(each.name)
    assert tried == {name for right in rights(role, keys) for name in right.commands} - KEYLESS


@pytest.fixture
def one_server(server: Server, keys: Keys, samples: Path) -> None:
    """ts01 of profile mate has a session of alice."""
    builder = FleetBuilder(Store(server.client, keys, "w1"))
    builder.publish({"mate": ["ts01"]})
    builder.listing("ts01", "sessions", samples / "root-sqlite.txt")
    builder.listing("ts01", "load", "loadavg 0 0 0\nmemtotal_kb 1\nmemavailable_kb 1\ncpus 1\ncpu_mhz 1\n")


@pytest.mark.usefixtures("one_server")
def test_a_broker_without_eval_does_all_but_place(server: Server, keys: Keys) -> None:
    role = user_of(server.client, server.url, keys.namespace, Role.BROKER, may_eval=False)
    with role as url, FleetCache.from_url(url, namespace=keys.namespace, lookup_seconds=PATIENT_SECONDS) as cache:
        assert cache.is_cached("mate")
        assert cache.list_sessions(profile_name="mate", username="alice")
        cache.register_session("6c3f", "mate")
        cache.forget_session("6c3f")
        with pytest.raises(RefreshFailed, match="did not answer within"):
            cache.update("mate", timeout=0.1)
        assert cache.reservations("mate") == {"ts01": 0}
        assert cache.release("ts01", "zoe") is False
        for call in (lambda: cache.place("mate", "zoe"), lambda: cache.reserve("ts01", "zoe")):
            with pytest.raises(CacheUnavailable, match="the role broker") as told:
                call()
            assert told.value.reason is Unavailable.NO_PERMISSION
        with client_from_url(url, **PATIENT) as client:
            for command in (("EVAL", ENDLESS, 0), ("EVALSHA", "0" * 40, 0), ("SCRIPT", "LOAD", "return 1")):
                assert refused(client, *command)
            if server.confines:
                assert refused(client, "FCALL", "x", 0)


ENDLESS = "while true do end"


@pytest.mark.usefixtures("one_server")
def test_an_endless_script_of_a_broker_is_said_and_ends_by_script_kill(server: Server, keys: Keys) -> None:
    url = server.user(keys.namespace, Role.BROKER)
    admin = server.client
    limit = admin.config_get("lua-time-limit")["lua-time-limit"]
    admin.config_set("lua-time-limit", 50)
    with (
        FleetCache.from_url(server.user(keys.namespace, Role.READER), namespace=keys.namespace) as cache,
        client_from_url(url, command_timeout_seconds=0.2) as client,
    ):
        assert cache.is_cached("mate")
        try:
            with pytest.raises(redis.exceptions.TimeoutError):
                client.execute_command("EVAL", ENDLESS, 0)
            with pytest.raises(CacheUnavailable):
                cache.list_sessions(profile_name="mate", username="alice")
        finally:
            wait_until(lambda: script_is_killed(admin), "the script is killed")
        admin.config_set("lua-time-limit", limit)

        def is_answered() -> bool:
            try:
                return bool(cache.list_sessions(profile_name="mate", username="alice"))
            except CacheUnavailable:
                return False

        wait_until(is_answered, "lookups go on")


def script_is_killed(admin: redis.Redis) -> bool:
    """Kill the script that runs; whether none runs any more."""
    try:
        admin.script_kill()
    except redis.exceptions.ResponseError as exc:
        return "NOTBUSY" in str(exc)
    return False


KEYLESS = {"select", "time", "scan"}


WRITES: list[Callable[[str], tuple[Any, ...]]] = [
    lambda key: ("HSET", key, "stdout", "forged"),
    lambda key: ("DEL", key),
    lambda key: ("PEXPIRE", key, 1),
    lambda key: ("RPUSH", key, "x"),
    lambda key: ("ZADD", key, 1, "x"),
    lambda key: ("ZREM", key, "x"),
    lambda key: ("ZREMRANGEBYSCORE", key, 0, 1),
    lambda key: ("BLPOP", key, 0.01),
]


def protected(keys: Keys) -> list[str]:
    snapshots = [keys.snapshot("ts01", kind) for kind in Kind]
    of_target = [keys.state("ts01"), keys.lease("ts01"), keys.events("ts01"), keys.fence("ts01")]
    of_namespace = [keys.fleet(), keys.fresh(), keys.changes(), keys.workers(), keys.worker("w1")]
    return [*snapshots, *of_target, *of_namespace]


def test_a_broker_writes_nothing_that_workers_write(server: Server, keys: Keys) -> None:
    with client_from_url(server.user(keys.namespace, Role.BROKER), **PATIENT) as client:
        allowed = [(write(key), key) for write in WRITES for key in protected(keys) if not refused(client, *write(key))]
    if server.confines:
        assert allowed == []
    else:
        # As limits() says: there is no telling reads from writes.
        assert keys.snapshot("ts01", Kind.SESSIONS) in {key for _, key in allowed}
        assert keys.fence("ts01") not in {key for _, key in allowed}


def test_a_reader_writes_no_key(server: Server, keys: Keys) -> None:
    own = [keys.uuid("6c3f"), keys.refresh_requests("w1"), keys.refresh_answers("r1"), "elsewhere"]
    with client_from_url(server.user(keys.namespace, Role.READER), **PATIENT) as client:
        assert [w(key) for w in WRITES for key in (*protected(keys), *own) if not refused(client, *w(key))] == []


def test_a_right_that_is_missing_is_told_as_such(server: Server, keys: Keys) -> None:
    with (
        FleetCache.from_url(server.user(keys.namespace, Role.READER), namespace=keys.namespace) as cache,
        pytest.raises(CacheUnavailable, match=r"lacks a right: .* the role broker.* x2gofleet acl prints") as told,
    ):
        cache.register_session("6c3f", "mate")
    assert told.value.reason is Unavailable.NO_PERMISSION


def worker_without(server: Server, keys: Keys, users: ExitStack, *commands: str) -> Store:
    """Return the writes of a worker who may do less than its role."""
    url = users.enter_context(user_of(server.client, server.url, keys.namespace, Role.WORKER))
    raw(server.client, "ACL", "SETUSER", unquote(urlsplit(url).username or ""), *commands)
    return Store(users.enter_context(client_from_url(url, **PATIENT)), keys, "w1")


@pytest.mark.parametrize("missing", [["-xlen", "-xrevrange"], ["-xlen"], ["-xrevrange"]], ids="".join)
def test_with_the_rules_of_a_version_that_did_not_cut_streams_they_are_bounded_by_age(
    server: Server, keys: Keys, missing: list[str]
) -> None:
    with ExitStack() as users:
        store = worker_without(server, keys, users, *missing)
        lease = store.acquire("ts01", ttl_ms=60_000)
        assert isinstance(lease, Lease)
        for number in range(5):
            changes = tuple(
                Change(EventKind.STARTED, f"s{number * EVENTS_KEPT + each}", "alice", "R")
                for each in range(EVENTS_KEPT)
            )
            found = listing(store.sync_clock(), row(), changes=changes)
            assert store.store(lease, store.next_seq(), found) is Outcome.STORED
        events: Any = server.client.xrange(keys.events("ts01"))
        assert 3 * EVENTS_KEPT <= len(events) < 4 * EVENTS_KEPT
        names = [f"s{number}".encode() for number in range(5 * EVENTS_KEPT)]
        assert [fields[b"session"] for _, fields in events] == names[-len(events) :]
        raw(server.client, "ACL", "LOG", "RESET")


def test_a_right_that_a_script_misses_is_told_as_such(server: Server, keys: Keys) -> None:
    with ExitStack() as users:
        store = worker_without(server, keys, users, "-hmget")
        with pytest.raises(CacheUnavailable, match=r"lacks a right: .* the role broker.* x2gofleet acl prints") as told:
            store.acquire("ts01", ttl_ms=1000)
        assert told.value.reason is Unavailable.NO_PERMISSION
        raw(server.client, "ACL", "LOG", "RESET")


# What is printed.


PASSWORDS = {"reader": "r=1 #", "broker": "b", "worker": "w\u00f6rker"}


@pytest.fixture
def passwords(tmp_path: Path) -> Path:
    path = tmp_path / "passwords"
    path.write_text(
        "# of the fleet\n\n" + "".join(f"{role}={word}\n" for role, word in PASSWORDS.items()), encoding="utf-8"
    )
    return path


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    assert main(["acl", *argv]) == 0
    return capsys.readouterr().out.splitlines()


def raw(client: redis.Redis, *command: Any) -> Any:
    """Send a command and return what Redis replied, as it came."""
    return link_of(client).exchange([command])[0]


def rights_of(client: redis.Redis, names: Sequence[str]) -> dict[str, Any]:
    """Return what ACL GETUSER tells of users, the words of each text sorted: each process has an order of its own."""

    def in_order(reply: Any) -> Any:
        return [in_order(each) for each in reply] if isinstance(reply, list) else sorted(reply.split())

    return {name: in_order(raw(client, "ACL", "GETUSER", name)) for name in names}


def logs_in(server: Server, name: str, password: str) -> bool:
    client = client_from_url(with_credentials(server.url, name, password))
    try:
        return bool(raw(client, "TIME"))
    except redis.exceptions.AuthenticationError:
        return False
    finally:
        client.close()


def test_what_is_printed_makes_the_users(
    server: Server, keys: Keys, passwords: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = f"{keys.namespace}-"
    asked = ("--redis-url", server.own_url, "--namespace", keys.namespace, "--user-prefix", prefix)
    names = [f"{prefix}{role.value}" for role in ROLES]
    commands = printed(capsys, *asked, "--format", "commands", "--passwords", str(passwords))
    for line in commands:
        assert raw(server.client, *line.split(" ")) == b"OK", line
    try:
        for role in ROLES:
            assert logs_in(server, f"{prefix}{role.value}", PASSWORDS[role.value])
            assert not logs_in(server, f"{prefix}{role.value}", PASSWORDS[role.value] + "x")
        by_commands = rights_of(server.client, names)
        # Again without passwords, as after an upgrade: nothing is added, and the passwords stay.
        for line in printed(capsys, *asked, "--format", "commands"):
            assert raw(server.client, *line.split(" ")) == b"OK", line
        assert rights_of(server.client, names) == by_commands
    finally:
        raw(server.client, "ACL", "DELUSER", *names)

    lines = printed(capsys, *asked, "--passwords", str(passwords))
    aclfile = passwords.with_name("users.acl")
    aclfile.write_text("\n".join(lines) + "\n")
    with (
        running_server(server.running, {"aclfile": str(aclfile)}) as running,
        client_from_url(running.url, **PATIENT) as client,
    ):
        assert rights_of(client, names) == by_commands
    for word in PASSWORDS.values():
        assert not any(f">{word}" in line for line in (*commands, *lines))


def test_a_new_user_without_a_password_lets_nobody_in(
    server: Server, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{keys.namespace}-reader"
    asked = ("--redis-url", server.own_url, "--user-prefix", f"{keys.namespace}-", "--role", "reader")
    (line,) = printed(capsys, *asked, "--format", "commands")
    raw(server.client, *line.split(" "))
    try:
        assert not logs_in(server, name, "")
        assert not logs_in(server, name, "x")
        raw(server.client, "ACL", "SETUSER", name, ">x")
        assert logs_in(server, name, "x")
    finally:
        raw(server.client, "ACL", "DELUSER", name)


def test_the_server_is_asked_for_its_version(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["acl", "--redis-url", server.own_url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    software, release = server.running.name.split("-")
    assert told["server_version"].lower().startswith(f"{software} {release}.")
    assert [user["name"] for user in told["users"]] == ["x2gofleet-reader", "x2gofleet-broker", "x2gofleet-worker"]
    for user in told["users"]:
        assert user["rules"] == rules(Role(user["role"]), server_version=server.version)
        assert ("clearselectors" in user["rules"]) == server.confines
    assert any("Redis 6.2 can't tell" in note for note in told["notes"]) != server.confines


def test_a_user_who_may_not_ask_for_the_version_is_told_what_to_do(
    server: Server, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["acl", "--redis-url", server.user(keys.namespace, Role.READER)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "--server-version" in err
    assert "may run INFO" in err


# More than one server.


class Group:
    """Servers that have the same users."""

    def __init__(self, servers: Sequence[ServerProcess], url: str) -> None:
        self.servers, self.url = servers, url

    @contextmanager
    def user(self, namespace: str, role: Role, topology: Topology) -> Iterator[tuple[str, str]]:
        """Make a user of a role on every server; yields its name, and the URL with its credentials."""
        name, password = f"{role.value}-{secrets.token_hex(4)}", secrets.token_hex(16)
        granted = rules(role, namespace=namespace, server_version=(7, 0), topology=topology)
        self.on_each("ACL", "SETUSER", name, *granted, f">{password}")
        yield name, with_credentials(self.url, name, password)
        self.on_each("ACL", "DELUSER", name)

    def on_each(self, *command: Any) -> list[Any]:
        return [raw(server.client, *command) for server in self.servers]

    def refused(self) -> set[bytes]:
        """Return what was refused on any server since the last call."""
        found = {dict(zip(e[::2], e[1::2], strict=True))[b"object"] for log in self.on_each("ACL", "LOG") for e in log}
        self.on_each("ACL", "LOG", "RESET")
        return found


def live(url: str, keys: Keys, more: Callable[[Store], None] = lambda store: None) -> None:
    """Write as a worker and look up with the same user, so far as that goes."""
    with closing(link_from_url(url, **PATIENT)) as link:
        fleet = FleetBuilder(Store(link, keys, "w1"))
        # New ones each time: an attempt that was refused half way leaves its leases.
        names = [f"{secrets.token_hex(4)}-{number}" for number in range(3)]
        fleet.publish({"mate": names})
        for name in names:
            fleet.listing(name, "sessions", row("alice"))
            fleet.failure(name)
        fleet.store.heartbeat({"host": "h"}, ttl_ms=60_000)
        fleet.store.drop_orphans(names)
        more(fleet.store)
        fleet.store.leave()


def needs(group: Group, name: str, command: str, attempt: Callable[[], None]) -> bool:
    """Whether a user that has lost a command is refused it."""
    group.on_each("ACL", "SETUSER", name, f"-{command}")
    try:
        with suppress(CacheUnavailable):
            attempt()
        return command.encode() in group.refused()
    finally:
        group.on_each("ACL", "SETUSER", name, f"+{command}")


def test_behind_sentinels_a_connection_needs_what_the_role_has_for_it(keys: Keys) -> None:
    with sentinel_group() as sentinels:
        group = Group(sentinels.servers, f"{sentinels.url.removesuffix('/0')}/1")
        with group.user(keys.namespace, Role.WORKER, Topology.SENTINEL) as (name, url):
            live(url, keys)
            assert group.refused() == set()
            for command in ("role", "select"):
                assert needs(group, name, command, lambda: live(url, keys)), command


def test_in_a_cluster_a_connection_needs_what_the_role_has_for_it(keys: Keys) -> None:
    with cluster(replicas=0) as nodes:
        group = Group(nodes.nodes, nodes.url)
        lease = keys.lease("ts09")
        source = nodes.primary_of(lease)
        target = next(node for node in nodes.nodes if node is not source)
        nodes.begin_move(key_slot(lease.encode()), source, target)

        def ask(store: Store) -> None:
            # Its slot migrates, and what is not there yet is looked for at the target, which wants ASKING.
            assert store.stored("ts09", Kind.SESSIONS) is None

        with group.user(keys.namespace, Role.WORKER, Topology.CLUSTER) as (name, url):
            live(url, keys, ask)
            assert group.refused() == set()
            for command in ("cluster|slots", "cluster|nodes", "asking"):
                assert needs(group, name, command, lambda: live(url, keys, ask)), command
