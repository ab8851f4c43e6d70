"""A farm on PostgreSQL, polled as one of its users: on each server what X2Go's own commands print for that user."""

from __future__ import annotations

import pytest

from .conftest import FarmFactory, LoginKey, PollFactory
from .polled import INTERVALS, PROFILE, PolledFleet
from .polled_farm import lines
from .postgres_farm import PostgresFarm

# Each poll here is three or four of X2Go's own commands.
SLOWER = {**INTERVALS, "sessions": 1, "desktops": 1, "mounts": 1}


@pytest.fixture(scope="module")
def module_farm(start_module_postgres_farm: FarmFactory, login_key: LoginKey) -> PostgresFarm:
    farm = start_module_postgres_farm(max_connections=40)
    for server in farm.servers.values():
        server.authorize("alice", login_key.public_text)
    return farm


@pytest.fixture
def polled(farm: PostgresFarm, poll: PollFactory) -> PolledFleet:
    profiles = {PROFILE: {"servers": list(farm.servers), "user": "alice"}}
    polled = poll(farm.servers, profiles=profiles, login={"deadline": 20}, intervals=SLOWER)
    polled.wait_until(lambda: polled.cache.is_cached(PROFILE, cache_type="sessions"), "the first snapshots")
    return polled


def test_rows_desktops_and_mounts_are_those_that_x2go_prints(farm: PostgresFarm, polled: PolledFleet) -> None:
    own = farm.create_session("ts01", "alice")
    starting = farm.create_session("ts01", "alice", started=False)
    suspended = farm.create_session("ts02", "alice")
    farm.suspend_session("ts02", "alice", suspended)
    theirs = farm.create_session("ts02", "bob")
    # Its row was made by bob's role: X2Go's view shows it to bob alone, though it is alice's session.
    farm.shadow_session("ts02", "bob", "alice")
    farm.insert_mount("ts01", "alice", own, "10.1.2.3", "/home/alice/media/disk/_with space")
    farm.insert_mount("ts02", "bob", theirs, "10.1.2.9", "/home/bob/media/disk/_tmp")
    expected = {"ts01": {own, starting}, "ts02": {suspended}, "ts03": set()}

    with farm.servers["ts01"].x_display("alice") as display, farm.servers["ts01"].x_display("bob"):
        for name, server in farm.servers.items():
            listed = polled.next_snapshot(server=name, username="alice")
            printed = server.run(["x2golistsessions"], "alice").stdout
            assert lines(listed.stdout) == lines(printed)
            assert set(listed.sessions()) == expected[name]
            mounts = polled.next_snapshot("mounts", name, username="alice")
            held = {key: server.run(["x2golistmounts", key], "alice").stdout.splitlines() for key in expected[name]}
            printed_mounts = [f"{key}|".encode() + line for key, found in held.items() for line in found if line]
            assert sorted(mounts.stdout.splitlines()) == sorted(printed_mounts)
            desktops = polled.next_snapshot("desktops", name, username="alice")
            assert desktops.stdout == (f"alice@{display}\n".encode() if name == "ts01" else b"")
    found = polled.cache.list_sessions(profile_name=PROFILE)
    assert found is not None
    assert set(found) == {own, starting, suspended}
    assert {info.username for info in found.rows} == {"alice"}


def test_changes_are_seen_on_the_server_where_they_happen(farm: PostgresFarm, polled: PolledFleet) -> None:
    name = farm.create_session("ts02", "alice")
    steps = {"suspended": farm.suspend_session, "resumed": farm.resume_session, "ended": farm.finish_session}
    for step, status in {"new": "R", "suspended": "S", "resumed": "R", "ended": ""}.items():
        if step in steps:
            steps[step]("ts02", "alice", name)
        listed = polled.next_snapshot(server="ts02", username="alice").sessions()
        assert {key: info.status for key, info in listed.items()} == ({name: status} if status else {})
        for other in ("ts01", "ts03"):
            assert not polled.next_snapshot(server=other, username="alice").sessions()
