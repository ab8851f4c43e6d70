"""What is not known is never shown as none: each state of a server x each command of `x2gofleet`, as text and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from x2gofleet.cli import main
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind

from .reader import LOAD, row, session_name

REFUSED = "the server refused the key"
LISTINGS = {"sessions": (), "desktops": ("--user", "alice"), "mounts": ()}


class World:
    """Brings servers into the states that the table names."""

    def __init__(self, fleet: Any, redis_client: redis.Redis, keys: Keys) -> None:
        self.fleet, self.client, self.keys = fleet, redis_client, keys

    def polled(self, target: str, sessions: bytes = b"", *, mounts: bytes = b"", age_seconds: float = 1) -> None:
        """A worker has polled the target well."""
        self.fleet.listing(target, "sessions", sessions, age_seconds=age_seconds)
        self.fleet.listing(target, "mounts", mounts, age_seconds=age_seconds)
        if "@" not in target:
            self.fleet.listing(target, "load", LOAD, age_seconds=age_seconds)
        owned = target if "@" in target else f"alice@{target}"
        self.fleet.listing(owned, "desktops", "", age_seconds=age_seconds)

    def failed(self, target: str) -> None:
        """A worker can't poll the target."""
        kinds = (Kind.SESSIONS, Kind.MOUNTS)
        self.fleet.failure(target, kinds=kinds, error_class="AuthenticationFailed", error_text=REFUSED, age_seconds=0.5)

    def expired(self, target: str) -> None:
        """Its snapshots have expired."""
        owned = target if "@" in target else f"alice@{target}"
        self.client.delete(*(self.keys.snapshot(name, kind) for name in (target, owned) for kind in Kind))

    def abandoned(self, target: str) -> None:
        """Its worker was killed, and its snapshots have expired since."""
        self.client.delete(self.keys.lease(target))
        self.expired(target)


def up(world: World) -> None:
    world.fleet.publish({"p": ["ts01"]})
    world.polled("ts01", row("alice"), mounts=f"{session_name('alice')}|192.0.2.17|/media\n".encode())


def idle(world: World) -> None:
    world.fleet.publish({"p": ["ts01"]})
    world.polled("ts01")


def drained(world: World) -> None:
    world.fleet.publish({"p": ["ts01"]}, drained=["ts01"])
    world.polled("ts01")


def just_down(world: World) -> None:
    idle(world)
    world.failed("ts01")


def down(world: World) -> None:
    idle(world)
    world.failed("ts01")
    world.expired("ts01")


def killed(world: World) -> None:
    idle(world)
    world.abandoned("ts01")


def killed_while_down(world: World) -> None:
    down(world)
    world.abandoned("ts01")


def stalled(world: World) -> None:
    idle(world)
    world.expired("ts01")


def drained_and_killed(world: World) -> None:
    drained(world)
    world.abandoned("ts01")


def never_polled(world: World) -> None:
    world.fleet.publish({"p": ["ts01"]})


def owned_and_never_polled(world: World) -> None:
    world.fleet.publish({"p": ["ts01"]})
    world.fleet.lease("ts01")


def one_of_two_users(world: World) -> None:
    world.fleet.publish({"p": ["alice@ts01"], "q": ["bob@ts01"]})
    world.polled("alice@ts01")


def one_of_two_users_down(world: World) -> None:
    one_of_two_users(world)
    world.failed("bob@ts01")


def one_of_two_down(world: World) -> None:
    world.fleet.publish({"p": ["ts01", "ts02"]})
    world.polled("ts01")
    world.failed("ts02")


def one_of_two_unknown(world: World) -> None:
    world.fleet.publish({"p": ["ts01", "ts02"]})
    world.polled("ts01", row("alice"))


def empty_beside_down_and_unknown(world: World) -> None:
    world.fleet.publish({"p": ["ts01", "ts02", "ts03"]})
    world.polled("ts01")
    world.failed("ts02")


def no_inventory(world: World) -> None:
    pass


@dataclass(frozen=True)
class State:
    """One state, and what is to be said of it.

    ``knowledge``: of how many servers the sessions are known, partly known, unknown. ``summary``: the end of status'
    last line. ``cached``: whether a listing of the fleet is an answer. ``since``: whether SINCE has a time.
    """

    make: Callable[[World], None]
    word: str
    knowledge: tuple[int, int, int]
    summary: str
    cached: bool
    since: bool = True

    @property
    def complete(self) -> bool:
        return self.knowledge[0] > 0 and self.knowledge[1:] == (0, 0)


NONE_KNOWN = "sessions unknown"
UNKNOWN_ONE = "those of 1 server are unknown"
STATES = [
    State(up, "up", (1, 0, 0), "1 session: 1 running", cached=True),
    State(idle, "up", (1, 0, 0), "no sessions", cached=True),
    State(drained, "up, drained", (1, 0, 0), "no sessions", cached=True),
    State(just_down, "down", (1, 0, 0), "no sessions", cached=True),
    State(down, "down", (0, 0, 1), NONE_KNOWN, cached=False),
    State(killed, "unknown", (0, 0, 1), NONE_KNOWN, cached=False),
    State(killed_while_down, "down", (0, 0, 1), NONE_KNOWN, cached=False),
    State(stalled, "unknown", (0, 0, 1), NONE_KNOWN, cached=False),
    State(drained_and_killed, "unknown, drained", (0, 0, 1), NONE_KNOWN, cached=False),
    State(never_polled, "unknown", (0, 0, 1), NONE_KNOWN, cached=False, since=False),
    State(owned_and_never_polled, "unknown", (0, 0, 1), NONE_KNOWN, cached=False, since=False),
    State(one_of_two_users, "up", (0, 1, 0), "those of 1 server are known in part", cached=False),
    State(one_of_two_users_down, "up", (0, 1, 0), "those of 1 server are known in part", cached=True),
    State(one_of_two_down, "up", (1, 0, 1), f"no sessions on 1 server; {UNKNOWN_ONE}", cached=True),
    State(one_of_two_unknown, "up", (1, 0, 1), f"at least 1 session: 1 running; {UNKNOWN_ONE}", cached=False),
    State(
        *(empty_beside_down_and_unknown, "up", (1, 0, 2)),
        "no sessions on 1 server; those of 2 servers are unknown",
        cached=False,
    ),
    State(no_inventory, "", (0, 0, 0), "", cached=False),
]
of_every_state = pytest.mark.parametrize("state", STATES, ids=lambda state: state.make.__name__)
of_every_state_with_servers = pytest.mark.parametrize("state", STATES[:-1], ids=lambda state: state.make.__name__)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def world(fleet: Any, redis_client: redis.Redis, keys: Keys) -> World:
    return World(fleet, redis_client, keys)


@pytest.fixture
def run(valkey_url: str, namespace: str, capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*argv: str) -> tuple[int, str, str]:
        status = main([*argv, "--redis-url", valkey_url, "--namespace", namespace])
        out, err = capsys.readouterr()
        return status, out, err

    return command


def claims_of_none(text: str) -> list[str]:
    """Return the lines that say that there are no sessions, desktops, mounts or events, and name no limit of that."""
    claims = re.findall(r"^.*\bno (?:sessions|desktops|mounts|events)\b.*$", text, re.M)
    return [line for line in claims if not re.search(r"unknown|known in part|are known$", line)]


@of_every_state
@pytest.mark.parametrize(
    "argv",
    [
        ["status"],
        ["watch"],
        ["sessions"],
        ["sessions", "--user", "zoe"],
        ["sessions", "--profile", "p"],
        ["desktops", "--user", "alice"],
        ["mounts"],
        ["mounts", "--profile", "p"],
        ["events"],
    ],
    ids=" ".join,
)
def test_no_text_says_none_where_it_does_not_know(run: Run, world: World, state: State, argv: list[str]) -> None:
    state.make(world)
    status, out, err = run(*argv)
    said = out + err
    if state.make is no_inventory:
        assert (status, out) == (1, "")
        assert "no worker has published an inventory" in err
        return
    asks_alice_alone = state.make in (one_of_two_users, one_of_two_users_down) and ("p" in argv or "alice" in argv)
    if state.complete or asks_alice_alone:
        blind = argv == ["events"] and state.make is just_down
        assert ("unknown" in said) is blind, said
        return
    assert claims_of_none(said) == []
    assert re.search(r"unknown|known in part|nothing in the fleet is polled for the sessions of zoe", said), said


@of_every_state_with_servers
@pytest.mark.parametrize("command", ["status", "watch"])
def test_the_summary(run: Run, world: World, state: State, command: str) -> None:
    state.make(world)
    status, out, err = run(command)
    assert (status, err) == (0, "")
    last = out.splitlines()[-1]
    assert re.sub(r"; oldest answer .*", "", last).endswith(state.summary)
    assert ("oldest answer" in last) is (state.knowledge[0] + state.knowledge[1] > 0)
    first_server = re.split(r"\s{2,}", out.splitlines()[1])
    assert first_server[:2] == ["ts01", state.word]
    assert (first_server[2] != "-") is state.since
    numbers = first_server[4:7]
    if state.knowledge[1]:
        assert numbers == ["0+"] * 3
    elif state.knowledge[0]:
        assert all(number.isdigit() for number in numbers)
    else:
        assert numbers == ["-"] * 3


@of_every_state
@pytest.mark.parametrize("command", ["status", "watch"])
def test_the_summary_as_json(run: Run, world: World, state: State, command: str) -> None:
    state.make(world)
    status, out, _ = run(command, "--json")
    document = json.loads(out)
    assert status == (0 if document["cached"] else 1)
    known, partly, unknown = state.knowledge
    summary = document["summary"]
    assert summary["sessions_known"] == {"known": known, "partly": partly, "unknown": unknown}
    assert (summary["sessions"] is None) is (known + partly == 0)
    for server in document["servers"]:
        assert server["sessions_known"] in ("known", "partly", "unknown")
        assert (server["sessions"] is None) is (server["sessions_known"] == "unknown")
        assert (server["since"] is None) is (server["since_seconds"] is None)
    if document["servers"]:
        assert (document["servers"][0]["since"] is not None) is state.since
        assert document["servers"][0]["state"] == state.word.removesuffix(", drained")


@of_every_state
@pytest.mark.parametrize("command", LISTINGS)
def test_a_listing_as_json(run: Run, world: World, state: State, command: str) -> None:
    state.make(world)
    cached, complete = state.cached, state.complete
    if command == "desktops" and state.make in (one_of_two_users, one_of_two_users_down):
        # Bob's target has no part in what alice may share.
        cached = complete = True
    status, out, _ = run(command, *LISTINGS[command], "--json")
    document = json.loads(out)
    assert document["cached"] is cached
    assert status == (0 if cached else 1)
    assert (document[command] is None) is not cached
    assert document["complete"] is complete
    assert bool(document["missing_servers"]) is (not complete and state.make is not no_inventory)


@of_every_state
def test_events_as_json_name_the_servers_whose_changes_nobody_sees(run: Run, world: World, state: State) -> None:
    state.make(world)
    document = json.loads(run("events", "--json")[1])
    known, partly, unknown = state.knowledge
    expected = partly + unknown + (state.make is just_down)
    assert len(document["missing_servers"]) == expected
    assert set(document["unknown_servers"]) <= set(document["missing_servers"])
    assert document["cached"] is (known + partly + unknown > 0)


def test_since_is_the_last_poll_where_the_state_is_unknown(run: Run, world: World) -> None:
    world.fleet.publish({"p": ["ts01", "ts02", "ts03"]})
    for name in ("ts01", "ts02"):
        world.polled(name, age_seconds=40)
        world.polled(name, age_seconds=20)
        world.expired(name)
    world.abandoned("ts02")
    servers = json.loads(run("status", "--json")[1])["servers"]
    assert [server["state"] for server in servers] == ["unknown"] * 3
    for server in servers[:2]:
        # The state was up for 20 s, which is no more than was known: it was last polled 20 s ago.
        assert 20 <= server["since_seconds"] < 40
        assert server["since"] == server["targets"][0]["since"]
    assert (servers[2]["since"], servers[2]["since_seconds"]) == (None, None)
    out = run("status")[1]
    assert re.search(r"^ts01: unknown: last polled 2\d s ago; not polled again yet by worker w1$", out, re.M)
    assert re.search(r"^ts02: unknown: last polled 2\d s ago; not owned by any worker; is an .* running\?$", out, re.M)
    assert re.search(r"^ts03: unknown: not owned by any worker; is an x2gofleet-worker running\?$", out, re.M)


def test_since_begins_anew_after_a_time_in_which_nobody_polled(run: Run, world: World) -> None:
    world.fleet.publish({"p": ["ts01"]})

    def since() -> str:
        (server,) = json.loads(run("status", "--json")[1])["servers"]
        assert server["state"] == "up"
        return str(server["since"])

    world.polled("ts01", age_seconds=30)
    began = since()
    world.polled("ts01", age_seconds=20)
    assert since() == began
    world.expired("ts01")
    world.polled("ts01", age_seconds=10)
    assert since() > began


@pytest.mark.parametrize("failed", [False, True], ids=["up", "down"])
def test_what_nobody_polls_any_more_is_said_while_it_is_still_cached(run: Run, world: World, failed: bool) -> None:
    idle(world)
    if failed:
        world.failed("ts01")
    assert "last polled" not in run("status")[1]
    world.client.delete(world.keys.lease("ts01"))
    out = run("status")[1]
    assert re.search(r"^ts01: last polled \d\.\d s ago; not owned by any worker; is an x2gofleet-worker", out, re.M)
    assert ("AuthenticationFailed" in out) is failed


@pytest.mark.parametrize("state", [up, killed, one_of_two_down], ids=lambda make: make.__name__)
def test_a_refresh_names_what_did_not_come(run: Run, world: World, state: Callable[[World], None]) -> None:
    state(world)
    for name in ("ts01", "ts02"):
        world.client.delete(world.keys.lease(name))
    status, out, err = run("refresh", "p", "--timeout", "0.3")
    assert (status, out) == (1, "")
    assert "refresh failed: ts01: no worker owns it now" in err
    document = json.loads(run("refresh", "p", "--timeout", "0.3", "--json")[1])
    assert (document["snapshots"], "ts01" in document["errors"]) == ([], True)
