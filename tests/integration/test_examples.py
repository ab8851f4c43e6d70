"""The examples do what the documents say, as programs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from x2gofleet_workers.embedded import EmbeddedValkey

from x2gofleet.connection import client_from_url
from x2gofleet.keys import Keys
from x2gofleet.store import Store

from ..conftest import FleetBuilder  # noqa: TID252
from .reader import LOAD, row, session_name

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def url() -> Iterator[str]:
    """A Redis of which examples know the URL alone: the fleet is in the default namespace."""
    with EmbeddedValkey() as valkey:
        client = client_from_url(valkey.url, command_timeout_seconds=5.0)
        fleet = FleetBuilder(Store(client, Keys(), "w1"))
        fleet.publish({"mate": ["ts01", "ts02"]})
        fleet.listing("ts01", "sessions", row("alice") + row("bob", 51, "S"))
        fleet.listing("ts02", "sessions", row("alice", 52, hostname="ts02"))
        for server in ("ts01", "ts02"):
            fleet.listing(server, "load", LOAD)
            fleet.listing(server, "mounts", f"{session_name('alice')}|192.0.2.17|/media/{server}\n")
        client.close()
        yield valkey.url


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
    assert asked.endswith(" s ago; missing: ()")
    assert mounts == "['192.0.2.17|/media/ts01', '192.0.2.17|/media/ts02']"
    assert load.startswith("{'ts01': ")


def test_reading_with_asyncio(url: str) -> None:
    assert run("read_async.py", url) == ["alice ['R on ts01', 'R on ts02']", "bob ['S on ts01']"]


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
