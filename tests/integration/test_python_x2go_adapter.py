"""The adapter under the system's Python, with python-x2go's own info types; clients and connections are stand-ins."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import FleetBuilder
from tests.system_python import RaisedThere, SystemPython, require
from tests.waiting import SLACK_SECONDS, wait_until
from x2gofleet.keys import Keys, target_id
from x2gofleet.kinds import Kind

from .reader import OwnValkey, Request, StubWorker, row, session_name

SAMPLES = Path(__file__).parent.parent / "samples"

START = """
import threading, time
import x2go
from x2go import X2GoClient, x2go_exceptions
from x2go.backends.info.plain import X2GoServerSessionInfo, X2GoServerSessionList
from x2gofleet import FleetCache
from x2gofleet.adapters import python_x2go
from x2gofleet.adapters.python_x2go import Settings, X2GoListSessionsCache

class Control:
    def __init__(self, username, hostname):
        self.username, self.hostname = username, hostname
        self.connected, self.died, self.hang = True, False, threading.Event()
        self.hang.set()
        self.sessions, self.desktops, self.mounts, self.raises, self.asked = b"", b"", {}, None, []
        self.associated_terminals, self.terminated_terminals = {}, []
    def has_session_died(self):
        return self.died
    def is_connected(self):
        return self.connected
    def remote_username(self):
        return self.username
    def get_hostname(self):
        return self.hostname
    def answer(self, kind, stdout):
        self.asked.append(kind)
        self.hang.wait()
        if self.raises is not None:
            raise self.raises
        return stdout, b""
    def list_sessions(self, raw=False):
        assert raw
        return self.answer("sessions", self.sessions)
    def list_desktops(self, raw=False):
        assert raw
        return self.answer("desktops", self.desktops)
    def list_mounts(self, name, raw=False):
        assert raw
        return self.answer("mounts", self.mounts.get(name, b"\\n"))

class Client:
    info_backend, list_backend = X2GoServerSessionInfo, X2GoServerSessionList
    def __init__(self, **controls):
        self.controls, self.connected = controls, set(controls)
    def get_session_profile_name(self, uuid):
        if uuid not in self.controls:
            raise x2go_exceptions.X2GoSessionRegistryException("No session found for UUID %s" % uuid)
        return uuid
    def client_control_session_of_profile_name(self, name):
        return self.controls.get(name)
    def client_connected_profiles(self, return_profile_names=False):
        assert return_profile_names
        return [name for name in self.controls if name in self.connected]

def statuses(sessions):
    return None if sessions is None else {name: info.status for name, info in sessions.items()}

control = Control("alice", "ts01")
client = Client(mate=control)
"""


@pytest.fixture
def python(tmp_path: Path) -> Iterator[SystemPython]:
    require("x2go", "python3-x2go")
    with SystemPython(tmp_path / "home") as python:
        python.run(START)
        yield python


class Adapter:
    """An X2GoListSessionsCache over there, of a client with the profile ``mate`` on ts01 as alice."""

    def __init__(self, python: SystemPython, url: str, namespace: str) -> None:
        self.python, self._url, self._namespace = python, url, namespace
        self.make()

    def make(self, settings: str = "refresh_seconds=0.5, fallback_seconds=1") -> None:
        self.python.run(
            f"fleet = FleetCache.from_url({self._url!r}, namespace={self._namespace!r})\n"
            f"cache = X2GoListSessionsCache(client, cache=fleet, settings=Settings({settings}))"
        )

    def value(self, expression: str) -> Any:
        return self.python.value(expression)

    def statuses(self) -> Any:
        return self.value("statuses(cache.list_sessions('mate'))")

    def cached(self, kind: str) -> Any:
        return self.value(f"cache.is_cached(session_uuid='mate', cache_type={kind!r})")

    def raised(self, expression: str) -> str:
        with pytest.raises(RaisedThere) as caught:
            self.python.value(expression)
        return caught.value.name


@pytest.fixture
def adapter(python: SystemPython, valkey_url: str, namespace: str) -> Adapter:
    return Adapter(python, valkey_url, namespace)


STARTING = row("alice", 51).replace(b"1368|", b"|", 1).replace(b"|35001|35002|", b"|||")


def test_what_is_cached_is_what_x2golistsessions_would_show(adapter: Adapter, fleet: FleetBuilder) -> None:
    fleet.publish({"mate": ["ts01"]})
    listing = row("alice", 50) + STARTING + row("alice", 52, "S") + row("alice", 53, "T") + row("alice", 54, "F")
    fleet.listing("ts01", "sessions", listing + row("bob", 60) + b"no row|bob|\n")
    fleet.listing("ts01", "mounts", f"{session_name('alice')}|10.1.2.3|/m\n{session_name('bob', 60)}|10.1.2.4|/n\n")
    fleet.listing("alice@ts01", "desktops", "alice@:50\n")
    assert adapter.statuses() == {session_name("alice", 50): "R", session_name("alice", 52): "S"} | {
        session_name("alice", 53): "T"
    }
    assert adapter.value(
        "{type(info) is X2GoServerSessionInfo for info in cache.list_sessions('mate').values()} == {True}"
    )
    info = f"cache.list_sessions('mate')[{session_name('alice')!r}]"
    assert adapter.value(f"[{info}.agent_pid, {info}.cookie, {info}.graphics_port, {info}.tekidata_port]") == [
        *(1368, "5ec4e7", 35001, -1)
    ]
    assert adapter.value("cache.list_desktops('mate')") == ["alice@:50"]
    assert adapter.value("cache.list_mounts('mate')") == {session_name("alice"): ["10.1.2.3|/m"]}
    assert [adapter.cached(kind) for kind in ("sessions", "desktops", "mounts", "load", "x")] == [True] * 3 + [
        False
    ] * 2
    assert adapter.value("cache.is_cached('mate')") is True
    assert adapter.value("control.asked") == []


def test_every_row_of_the_samples_is_as_python_x2go_parses_it(adapter: Adapter, fleet: FleetBuilder) -> None:
    fleet.publish({"mate": ["ts01"]})
    stdout = (SAMPLES / "user-alice-sqlite.txt").read_bytes()
    fleet.listing("ts01", "sessions", stdout)
    adapter.python.run(
        f"rows = [line for line in {stdout.decode()!r}.splitlines() if not line.startswith('|')]\n"
        "expected = X2GoServerSessionList('\\n'.join(rows)).get_sessions()\n"
        "found = cache.list_sessions('mate')"
    )
    assert adapter.value("len(found)") > 1
    assert adapter.value("{n: vars(i) for n, i in found.items()} == {n: vars(i) for n, i in expected.items()}") is True


def test_callers_own_what_they_get(adapter: Adapter, fleet: FleetBuilder) -> None:
    fleet.publish({"mate": ["ts01"]})
    fleet.listing("ts01", "sessions", row())
    fleet.listing("ts01", "mounts", f"{session_name('alice')}|10.1.2.3|/m\n")
    fleet.listing("alice@ts01", "desktops", "alice@:50\n")
    adapter.python.run(
        "for info in cache.list_sessions('mate').values():\n    info.status = 'X'\n"
        "cache.list_sessions('mate').clear(); cache.list_desktops('mate').clear()\n"
        "for listed in cache.list_mounts('mate').values():\n    listed.clear()\n"
    )
    assert adapter.statuses() == {session_name("alice"): "R"}
    assert adapter.value("cache.list_desktops('mate')") == ["alice@:50"]
    assert adapter.value("cache.list_mounts('mate')") == {session_name("alice"): ["10.1.2.3|/m"]}


def test_an_answer_expires_and_delete_is_this_client_s_alone(adapter: Adapter, fleet: FleetBuilder) -> None:
    fleet.publish({"mate": ["ts01"]})
    fleet.listing("ts01", "sessions", row(), ttl_seconds=2)
    adapter.make("fallback=False")
    adapter.python.run("cache.delete('mate')")
    assert adapter.value("[cache.is_cached('mate'), cache.list_sessions('mate')]") == [False, None]
    adapter.python.run("cache.update('mate')")
    assert adapter.statuses() == {session_name("alice"): "R"}
    adapter.python.run("client.connected = set()\ncache.check_cache()")
    assert adapter.value("cache._profiles") == {}
    wait_until(lambda: adapter.cached("sessions") is False)
    assert adapter.statuses() is None


def test_errors_are_those_of_python_x2go(adapter: Adapter, fleet: FleetBuilder) -> None:
    fleet.publish({"mate": ["ts01"]})
    fleet.listing("ts01", "sessions", row())
    assert adapter.raised("cache.is_cached(session_uuid='x')") == "X2GoSessionCacheException"
    assert adapter.raised("cache.list_sessions('x')") == "X2GoSessionRegistryException"
    assert adapter.value("cache.is_cached()") is False
    assert adapter.value("cache.is_cached('nobody')") is False
    adapter.python.run("cache.update('nobody')")
    adapter.python.run("control.connected = False")
    assert adapter.raised("cache.update('mate')") == "X2GoControlSessionException"
    adapter.python.run("control.connected = True\ncache.update('mate')")
    assert adapter.cached("sessions") is True
    adapter.python.run("control.died = True\ncache.update('mate')")
    assert adapter.value("control.asked") == []


def test_a_connection_that_is_lost_while_it_is_asked_about_is_not_cached(adapter: Adapter, fleet: FleetBuilder) -> None:
    fleet.publish({"mate": ["ts01"]})
    fleet.listing("ts01", "sessions", row())
    adapter.python.run(
        "def lost():\n    raise x2go_exceptions.X2GoControlSessionException('lost')\ncontrol.remote_username = lost"
    )
    assert adapter.cached("sessions") is False
    assert adapter.statuses() is None
    assert adapter.raised("cache.update('mate')") == "X2GoControlSessionException"


def test_update_has_an_old_answer_refreshed_by_the_fleet(
    adapter: Adapter, fleet: FleetBuilder, valkey_url: str, keys: Keys
) -> None:
    fleet.publish({"mate": ["ts01"]})
    fleet.listing("ts01", "sessions", row(), age_seconds=1)
    fleet.store.heartbeat({"host": "h"}, ttl_ms=60_000)

    def poll(request: Request) -> Request:
        fleet.listing("ts01", "sessions", row("alice", 70))
        return {"target": request["target"], "stored": [["ts01", "sessions"]]}

    with StubWorker(valkey_url, keys, "w1", poll) as worker:
        adapter.python.run("cache.update('mate')")
        assert worker.requests == [], "a second is young enough"
        adapter.make("max_age_seconds=0.5")
        adapter.python.run("cache.update('mate')")
        assert [(request["kinds"], request["username"]) for request in worker.requests] == [(["sessions"], "alice")]
        assert adapter.statuses() == {session_name("alice", 70): "R"}
    # Nobody refreshes it now: what is cached is an answer until it expires.
    adapter.make("max_age_seconds=0, refresh_seconds=0.2")
    adapter.python.run("cache.update('mate')")
    assert adapter.statuses() == {session_name("alice", 70): "R"}
    assert adapter.value("control.asked") == []


def test_of_several_servers_the_one_that_the_client_is_connected_to(
    adapter: Adapter, fleet: FleetBuilder, redis_client: redis.Redis, keys: Keys
) -> None:
    fleet.publish({"mate": ["ts01", "ts02"]}, hostnames={"ts02": "blue.example.org"})
    fleet.listing("ts01", "sessions", row("alice", 50))
    fleet.listing("ts02", "sessions", row("alice", 60))

    def seen_at(address: str, settings: str = "fallback=False") -> Any:
        adapter.make(settings)
        adapter.python.run(f"control.hostname = {address!r}")
        return adapter.statuses()

    here, there = {session_name("alice", 50): "R"}, {session_name("alice", 60): "R"}
    assert seen_at("ts01") == seen_at("TS01.example.org") == here
    assert seen_at("ts02") == seen_at("blue.example.org") == seen_at("blue") == there
    assert seen_at("blue.example.net") is None, "another domain is another machine"
    assert seen_at("10.0.0.2") is None
    assert seen_at("10.0.0.2", "servers={'10.0.0.2': 'ts02'}, fallback=False") == there
    redis_client.delete(keys.snapshot("ts02", Kind.SESSIONS))
    assert seen_at("ts02") is None
    assert seen_at("ts01") == here


def test_a_new_terminal_is_older_lists_own(adapter: Adapter, fleet: FleetBuilder) -> None:
    """What this client has just resumed or started is in its list, though the server was asked before."""
    fleet.publish({"mate": ["ts01"]})
    fleet.listing("ts01", "sessions", row("alice", 50, "S"))
    adapter.python.run(
        "class Terminal:\n"
        "    def __init__(self, line):\n"
        "        self.session_info = X2GoServerSessionInfo()\n"
        "        self.session_info._parse_x2golistsessions_line(line)\n"
        "    def is_session_info_protected(self):\n        return None\n"
        "    def is_suspended(self):\n        return self.session_info.is_suspended()\n"
        f"for line in ({row('alice', 50).decode().strip()!r}, {row('alice', 51).decode().strip()!r}):\n"
        "    terminal = Terminal(line)\n"
        "    control.associated_terminals[terminal.session_info.name] = terminal\n"
    )
    both = {session_name("alice", 50): "R", session_name("alice", 51): "R"}
    assert adapter.statuses() == both
    adapter.python.run("cache.update('mate')")
    assert adapter.value("len(control.associated_terminals)") == 2
    fleet.listing("ts01", "sessions", row("alice", 50))
    assert adapter.statuses() == {session_name("alice", 50): "R"}


@pytest.mark.parametrize("reason", ["an unknown profile", "not cached", "Redis down"])
def test_the_fallback_asks_the_connection_and_its_answer_expires(
    python: SystemPython, valkey_url: str, namespace: str, fleet: FleetBuilder, reason: str
) -> None:
    fleet.publish({"other" if reason == "an unknown profile" else "mate": ["ts01"]})
    adapter = Adapter(python, "redis://127.0.0.1:9/0" if reason == "Redis down" else valkey_url, namespace)
    line = row("alice", 50) + STARTING + row("alice", 54, "F")
    python.run(
        f"control.sessions = {line!r}; control.desktops = b'alice@:50\\n'\n"
        f"control.mounts = {{{session_name('alice')!r}: b'10.1.2.3|/m\\n'}}\n"
        "cache.update('mate', True, True, True)"
    )
    assert adapter.statuses() == {session_name("alice"): "R"}
    assert adapter.value("cache.list_desktops('mate')") == ["alice@:50"]
    assert adapter.value("cache.list_mounts('mate')") == {session_name("alice"): ["10.1.2.3|/m"]}
    assert adapter.value("control.asked") == ["sessions", "desktops", "mounts"]
    python.run("python_x2go.LIVE_SECONDS = 0.0")
    assert adapter.statuses() is None
    assert [adapter.cached(kind) for kind in ("sessions", "desktops", "mounts")] == [False] * 3
    adapter.make("fallback=False")
    python.run("control.asked.clear(); cache.update('mate', True, True, True)")
    assert adapter.value("control.asked") == []


def test_a_connection_that_hangs_costs_the_fallback_s_time_once(adapter: Adapter, fleet: FleetBuilder) -> None:
    adapter.make("fallback_seconds=0.3")
    adapter.python.run(f"control.sessions = {row()!r}; control.hang.clear()")
    began = time.monotonic()
    adapter.python.run("cache.update('mate')")
    first = time.monotonic() - began
    adapter.python.run("cache.update('mate'); cache.update('mate')")
    print(f"a hung connection cost {first:.2f} s, then {time.monotonic() - began - first:.2f} s for two")
    assert adapter.value("control.asked") == ["sessions"], "it is not asked again while it has not answered"
    assert adapter.statuses() is None
    adapter.python.run("control.hang.set()")
    wait_until(lambda: adapter.statuses() == {session_name("alice"): "R"})
    assert first < SLACK_SECONDS


def test_what_the_connection_raises(adapter: Adapter, fleet: FleetBuilder) -> None:
    adapter.python.run("control.raises = x2go_exceptions.X2GoControlSessionException('lost')")
    assert adapter.raised("cache.update('mate')") == "X2GoControlSessionException"
    adapter.python.run("control.raises = x2go_exceptions.X2GoTimeOutException('slow')\ncache.update('mate')")
    assert adapter.statuses() is None
    adapter.python.run("control.raises = UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad')\ncache.update('mate')")
    assert adapter.statuses() is None
    adapter.python.run(f"control.raises = None; control.sessions = {row()!r}\ncache.update('mate')")
    assert adapter.statuses() == {session_name("alice"): "R"}, "and it goes on"


def test_a_redis_that_hangs_lets_the_client_s_other_threads_run(
    python: SystemPython, tmp_path: Path, namespace: str
) -> None:
    with OwnValkey(tmp_path) as valkey:
        adapter = Adapter(python, valkey.url, namespace)
        assert adapter.cached("sessions") is False
        valkey.pause()
        python.run(
            "ticks, seen = [], []\n"
            "def tick():\n    while True:\n        ticks.append(1); time.sleep(.01)\n"
            "threading.Thread(target=tick, daemon=True).start()\n"
            "began = time.monotonic()\n"
            "cached = cache.is_cached('mate')\n"
            "took = time.monotonic() - began\n"
        )
        assert adapter.value("cached") is False
        took, ticks = adapter.value("took"), adapter.value("len(ticks)")
        print(f"with Redis hung: {took:.2f} s, in which another thread ran {ticks} times")
        assert took < SLACK_SECONDS
        assert ticks > 3


def test_it_is_put_in_place_by_one_call_and_taken_out_again(
    python: SystemPython, valkey_url: str, namespace: str
) -> None:
    python.run(
        "import x2go.client, x2go.cache\n"
        "def made():\n"
        "    client = X2GoClient(use_listsessions_cache=True)\n"
        "    return type(client.listsessions_cache).__module__\n"
        "theirs = x2go.cache.X2GoListSessionsCache"
    )
    python.run(f"python_x2go.install({valkey_url!r}, namespace={namespace!r})")
    assert python.value("made()") == "x2gofleet.adapters.python_x2go"
    python.run("python_x2go.uninstall()")
    assert python.value("made()") == "x2go.cache"
    python.run(f"with python_x2go.installed(FleetCache.from_url({valkey_url!r})) as put:\n    inside = made()")
    assert python.value("[inside, made(), put.__name__]") == [
        *("x2gofleet.adapters.python_x2go", "x2go.cache", "X2GoListSessionsCache")
    ]
    assert python.value("x2go.client.X2GoListSessionsCache is theirs") is True
    python.run("one = X2GoClient(use_listsessions_cache=True)")
    python.run(f"given = python_x2go.attach(one, FleetCache.from_url({valkey_url!r}))")
    assert python.value("one.listsessions_cache is given") is True
    with pytest.raises(RaisedThere, match="use_listsessions_cache=True"):
        python.run("python_x2go.attach(X2GoClient(), given._cache)")
    with pytest.raises(RaisedThere, match="cache= is missing"):
        python.run("X2GoListSessionsCache(client)")


def test_importing_it_imports_no_x2go() -> None:
    with_nothing = (
        "import sys; import x2gofleet.adapters.python_x2go; "
        "print([name for name in ('x2go', 'gevent', 'paramiko') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", with_nothing], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["sessions", "desktops", "mounts"])
@pytest.mark.parametrize(
    ("state", "known"),
    [
        ("up", True),
        ("idle", True),
        ("down a moment ago", True),
        ("beside an unknown server", True),
        ("down", False),
        ("expired", False),
        ("never polled", False),
        ("not in the inventory", False),
    ],
)
def test_what_is_unknown_is_not_cached(
    adapter: Adapter, fleet: FleetBuilder, redis_client: redis.Redis, keys: Keys, state: str, known: bool, kind: str
) -> None:
    """Without the fallback: with it the client's own connection answers."""
    adapter.make("fallback=False, refresh_seconds=0.2")
    servers = ["ts01", "ts02"] if state == "beside an unknown server" else ["ts01"]
    fleet.publish({"other" if state == "not in the inventory" else "mate": servers})
    name, idle = session_name("alice"), state == "idle"
    if state not in ("never polled", "not in the inventory"):
        fleet.listing("ts01", "sessions", b"" if idle else row("alice"))
        fleet.listing("ts01", "mounts", "" if idle else f"{name}|10.1.2.3|/m\n")
        fleet.listing("alice@ts01", "desktops", "" if idle else "alice@:50\n")
    if state in ("down", "down a moment ago"):
        fleet.failure("ts01", kinds=(Kind.SESSIONS, Kind.MOUNTS))
    if state in ("down", "expired"):
        redis_client.delete(*(keys.snapshot(target, each) for target in ("ts01", "alice@ts01") for each in Kind))
    listed = adapter.statuses() if kind == "sessions" else adapter.value(f"cache.list_{kind}('mate')")
    there: dict[str, Any] = {"sessions": {name: "R"}, "desktops": ["alice@:50"], "mounts": {name: ["10.1.2.3|/m"]}}
    none: dict[str, Any] = {"sessions": {}, "desktops": [], "mounts": {}}
    assert listed == ((none if idle else there)[kind] if known else None)
    assert adapter.cached(kind) is known


# What a server says of `id -un`, and how often it was asked.
ID = """
import io
names = []
def told(command):
    names.append(command)
    return io.BytesIO(), io.BytesIO({said!r}), io.BytesIO()
control._x2go_exec_command = told
"""


@pytest.mark.parametrize("login", ["Alice", "alice@corp.example.org", "asmith"])
def test_a_login_by_another_name_has_the_account_s_sessions(adapter: Adapter, fleet: FleetBuilder, login: str) -> None:
    fleet.publish({"mate": ["ts01"]})
    fleet.listing("ts01", "sessions", row("alice", 50, "S") + row("bob", 60))
    fleet.listing("ts01", "mounts", f"{session_name('alice')}|10.1.2.3|/m\n{session_name('bob', 60)}|10.1.2.4|/n\n")
    adapter.python.run(f"control.username = {login!r}\n" + ID.format(said=b"alice\n"))
    adapter.python.run("cache.update('mate', update_mounts=True); cache.update('mate')")
    assert adapter.statuses() == {session_name("alice"): "S"}
    assert adapter.value("cache.list_mounts('mate')") == {session_name("alice"): ["10.1.2.3|/m"]}
    # Asked once for each connection, and no list over it.
    assert adapter.value("[names, control.asked]") == [["id -un"], []]


def test_where_the_server_can_not_say_the_name_it_is_asked_for_the_sessions(
    adapter: Adapter, fleet: FleetBuilder
) -> None:
    fleet.publish({"mate": ["ts01"]})
    fleet.listing("ts01", "sessions", row("alice", 50, "S"))
    adapter.python.run(f"control.username, control.sessions = 'Alice', {row('alice', 50, 'S')!r}")
    assert adapter.cached("sessions") is False
    adapter.python.run("cache.update('mate')")
    assert adapter.statuses() == {session_name("alice"): "S"}
    assert adapter.value("control.asked") == ["sessions"]


def test_without_asking_live_an_alias_is_not_cached_and_never_no_sessions(
    adapter: Adapter, fleet: FleetBuilder
) -> None:
    fleet.publish({"mate": ["ts01"]})
    fleet.listing("ts01", "sessions", row("alice", 50, "S"))
    fleet.listing("ts01", "mounts", f"{session_name('alice')}|10.1.2.3|/m\n")
    adapter.make("fallback=False")
    adapter.python.run("control.username = 'CORP\\\\alice'\n" + ID.format(said=b"alice\n"))
    adapter.python.run("cache.update('mate', update_mounts=True)")
    assert adapter.statuses() is None
    assert [adapter.cached(kind) for kind in ("sessions", "mounts")] == [False, False]
    assert adapter.value("names") == []


@pytest.mark.parametrize("login", ["corp+alice", "CORP\\alice", "l" * 80, "Алиса", "carol@corp.example.org"])
def test_any_name_has_its_own_sessions_desktops_and_mounts(adapter: Adapter, fleet: FleetBuilder, login: str) -> None:
    own, other = "x-50-1795000000_stDMATE_dp24", "x-51-1795000000_stDMATE_dp24"
    fleet.publish({"mate": ["ts01"]})
    fleet.listing("ts01", "sessions", row(login, 50, name=own) + row("somebody", 51, name=other))
    name = "".join(each for each in login if each.isascii() and (each.isalnum() or each in "._@-"))
    if name == login:
        own, other = f"{login}-50-1795000000_stDMATE_dp24", "somebody-51-1795000000_stDMATE_dp24"
        fleet.listing("ts01", "sessions", row(login, 50, name=own) + row("somebody", 51, name=other))
    fleet.listing("ts01", "mounts", f"{own}|10.1.2.3|/m\n{other}|10.1.2.4|/n\n")
    fleet.listing(target_id("ts01", login), "desktops", f"{login}@:50\n")
    adapter.python.run(f"control.username = {login!r}")
    assert adapter.statuses() == {own: "R"}
    assert adapter.value("cache.list_desktops('mate')") == [f"{login}@:50"]
    assert adapter.value("cache.list_mounts('mate')") == {own: ["10.1.2.3|/m"]}


def test_a_user_s_own_target_answers_for_the_login_whatever_its_rows_say(adapter: Adapter, fleet: FleetBuilder) -> None:
    fleet.publish({"mate": ["Alice@ts01"]})
    fleet.listing("Alice@ts01", "sessions", row("alice", 50, "S"))
    fleet.listing("Alice@ts01", "mounts", f"{session_name('alice')}|10.1.2.3|/m\n")
    adapter.python.run("control.username = 'Alice'")
    assert adapter.statuses() == {session_name("alice"): "S"}
    assert adapter.value("cache.list_mounts('mate')") == {session_name("alice"): ["10.1.2.3|/m"]}
