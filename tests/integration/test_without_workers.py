"""What docs/metrics.md says can be checked without any worker: the command status, and keys in Redis, by role."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.acl_users import user_of
from tests.processes import LiveFleet, live_fleet, wait_until
from x2gofleet.acl import Role
from x2gofleet.connection import client_from_url

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
PATIENCE_SECONDS = 90.0
LONGEST_TTL_MS = 15_000


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path, servers=2) as made:
        made.valkey.start()
        yield made


def status(url: str, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "x2gofleet.cli", "--redis-url", url, *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("X2GOFLEET_")},
    )
    return done.returncode, done.stdout + done.stderr


def documented() -> dict[str, Role]:
    """Return each command for redis-cli in the document, with the role that may run it."""
    rows = re.findall(r"^\| `redis-cli (.+)` \| (reader|broker) \|", DOCUMENT.read_text(encoding="utf-8"), re.M)
    return {command: Role(role) for command, role in rows}


def answers(fleet: LiveFleet, worker: str) -> dict[str, Any]:
    """Return what Redis answers to each documented command, run as a user of the role that the document names."""
    found = {}
    for command, role in documented().items():
        words = [word.replace("ID", worker) for word in shlex.split(command)]
        with ExitStack() as stack:
            url = stack.enter_context(user_of(fleet.valkey.client, fleet.valkey.url, "x2gofleet", role))
            client = client_from_url(url, connect_timeout_seconds=5, command_timeout_seconds=5)
            stack.callback(client.close)
            found[words[0] + " " + words[1].rpartition(":")[2]] = client.execute_command(*words)
    return found


def test_the_exit_status_of_status_says_that_no_worker_lives(fleet: LiveFleet) -> None:
    url = fleet.valkey.url
    check = ("status", "--fail-on-down")
    assert status(url, *check)[0] == 1, "no worker ever ran"
    worker = fleet.start("w1", fleet.write_inventory(sessions=0.5, load=0))
    wait_until(fleet.is_full, "all servers are polled", PATIENCE_SECONDS)
    assert status(url, *check)[0] == 0
    worker.process.send_signal(signal.SIGKILL)
    worker.process.wait()
    wait_until(lambda: status(url, *check)[0] == 1, "every server is unknown", PATIENCE_SECONDS)
    assert "unknown" in status(url, *check)[1]
    with user_of(fleet.valkey.client, url, "x2gofleet", Role.READER) as reader:
        assert status(reader, *check)[0] == 1, "it needs the rights of a reader alone"
    fleet.valkey.kill()
    assert status(url, *check)[0] == 3


def test_the_keys_in_redis_say_so_too(fleet: LiveFleet) -> None:
    assert set(documented().values()) == {Role.READER, Role.BROKER}
    assert len(documented()) == 4
    worker = fleet.start("w1", fleet.write_inventory(sessions=0.5, load=0))
    wait_until(fleet.is_full, "all servers are polled", PATIENCE_SECONDS)
    alive = answers(fleet, "w1")
    assert (alive["EXISTS lease"], alive["EXISTS w1"], alive["ZREVRANGE workers"]) == (1, 1, [b"w1"])
    assert 0 < alive["PTTL sessions"] <= LONGEST_TTL_MS
    worker.process.send_signal(signal.SIGKILL)
    worker.process.wait()

    def expired() -> bool:
        dead = answers(fleet, "w1")
        return (dead["EXISTS lease"], dead["EXISTS w1"], dead["PTTL sessions"]) == (0, 0, -2)

    wait_until(expired, "lease, heartbeat and snapshot expire", PATIENCE_SECONDS)
    assert answers(fleet, "w1")["ZREVRANGE workers"] in ([b"w1"], [])
