"""The commands, as an operator runs them, beside a worker that is killed and a server that is stopped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..processes import LiveFleet, live_fleet, wait_until  # noqa: TID252

pytestmark = pytest.mark.faults
TTL = "[ttls]\nsessions = 4\n"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path, servers=2, sessions=6) as fleet:
        fleet.valkey.start()
        yield fleet


def command(fleet: LiveFleet, *argv: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "x2gofleet.cli", *argv, "--redis-url", fleet.valkey.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={key: value for key, value in os.environ.items() if not key.startswith("X2GOFLEET_")},
    )
    return done.returncode, done.stdout, done.stderr


def status(fleet: LiveFleet) -> Any:
    return json.loads(command(fleet, "status", "--json")[1])


def states(fleet: LiveFleet) -> list[str]:
    return [{True: "up", False: "down", None: "unknown"}[server.up] for server in fleet.cache.servers()]


def test_a_killed_worker_leaves_unknown_behind_and_not_none(fleet: LiveFleet, tmp_path: Path) -> None:
    inventory = fleet.write_inventory(more=TTL, sessions=0.5, load=1)
    fleet.start("w1", inventory)
    fleet.wait_for_shares("w1")
    assert status(fleet)["summary"]["sessions"]["total"] == 6
    up_since = {server.id: server.since_ms or 0 for server in fleet.cache.servers()}
    wait_until(lambda: all(fleet.polled_at(name) > at for name, at in up_since.items()), "they are polled again")
    polled = {name: fleet.polled_at(name) for name in up_since}
    complaints = (tmp_path / "follow.err").open("w+")
    following = subprocess.Popen(
        [sys.executable, "-m", "x2gofleet.cli", "events", "--follow", "--redis-url", fleet.valkey.url],
        stdout=subprocess.DEVNULL,
        stderr=complaints,
    )
    try:
        killed = fleet.workers.pop("w1")
        killed.process.kill()
        killed.process.wait()
        wait_until(lambda: states(fleet) == ["unknown"] * 2, "both are unknown")
        wait_until(lambda: not fleet.owners(), "the leases of the killed worker expire")

        for argv in (["status"], ["watch"]):
            _, out, _ = command(fleet, *argv)
            assert out.splitlines()[-1] == "2 servers: 2 unknown; sessions unknown"
            assert "no sessions" not in out
            assert len(re.findall(r"^ts0\d: unknown: last polled \S+ s ago; not owned by any worker", out, re.M)) == 2
        document = status(fleet)
        assert document["summary"]["sessions"] is None
        assert document["summary"]["sessions_known"] == {"known": 0, "partly": 0, "unknown": 2}
        assert [(each["state"], each["sessions"]) for each in document["servers"]] == [("unknown", None)] * 2
        for server in fleet.cache.servers():
            assert (server.since_ms or 0) >= polled[server.id] > up_since[server.id], "since is the last poll"
        assert command(fleet, "sessions")[:2] == (1, "")
        assert "the sessions on ts01, ts02 are unknown" in command(fleet, "sessions")[2]
        assert "the changes on ts01, ts02 are unknown" in command(fleet, "events")[2]
        assert fleet.cache.find_sessions(username="alice") is None
        followed = tmp_path / "follow.err"
        wait_until(lambda: "changes on ts01, ts02 are unknown" in followed.read_text(), "following says so, too")

        last = {server["id"]: server["since"] for server in document["servers"]}
        fleet.start("w2", inventory)
        fleet.wait_for_shares("w2")
        after = status(fleet)
        assert after["summary"]["sessions"]["total"] == 6
        for server in after["servers"]:
            assert server["state"] == "up"
            assert server["since"] > last[server["id"]], "up since it was polled again, not since before the gap"
        wait_until(lambda: "the changes on ts01, ts02 are seen again" in followed.read_text(), "and when it is over")
    finally:
        following.kill()
        following.wait()
        complaints.close()
    fleet.check_workers()


def test_a_stopped_server_leaves_unknown_behind_and_not_none(fleet: LiveFleet) -> None:
    fleet.start("w1", fleet.write_inventory(more=TTL, sessions=0.5, load=1))
    fleet.wait_for_shares("w1")
    sessions = {server["id"]: server["sessions"]["total"] for server in status(fleet)["servers"]}
    fleet.simulation.servers["ts02"].set_fault("dead")
    wait_until(lambda: states(fleet) == ["up", "down"], "ts02 is down")
    wait_until(lambda: len(fleet.cache.snapshots(profile_name="all", kind="sessions")) == 1, "its snapshot expires")

    for argv in (["status"], ["watch"]):
        _, out, _ = command(fleet, *argv)
        last = out.splitlines()[-1]
        assert last.startswith(f"2 servers: 1 up, 1 down; at least {sessions['ts01']} session")
        assert "; those of 1 server are unknown; oldest answer " in last
    summary = status(fleet)["summary"]
    assert (summary["sessions"]["total"], summary["sessions_known"]["unknown"]) == (sessions["ts01"], 1)
    assert command(fleet, "sessions", "--user", "nobody")[:2] == (
        0,
        "no sessions of nobody on 1 server; those of 1 server are unknown\n",
    )
    assert "incomplete: ts02 is down: its sessions are unknown: " in command(fleet, "sessions")[2]

    fleet.simulation.servers["ts01"].set_fault("dead")
    wait_until(lambda: not fleet.cache.snapshots(profile_name="all", kind="sessions"), "no snapshot is left")
    for argv in (["status"], ["watch"]):
        _, out, _ = command(fleet, *argv)
        assert out.splitlines()[-1] == "2 servers: 2 down; sessions unknown"
        assert "no sessions" not in out
    assert status(fleet)["summary"]["sessions"] is None
    assert fleet.cache.list_sessions(profile_name="all") is None

    for server in fleet.simulation.servers.values():
        server.clear_fault()
    wait_until(lambda: states(fleet) == ["up", "up"], "both are up again")
    assert command(fleet, "status")[1].splitlines()[-1].startswith("2 servers: 2 up; 6 sessions: ")
    fleet.check_workers()
