"""Changes on a real server are served long before the next poll at its interval: the probe notices them."""

from __future__ import annotations

from collections.abc import Callable

from x2gofleet.events import EventKind

from .conftest import FarmFactory, PollFactory
from .polled import PROFILE, PolledFleet
from .realserver import RealX2GoServer

# Longer than a test waits: what is served before was noticed.
RARELY = {"sessions": 3600, "load": 3600, "mounts": 3600}
LASTING = {"sessions": 7200, "load": 7200, "mounts": 7200}


def statuses(polled: PolledFleet) -> dict[str, str]:
    found = polled.cache.list_sessions(profile_name=PROFILE)
    return {} if found is None else {name: info.status for name, info in found.items()}


def test_each_change_of_a_session_is_noticed(server: RealX2GoServer, poll: PollFactory) -> None:
    polled = poll({"ts01": server}, intervals=RARELY, ttls=LASTING)
    polled.wait_until(lambda: polled.cache.is_cached(PROFILE, cache_type="sessions"), "the first poll")
    name = server.insert_session("alice", 50)
    other = server.insert_session("bob", 51)
    steps: tuple[tuple[Callable[[], object], dict[str, str]], ...] = (
        (lambda: None, {name: "R", other: "R"}),
        (lambda: server.change_status("alice", name, "S"), {name: "S", other: "R"}),
        (lambda: server.change_status("alice", name, "R"), {name: "R", other: "R"}),
        # What only the agent's state file says: X2Go's listing prints it as suspended.
        (lambda: server.set_agent_state("bob", other, "SUSPENDED"), {name: "R", other: "S"}),
        (lambda: server.set_agent_state("bob", other, "RUNNING"), {name: "R", other: "R"}),
        (lambda: server.change_status("alice", name, "F"), {other: "R"}),
    )
    for change, expected in steps:
        change()
        polled.wait_until(lambda expected=expected: statuses(polled) == expected, str(expected))
    # A session that starts is written more than once: what is seen of it in between is "changed".
    told = [(str(event.kind), event.session) for event in polled.cache.events() if event.kind != EventKind.CHANGED]
    assert [kind for kind, session in told if session == name] == ["started", "suspended", "resumed", "ended"]
    assert [kind for kind, session in told if session == other] == ["started", "suspended", "resumed"]


def test_a_probe_that_is_killed_is_replaced_and_no_change_is_missed(server: RealX2GoServer, poll: PollFactory) -> None:
    polled = poll({"ts01": server}, intervals=RARELY, ttls=LASTING)
    polled.wait_until(lambda: polled.cache.is_cached(PROFILE, cache_type="sessions"), "the first poll")
    server.drop_connections()
    name = server.insert_session("alice", 50)
    polled.wait_until(lambda: statuses(polled) == {name: "R"}, "the session")
    other = server.insert_session("bob", 51)
    polled.wait_until(lambda: statuses(polled) == {name: "R", other: "R"}, "the other session")


def test_on_postgresql_changes_of_rows_and_of_states_are_noticed(
    start_postgres_farm: FarmFactory, poll: PollFactory
) -> None:
    farm = start_postgres_farm(("ts01", "ts02"))
    polled = poll(farm.servers, intervals=RARELY, ttls=LASTING)
    polled.wait_until(lambda: polled.cache.is_cached(PROFILE, cache_type="sessions"), "the first poll")
    name = farm.create_session("ts01", "alice")
    polled.wait_until(lambda: statuses(polled) == {name: "R"}, "the session")
    farm.suspend_session("ts01", "alice", name)
    polled.wait_until(lambda: statuses(polled) == {name: "S"}, "its suspension")
    other = farm.create_session("ts02", "bob")
    polled.wait_until(lambda: statuses(polled) == {name: "S", other: "R"}, "the session on ts02")
    farm.servers["ts02"].set_agent_state("bob", other, "SUSPENDED")
    polled.wait_until(lambda: statuses(polled) == {name: "S", other: "S"}, "the state of its agent")
