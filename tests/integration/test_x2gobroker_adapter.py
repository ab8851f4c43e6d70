"""Debian's x2gobroker in one process with the adapter, over a fleet that is only told of: which server a login gets."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import FleetBuilder
from tests.integration.reader import LOAD, row, session_name
from tests.system_python import SystemPython, require
from x2gofleet.cache import FleetCache
from x2gofleet.kinds import Kind

# No agent can be asked: what the fleet does not answer fails the test.
SET_UP = """
import os
os.environ.update(X2GOBROKER_DEBUG="1", X2GOBROKER_TESTSUITE="1", X2GOBROKER_CONFIG={config!r})
os.environ["X2GOBROKER_SESSIONPROFILES"] = {profiles!r}
import x2gobroker.agent
import x2gobroker.brokers.inifile_broker
from x2gofleet.adapters import x2gobroker as adapter
from x2gofleet.adapters.broker_settings import BrokerSettings

asked = []

def no_agent(task, **arguments):
    asked.append(task)
    return False, []

x2gobroker.agent.has_remote_broker_agent_setup = lambda: True
x2gobroker.agent._call_remote_broker_agent = lambda username, task, **arguments: no_agent(task)
activation = adapter.activate(BrokerSettings(**{settings!r}))
# A host that knows the users as its servers do: each login is the name of an account, but for those told here.
aliases = {{}}
activation.accounts._look_up = lambda login: aliases.get(login, login)

def broker():
    return x2gobroker.brokers.inifile_broker.X2GoBroker()
"""
NO_WRITES = """
from x2gofleet.errors import CacheUnavailable

def refused(*arguments, **more):
    raise CacheUnavailable("read only")

reader = activation.fleet._reader()
reader.place = reader.reserve = reader.release = refused
"""
CONFIG = "[global]\ndefault-agent-query-mode = SSH\n[broker_inifile]\nenable = true\n"


class Broker:
    """x2gobroker's backend in another process."""

    def __init__(self, side: SystemPython) -> None:
        self.side = side

    def select(self, username: str = "alice", profile: str = "mate") -> dict[str, Any]:
        """Return what the broker tells a client that selected a session; no agent was asked."""
        selected: dict[str, Any] = self.side.value(f"broker().select_session({profile!r}, {username!r})")
        assert self.side.value("asked") == []
        return selected


Start = Callable[..., Any]


@pytest.fixture
def start(valkey_url: str, namespace: str, tmp_path: Path) -> Start:
    """Start a broker with a profile `mate` of some hosts."""
    require("x2gobroker", "x2gobroker-daemon")

    @contextmanager
    def started(hosts: str, *, load_checker: bool = False, **settings: Any) -> Iterator[Broker]:
        config, profiles = tmp_path / "x2gobroker.conf", tmp_path / "profiles.conf"
        config.write_text(CONFIG)
        profiles.write_text(
            f"[DEFAULT]\ncommand = MATE\nbroker-use-load-checker = {json.dumps(load_checker)}\n\n"
            f"[mate]\nname = mate\nhost = {hosts}\n"
        )
        settings = {"redis_url": valkey_url, "namespace": namespace, **settings}
        with SystemPython(tmp_path / "home") as side:
            side.run(SET_UP.format(config=str(config), profiles=str(profiles), settings=settings))
            yield Broker(side)

    return started


@pytest.fixture
def reader(valkey_url: str, namespace: str) -> Iterator[FleetCache]:
    """A reader of the test's namespace."""
    with FleetCache.from_url(valkey_url, namespace=namespace) as cache:
        yield cache


def told(fleet: FleetBuilder, *servers: str, load: tuple[str, ...] = (), **more: Any) -> None:
    """Publish profile mate of idle servers; of those in ``load`` the load is known too."""
    fleet.publish({"mate": servers}, **more)
    for server in servers:
        fleet.listing(server, Kind.SESSIONS, b"")
    for server in load:
        fleet.listing(server, Kind.LOAD, LOAD)


@pytest.mark.parametrize("said", ["ts1", "ts1.example.org", "TS1"])
def test_a_session_is_resumed_where_it_is_whatever_other_names_begin_with(
    start: Start, fleet: FleetBuilder, said: str
) -> None:
    told(fleet, "ts10", "ts1")
    fleet.listing("ts1", Kind.SESSIONS, row(status="S", hostname=said))
    with start("ts10.example.org, ts1.example.org") as broker:
        selected = broker.select()
    assert selected["server"] == "ts1.example.org"
    assert selected["session_info"].split("|")[1] == session_name("alice")


@pytest.mark.parametrize("known", [("ts01",), ("ts01", "ts02")])
def test_a_drained_server_gets_nobody_whatever_load_is_known(
    start: Start, fleet: FleetBuilder, reader: FleetCache, known: tuple[str, ...]
) -> None:
    told(fleet, "ts01", "ts02", load=known, drained=("ts01",))
    with start("ts01, ts02 (10.0.0.2:2222)", load_checker=True) as broker:
        assert broker.select() == {"server": "10.0.0.2", "port": 2222}
    assert reader.reservations("mate") == {"ts01": 0, "ts02": 1}


def test_a_name_without_the_domain_of_the_others_is_still_the_host_of_the_profile(
    start: Start, fleet: FleetBuilder, reader: FleetCache
) -> None:
    told(fleet, "ts01", "ts02")
    fleet.listing("ts02", Kind.SESSIONS, row("bob"))
    with start("ts01 (10.0.0.1:2222), ts02.example.org") as broker:
        assert broker.select() == {"server": "10.0.0.1", "port": 2222}
    assert reader.reservations("mate") == {"ts01": 1, "ts02": 0}


def test_where_the_chosen_server_can_not_be_reached_another_takes_the_login_but_no_drained_one(
    start: Start, fleet: FleetBuilder, reader: FleetCache
) -> None:
    told(fleet, "ts01", "ts02", "ts03", drained=("ts02",))
    fleet.listing("ts03", Kind.SESSIONS, row("bob", 50) + row("carol", 51))
    with socket.create_server(("127.0.0.1", 0)) as drained, socket.create_server(("127.0.0.1", 0)) as busy:
        ports = drained.getsockname()[1], busy.getsockname()[1]
        # Nothing listens on port 1.
        hosts = f"ts01 (127.0.0.1:1), ts02 (127.0.0.1:{ports[0]}), ts03 (127.0.0.1:{ports[1]})"
        with start(hosts, trust_polls=False) as broker:
            assert broker.select() == {"server": "127.0.0.1", "port": ports[1]}
    assert reader.reservations("mate") == {"ts01": 0, "ts02": 0, "ts03": 1}


def test_a_drained_server_gets_nobody_where_nothing_can_be_reserved(start: Start, fleet: FleetBuilder) -> None:
    told(fleet, "ts01", "ts02", drained=("ts01",))
    fleet.listing("ts02", Kind.SESSIONS, row("bob"))
    with start("ts01, ts02") as broker:
        # As by a Redis that takes no writes.
        broker.side.run(NO_WRITES)
        assert broker.select()["server"] == "ts02"


def test_a_broker_that_asks_nobody_for_want_of_a_key_says_so(start: Start, fleet: FleetBuilder) -> None:
    told(fleet, "ts01", "ts02")
    with start("ts01, ts02") as broker:
        broker.select()
        assert broker.side.value("list(activation.fleet._said)") == []
        broker.side.run("x2gobroker.agent.has_remote_broker_agent_setup = lambda: False")
        broker.select()
        (said,) = broker.side.value("list(activation.fleet._said)")
    assert "x2gobroker-keygen" in said


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_running_session_on_a_host_that_does_not_listen_is_passed_over(
    start: Start, fleet: FleetBuilder, hosts: int
) -> None:
    told(fleet, *("ts01", "ts02")[:hosts])
    fleet.listing("ts01", Kind.SESSIONS, row())
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        # Nothing listens on port 1.
        names = ["ts01 (127.0.0.1:1)", f"ts02 (127.0.0.1:{port})"][:hosts]
        with start(", ".join(names), trust_polls=False) as broker:
            selected = broker.side.value("broker().select_session('mate', 'alice')")
            assert broker.side.value("asked") == ["suspendsession"]
    assert selected["server"] == "127.0.0.1"
    assert "session_info" not in selected
    if hosts == 2:
        assert selected["port"] == port


def test_of_rows_with_one_name_only_that_of_the_host_that_does_not_listen_is_removed(
    start: Start, fleet: FleetBuilder
) -> None:
    told(fleet, "ts01")
    with start("ts01") as broker:
        broker.side.run("from x2gofleet.adapters.x2gobroker import _Selectable")
        for rows, removed, left in (
            (["a|n|1|h1|R|d", "b|n|1|h2|S|d"], "a|n|1|h1|S|d", ["b|n|1|h2|S|d"]),
            (["a|n|1|h1|S|d", "b|n|1|h2|R|d"], "a|n|1|h1|S|d", ["b|n|1|h2|R|d"]),
            (["a|n|1|h1|R|d", "a|n|1|h1|S|d"], "a|n|1|h1|S|d", ["a|n|1|h1|R|d"]),
        ):
            assert broker.side.run(f"rows = _Selectable({rows!r}); rows.remove({removed!r})", "rows") == left


# The agents of the hosts answer from these rows, by host and login; what they are asked is in `asked`.
AGENTS = """
rows = {rows!r}

def agent(username, task, remote_agent=None, **arguments):
    asked.append([task, username, remote_agent["hostname"]])
    return True, rows.get(remote_agent["hostname"], {{}}).get(username, [])

x2gobroker.agent._call_remote_broker_agent = agent
aliases.update({aliases!r})
activation.accounts._look_up = aliases.get
"""


def resumed(broker: Broker, username: str) -> str | None:
    """Return the name of the session that a login is offered, None where there is none."""
    selected = broker.side.value(f"broker().select_session('mate', {username!r})")
    return selected["session_info"].split("|")[1] if "session_info" in selected else None


@pytest.mark.parametrize("login", ["Alice", "alice@corp.example.org", "CORP\\alice", "asmith"])
def test_an_alias_that_the_broker_s_host_knows_is_answered_from_the_cache(
    start: Start, fleet: FleetBuilder, login: str
) -> None:
    told(fleet, "ts01", "ts02")
    fleet.listing("ts02", Kind.SESSIONS, row("alice", status="S", hostname="ts02"))
    with start("ts01, ts02") as broker:
        broker.side.run(AGENTS.format(rows={}, aliases={login: "alice"}))
        assert resumed(broker, login) == session_name("alice")
        assert broker.side.value("broker().get_profile_for_user('mate', " + repr(login) + ")['status']") == "S"
        assert broker.side.value("asked") == []


@pytest.mark.parametrize("login", ["Alice", "alice@corp.example.org", "corp+alice"])
def test_an_alias_that_the_host_does_not_know_is_asked_of_the_server_that_may_have_its_session(
    start: Start, fleet: FleetBuilder, login: str
) -> None:
    told(fleet, "ts01", "ts02", "ts03")
    own = row("alice", status="S", hostname="ts02")
    fleet.listing("ts02", Kind.SESSIONS, own)
    with start("ts01, ts02, ts03") as broker:
        rows = {"ts02": {login: [own.decode().strip()]}}
        broker.side.run(AGENTS.format(rows=rows, aliases={}))
        assert resumed(broker, login) == session_name("alice")
        assert broker.side.value("asked") == [["listsessions", login, "ts02"]]
        # What the agent said is remembered: no login after it asks.
        assert resumed(broker, login) == session_name("alice")
        assert len(broker.side.value("asked")) == 1


def test_an_alias_that_is_another_account_after_all_gets_a_new_session(
    start: Start, fleet: FleetBuilder, reader: FleetCache
) -> None:
    told(fleet, "ts01", "ts02")
    fleet.listing("ts02", Kind.SESSIONS, row("alice", status="S", hostname="ts02"))
    with start("ts01, ts02") as broker:
        broker.side.run(AGENTS.format(rows={}, aliases={}))
        assert broker.side.value("broker().select_session('mate', 'CORP\\\\alice')")["server"] == "ts01"
        # As x2gobroker has to write it for the two shells before the agent.
        assert broker.side.value("asked") == [["listsessions", "CORP\\\\alice", "ts02"]]
    assert reader.reservations("mate") == {"ts01": 1, "ts02": 0}


@pytest.mark.parametrize(("unknown_names", "asked"), [("ask", 1), ("cached", 0)])
def test_a_name_that_nobody_knows_is_asked_of_an_agent_until_it_has_a_session(
    start: Start, fleet: FleetBuilder, unknown_names: str, asked: int
) -> None:
    told(fleet, "ts01", "ts02")
    with start("ts01, ts02", unknown_names=unknown_names) as broker:
        broker.side.run(AGENTS.format(rows={}, aliases={}))
        assert resumed(broker, "carol") is None
        assert [task for task, *_ in broker.side.value("asked")] == ["listsessions"] * asked
        fleet.listing("ts01", Kind.SESSIONS, row("carol"))
        assert resumed(broker, "carol") == session_name("carol")
        fleet.listing("ts01", Kind.SESSIONS, b"")
        assert resumed(broker, "carol") is None
        assert len([task for task, *_ in broker.side.value("asked") if task == "listsessions"]) == asked


@pytest.mark.parametrize("prefix", ["user", "corp+user", "CORP\\user", "u" * 78, "Алиса"])
def test_twelve_logins_spread_over_three_idle_servers(
    start: Start, fleet: FleetBuilder, reader: FleetCache, prefix: str
) -> None:
    told(fleet, "ts01", "ts02", "ts03")
    with start("ts01, ts02, ts03") as broker:
        chosen = [broker.select(f"{prefix}{number:02}")["server"] for number in range(12)]
        assert broker.side.value("list(activation.fleet._said)") == []
    assert {host: chosen.count(host) for host in chosen} == {"ts01": 4, "ts02": 4, "ts03": 4}
    assert reader.reservations("mate") == {"ts01": 4, "ts02": 4, "ts03": 4}
