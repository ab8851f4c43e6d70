"""Debian's python-x2go, unchanged, connected to a real server: with the adapter it lists what it lists without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ..system_python import RaisedThere, SystemPython, require  # noqa: TID252
from .conftest import LoginKey, PollFactory, ServerFactory
from .polled import PROFILE
from .realserver import RealX2GoServer

START = """
import os
import x2go
from x2go import X2GoClient
from x2gofleet import FleetCache
from x2gofleet.adapters import python_x2go
from x2gofleet.adapters.python_x2go import Settings

CACHED = dict(
    use_listsessions_cache=True, auto_update_listsessions_cache=True, auto_update_listdesktops_cache=True,
    auto_update_listmounts_cache=True, refresh_interval=3600,
)

def connect(client, profile):
    uuid = client.register_session(
        profile_name=profile, add_to_known_hosts=True, allow_agent=False, look_for_keys=False,
        known_hosts=os.environ["HOME"] + "/known_hosts",
    )
    client.connect_session(uuid)
    return uuid

def described(sessions):
    if sessions is None:
        return None
    assert all(type(info) is client.info_backend for info in sessions.values())
    return {name: {k: v for k, v in vars(info).items()} for name, info in sessions.items()}
"""


class Client:
    """An X2GoClient in the system's Python, connected to a server as one user."""

    def __init__(self, home: Path, server: RealX2GoServer, key: LoginKey, profile: str) -> None:
        (home / ".x2goclient").mkdir(parents=True)
        (home / ".x2goclient" / "sessions").write_text(
            f"[20261123000000001]\nname={profile}\nhost={server.host}\nsshport={server.port}\nuser=alice\n"
            f"key={key.private_path}\n"
        )
        self.python, self._profile = SystemPython(home), profile

    def start(self, put_in_place: str) -> None:
        self.python.run(f"{START}\n{put_in_place}\nuuid = connect(client, {self._profile!r})")

    def sessions(self, options: str = "update_sessionregistry=False") -> Any:
        return self.python.value(f"described(client.list_sessions(uuid, {options}))")

    def desktops(self, options: str = "") -> Any:
        return self.python.value(f"client.list_desktops(uuid, {options})")

    def mounts(self, options: str = "") -> Any:
        return self.python.value(f"client.list_mounts(uuid, {options})")


@pytest.fixture
def put_in_place(valkey_url: str, namespace: str) -> Callable[..., str]:
    """`put_in_place(settings="")`: the lines that install the adapter and make a client."""

    def lines(settings: str = "") -> str:
        return (
            f"python_x2go.install({valkey_url!r}, namespace={namespace!r}, settings=Settings({settings}))\n"
            "client = X2GoClient(**CACHED)"
        )

    return lines


@pytest.fixture
def server(start_server: ServerFactory, login_key: LoginKey) -> RealX2GoServer:
    require("x2go", "python3-x2go")
    server = start_server("ts01")
    server.authorize("alice", login_key.public_text)
    return server


@pytest.fixture
def start_client(server: RealX2GoServer, login_key: LoginKey, tmp_path: Path) -> Iterator[Any]:
    """`start_client(put_in_place, ...)`: a process with a connected X2GoClient `client` and its session `uuid`."""
    with ExitStack() as stack:
        number = 0

        def start(put_in_place: str, *, profile: str = PROFILE) -> Client:
            nonlocal number
            number += 1
            client = Client(tmp_path / f"client-{number}", server, login_key, profile)
            stack.enter_context(client.python)
            client.start(put_in_place)
            return client

        yield start


def test_the_same_sessions_desktops_and_mounts_as_without_it(
    server: RealX2GoServer, poll: PollFactory, put_in_place: Callable[..., str], start_client: Any
) -> None:
    own = server.insert_session("alice", 50)
    suspended = server.insert_session("alice", 52)
    server.change_status("alice", suspended, "S")
    ending = server.insert_session("alice", 54, "R", "xterm")
    server.change_status("alice", ending, "T")
    finished = server.insert_session("alice", 55)
    server.change_status("alice", finished, "F")
    theirs = server.insert_session("bob", 53)
    shadow = server.shadow_session("bob", "alice", 60, shadowed=53, full=False)
    server.insert_mount("alice", own, "10.1.2.3", "/home/alice/media/disk/_tmp")
    server.insert_mount("alice", own, "10.1.2.3", "/home/alice/media/disk/_with space")
    server.insert_mount("bob", theirs, "10.1.2.9", "/home/bob/media/disk/_tmp")
    with server.x_display("alice") as display, server.x_display("bob"):
        polled = poll(server)
        polled.next_snapshot()
        polled.next_snapshot("mounts")
        fleet, plain = start_client(put_in_place()), start_client("client = X2GoClient()")
        for client in (fleet, plain):
            client.python.run(f"client.session_registry(uuid).session_name = {own!r}")
        assert fleet.python.value("type(client.listsessions_cache).__module__") == "x2gofleet.adapters.python_x2go"

        sessions = fleet.sessions()
        assert set(sessions) == {own, suspended, ending, shadow}
        assert sessions == plain.sessions()
        assert {info["status"] for info in sessions.values()} == {"R", "S", "T"}
        measure = "import time; t = time.monotonic(); client.list_sessions(uuid, update_sessionregistry=False)"
        took = [client.python.run(measure, "time.monotonic() - t") for client in (plain, fleet)]
        print(f"a list of sessions: {took[0] * 1000:.0f} ms without the adapter, {took[1] * 1000:.1f} ms with it")
        desktops = fleet.desktops()
        assert desktops == [f"alice@{display}"]
        assert [desktop for desktop in plain.desktops() if desktop] == desktops
        mounts = fleet.mounts()
        assert plain.mounts() == {own: mounts[own]}
        assert len(mounts[own]) == 2
        assert not any(mounts[name] for name in mounts if name != own)
        assert set(mounts) == {own, shadow}


def test_a_change_made_by_someone_else_is_seen_within_the_interval_and_no_connection_is_asked(
    server: RealX2GoServer, poll: PollFactory, put_in_place: Callable[..., str], start_client: Any
) -> None:
    polled = poll(server)
    polled.next_snapshot()
    client = start_client(put_in_place())
    assert client.sessions() == {}
    commands = server.count_commands()
    connections = server.connections()

    def status_of(name: str) -> Any:
        return client.sessions().get(name, {}).get("status")

    delays = []
    name = server.insert_session("alice", 50)
    for status in ("R", "S", "R", "F"):
        if status != "R" or status_of(name) == "S":
            server.change_status("alice", name, status)  # type: ignore[arg-type]
        began = time.monotonic()
        expected = None if status == "F" else status
        polled.wait_until(lambda: status_of(name) == expected, f"{status} in the client's list")  # noqa: B023
        delays.append(time.monotonic() - began)
    print(f"seen after {max(delays):.2f} s at most; sessions are polled every 0.5 s")
    assert max(delays) < 5
    assert "x2golistsessions" not in commands.names, "the client's own connection was asked"
    assert server.connections() == connections


def test_terminals_are_reaped_on_update(
    server: RealX2GoServer, poll: PollFactory, put_in_place: Callable[..., str], start_client: Any
) -> None:
    running, suspended, ended = (server.insert_session("alice", display) for display in (50, 51, 52))
    polled = poll(server)
    polled.next_snapshot()
    client = start_client(put_in_place())
    python = client.python
    # What the control session keeps of a terminal: an object with the session's info.
    python.run(
        """
class Terminal:
    def __init__(self, info):
        self.session_info, self.gone = info, False
    def is_session_info_protected(self):
        return self.session_info.is_protected()
    def is_suspended(self):
        return self.session_info.is_suspended()
    def __del__(self):
        self.gone = True

control = client.client_control_session_of_profile_name("mate")
terminals = {name: Terminal(info) for name, info in client.list_sessions(uuid).items()}
control.associated_terminals.update(terminals)
cache = client.listsessions_cache
cache.update("mate")
"""
    )
    associated = "sorted(control.associated_terminals)"
    assert python.value(associated) == sorted([running, suspended, ended])

    server.change_status("alice", suspended, "S")
    server.change_status("alice", ended, "F")
    polled.next_snapshot()
    polled.next_snapshot()
    python.run("cache.update('mate')")
    assert python.value(associated) == [running]
    assert python.value("control.terminated_terminals") == [ended]
    assert python.value("{name: terminal.gone for name, terminal in terminals.items()}") == {
        running: False,
        suspended: True,
        ended: True,
    }

    # A terminal that is newer than the list the fleet has: nothing says that its session has ended.
    polled.worker.stop()
    python.run(f"control.associated_terminals[{ended!r}] = terminals[{ended!r}]")
    python.run("cache.update('mate')")
    assert python.value(associated) == sorted([running, ended])
    assert python.value(f"client.list_sessions(uuid, update_sessionregistry=False)[{ended!r}].status") == "R"


def test_what_the_fleet_can_not_tell_is_asked_over_the_client_s_own_connection(
    server: RealX2GoServer, poll: PollFactory, put_in_place: Callable[..., str], start_client: Any
) -> None:
    own = server.insert_session("alice", 50)
    server.insert_mount("alice", own, "10.1.2.3", "/home/alice/media/disk/_tmp")
    polled = poll(server)
    polled.next_snapshot()
    client = start_client(put_in_place(), profile="not-in-the-fleet")
    assert client.python.value("client.listsessions_cache.is_cached(session_uuid=uuid)") is False
    # While a session is being started python-x2go's own reading would try 20 times, then disconnect.
    starting = server.insert_session("alice", 51, started=False)
    assert set(client.sessions()) == {own}
    assert client.python.value("client.is_session_connected(uuid)") is True
    assert client.desktops() == []
    assert client.mounts() == {own: ["10.1.2.3|/home/alice/media/disk/_tmp"]}
    assert starting not in client.mounts()
    assert client.python.value("client.listsessions_cache.is_cached(session_uuid=uuid, cache_type='mounts')") is True

    # python-x2go's connecting asks in its own way.
    server.change_status("alice", starting, "F")
    mapped = start_client(put_in_place("profiles={'my-own-name': 'mate'}"), profile="my-own-name")
    assert mapped.python.value("client.listsessions_cache.is_cached(session_uuid=uuid)") is True
    assert set(mapped.sessions()) == {own}

    strict = start_client(put_in_place("fallback=False"), profile="not-in-the-fleet")
    strict.python.run("client.listsessions_cache.update('not-in-the-fleet', True, True, True)")
    for kind in ("sessions", "desktops", "mounts"):
        assert (
            strict.python.value(f"client.listsessions_cache.is_cached(session_uuid=uuid, cache_type={kind!r})") is False
        )
        assert strict.python.value(f"client.listsessions_cache.list_{kind}(uuid)") is None


def test_of_a_profile_with_two_servers_the_one_that_is_connected_to_is_listed(
    server: RealX2GoServer,
    start_server: ServerFactory,
    poll: PollFactory,
    put_in_place: Callable[..., str],
    start_client: Any,
) -> None:
    other = start_server("ts02")
    here, there = server.insert_session("alice", 50), other.insert_session("alice", 51)
    polled = poll({"ts01": server, "ts02": other})
    polled.wait_until(
        lambda: set(polled.cache.list_sessions(profile_name=PROFILE, username="alice") or ()) == {here, there},
        "both servers",
    )
    told = start_client(put_in_place("servers={'127.0.0.1': 'ts01'}"))
    assert set(told.sessions()) == {here}
    # The address is the name of neither: the connection is asked.
    untold = start_client(put_in_place())
    assert untold.python.value("client.listsessions_cache.is_cached(session_uuid=uuid)") is False
    assert set(untold.sessions()) == {here}


def test_redis_down_a_lost_connection_and_unknown_sessions(
    server: RealX2GoServer, poll: PollFactory, put_in_place: Callable[..., str], start_client: Any
) -> None:
    own = server.insert_session("alice", 50)
    client = start_client("python_x2go.install('redis://127.0.0.1:9/0')\nclient = X2GoClient(**CACHED)")
    began = time.monotonic()
    assert set(client.sessions()) == {own}
    print(f"with Redis down, asked live: {time.monotonic() - began:.2f} s")

    def raised(expression: str) -> str:
        with pytest.raises(RaisedThere) as caught:
            client.python.value(expression)
        return caught.value.name

    assert raised("client.listsessions_cache.is_cached(session_uuid='nobody')") == "X2GoSessionCacheException"
    assert raised("client.listsessions_cache.list_sessions('nobody')") == "X2GoSessionRegistryException"
    assert client.python.value("client.listsessions_cache.is_cached(session_uuid=uuid, cache_type='nonsense')") is False

    client.python.run("client.listsessions_cache.delete('mate')")
    assert client.python.value("client.listsessions_cache.is_cached('mate')") is False
    client.python.run("client.listsessions_cache.update_all()")
    assert client.python.value("client.listsessions_cache.is_cached('mate')") is True

    server.stop_sshd()
    polled_end = "client.client_control_session_of_profile_name('mate').is_connected()"
    deadline = time.monotonic() + 30
    while client.python.value(polled_end):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert raised("client.listsessions_cache.update('mate')") == "X2GoControlSessionException"
    assert client.python.value("client.listsessions_cache.is_cached('mate')") is False


def test_the_client_s_own_guardian_lives_on_it(
    server: RealX2GoServer, poll: PollFactory, put_in_place: Callable[..., str], start_client: Any
) -> None:
    """A client that registers and follows sessions by itself, as graphical clients do, every second."""
    first = server.insert_session("alice", 50)
    polled = poll(server)
    polled.next_snapshot()
    watching = "client = X2GoClient(**{**CACHED, 'refresh_interval': 1}, auto_update_sessionregistry=True, %s)"
    client = start_client(
        put_in_place().replace("client = X2GoClient(**CACHED)", watching % "auto_register_sessions=True")
    )
    commands = server.count_commands()
    statuses = (
        "{s.get_session_name(): s._current_status['suspended'] for s in "
        "client.client_registered_sessions(return_objects=True) if s.get_session_name() and s._current_status}"
    )
    polled.wait_until(lambda: client.python.value(statuses) == {first: False}, "its session to be registered")
    second = server.insert_session("alice", 51)
    polled.wait_until(lambda: client.python.value(statuses) == {first: False, second: False}, "the new one too")
    commands.reset()
    server.change_status("alice", second, "S")
    polled.wait_until(lambda: client.python.value(statuses).get(second) is True, "that one is suspended")
    print(f"commands on the server meanwhile: {dict(commands.by_name)}")
    assert "x2golistsessions" not in commands.names
    assert client.python.value("client.is_session_connected(uuid)") is True
