"""The examples do what the documents say, as programs of their own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from x2gofleet_workers.embedded import EmbeddedValkey

from tests.waiting import PATIENT
from x2gofleet.connection import client_from_url
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.store import Store

from ..conftest import FleetBuilder  # noqa: TID252
from .reader import LOAD, row, session_name

EXAMPLES = Path(__file__).parents[2] / "examples"


class Sample:
    """A fleet of two servers in the default namespace of a Redis of its own: examples know the URL alone."""

    def __init__(self, url: str, client: redis.Redis) -> None:
        self.url, self._client, self._keys = url, client, Keys()
        self.fleet = FleetBuilder(Store(client, self._keys, "w1"))
        self.fleet.publish({"mate": ["ts01", "ts02"]})
        self.poll("ts01", row("alice") + row("bob", 51, "S"))
        self.poll("ts02", row("alice", 52, hostname="ts02"))

    def poll(self, server: str, sessions: bytes) -> None:
        """The server answers."""
        self.fleet.listing(server, "sessions", sessions)
        self.fleet.listing(server, "load", LOAD)
        self.fleet.listing(server, "mounts", f"{session_name('alice')}|192.0.2.17|/media/{server}\n")

    def expire(self, *servers: str) -> None:
        """Nobody has polled these servers for longer than their snapshots last."""
        self._client.delete(*(self._keys.snapshot(server, kind) for server in servers for kind in Kind))

    def take_down(self, server: str) -> None:
        """The server has been down for longer than its snapshots last."""
        self.fleet.failure(server, kinds=(Kind.SESSIONS, Kind.LOAD, Kind.MOUNTS))
        self.expire(server)


@pytest.fixture
def sample() -> Iterator[Sample]:
    """Two servers that are up."""
    with EmbeddedValkey() as valkey:
        client = client_from_url(valkey.url, **PATIENT)
        yield Sample(valkey.url, client)
        client.close()


@pytest.fixture
def url(sample: Sample) -> str:
    """Of the Redis of the sample."""
    return sample.url


def run(name: str, url: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        env={**os.environ, "X2GOFLEET_REDIS_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_reading(url: str) -> None:
    first, one, two, asked, mounts, load = run("read.py", url)
    assert first == "True False"
    assert [one, two] == [f"{session_name('alice')} R on ts01", f"{session_name('alice', 52)} R on ts02"]
    assert asked.startswith("asked ")
    assert asked.endswith(" s ago; unknown on: ()")
    assert mounts == "['192.0.2.17|/media/ts01', '192.0.2.17|/media/ts02']"
    assert load.startswith("{'ts01': ")


def test_reading_with_asyncio(url: str) -> None:
    assert run("read_async.py", url) == [
        "alice ['R on ts01', 'R on ts02'] unknown on: ()",
        "bob ['S on ts01'] unknown on: ()",
    ]


def make_unknown(sample: Sample) -> None:
    sample.expire("ts02")


def make_down(sample: Sample) -> None:
    sample.take_down("ts02")


def make_all_down(sample: Sample) -> None:
    sample.take_down("ts01")
    sample.take_down("ts02")


@pytest.mark.parametrize("make", [make_unknown, make_all_down])
def test_what_is_unknown_is_not_read_as_none(sample: Sample, make: Callable[[Sample], None]) -> None:
    make(sample)
    assert run("read.py", sample.url) == [
        "False False",
        "alice's sessions are unknown: profile mate is not cached",
        "None",
        "None",
    ]
    unknown = "unknown: the fleet is not cached"
    assert run("read_async.py", sample.url) == [f"alice {unknown}", f"bob {unknown}"]


def test_servers_that_are_down_are_named_as_unknown(sample: Sample) -> None:
    make_down(sample)
    _, one, asked, mounts, load = run("read.py", sample.url)
    assert one == f"{session_name('alice')} R on ts01"
    assert asked.endswith(" s ago; unknown on: ('ts02',)")
    assert mounts == "['192.0.2.17|/media/ts01']"
    assert list(ast.literal_eval(load)) == ["ts01"]
    assert run("read_async.py", sample.url) == [
        "alice ['R on ts01'] unknown on: ('ts02',)",
        "bob ['S on ts01'] unknown on: ('ts02',)",
    ]


def test_without_an_inventory_all_is_unknown() -> None:
    with EmbeddedValkey() as valkey:
        assert run("read.py", valkey.url)[1:] == [
            "alice's sessions are unknown: profile mate is not cached",
            "None",
            "None",
        ]


def test_following_tells_unknown_from_ended(sample: Sample) -> None:
    command = [sys.executable, "-u", "-W", "error", str(EXAMPLES / "follow.py"), "mate"]
    environment = {**os.environ, "X2GOFLEET_REDIS_URL": sample.url}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None

            def lines(count: int) -> set[str]:
                assert process.stdout is not None
                return {process.stdout.readline().strip() for _ in range(count)}

            one, two = f"ts01  {session_name('alice')}  ", f"ts02  {session_name('alice', 52)}  "
            bob = f"ts01  {session_name('bob', 51)}  "
            assert lines(4) == {f"{one}- -> R", f"{bob}- -> S", f"{two}- -> R", "mate: 3 session(s)"}
            sample.take_down("ts02")
            assert lines(2) == {f"{two}R -> unknown", "mate: 2 session(s), unknown on ts02"}
            sample.expire("ts01")
            assert lines(1) == {"mate: unknown: not cached"}
            sample.poll("ts01", row("alice"))
            assert lines(2) == {f"{bob}S -> -", "mate: 1 session(s), unknown on ts02"}
            sample.poll("ts02", b"")
            assert lines(2) == {f"{two}unknown -> -", "mate: 1 session(s)"}
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture
def ask_broker(url: str) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs examples/broker.py; ``ask_broker(task="...")`` posts a form as X2Go Client does."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / "broker.py"), url, "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as broker:
        assert broker.stdout is not None
        address = broker.stdout.readline().strip()

        def ask(**form: str) -> tuple[int, str]:
            try:
                with urllib.request.urlopen(address, urllib.parse.urlencode(form).encode(), timeout=10) as reply:
                    return reply.status, reply.read().decode()
            except urllib.error.HTTPError as exc:
                with exc:
                    return exc.code, exc.read().decode()

        try:
            yield ask
        finally:
            broker.terminate()


def test_a_broker_of_sixty_lines(ask_broker: Callable[..., tuple[int, str]]) -> None:
    assert ask_broker(task="listsessions", user="alice", password="x") == (
        200,
        "Access granted\nSTART_USER_SESSIONS\n\n[mate]\nname=mate\nuser=alice\n\nEND_USER_SESSIONS\n",
    )
    status, answer = ask_broker(task="selectsession", user="bob", password="x", sid="mate")
    row_of_bob = row("bob", 51, "S").decode().strip()
    assert (status, answer) == (200, f"Access granted\nSERVER:ts01:22\nSESSION_INFO:{row_of_bob}\n")
    newcomers = [ask_broker(task="selectsession", user=f"new{n}", sid="mate")[1] for n in range(4)]
    # ts01 has two sessions, ts02 one: the first newcomer evens that out.
    assert [answer.count("SERVER:ts02:22") for answer in newcomers].count(1) in (2, 3)
    assert not any("SESSION_INFO" in answer for answer in newcomers)
    assert ask_broker(task="listsessions")[0] == 401
    assert ask_broker(task="listsessions", user="zoe\nSERVER:evil:22")[0] == 401
    other = ask_broker(task="selectsession", user="zoe", login="bob", sid="mate")
    assert "SESSION_INFO" not in other[1]
    status, answer = ask_broker(task="selectsession", user="alice", sid="nowhere")
    assert (status, answer) == (
        503,
        "no server of profile 'nowhere' can take a login: the fleet is not cached\n",
    )
