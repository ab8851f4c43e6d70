"""The examples do what the documents say, as programs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
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
