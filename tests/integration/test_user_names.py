"""Every name of the table at every entry point of a reader, with the rights of a broker, on a real Valkey."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis

from tests.conftest import FleetBuilder
from tests.support.user_names import NAMES, NOT_NAMES, UserName, label
from x2gofleet import FleetCache
from x2gofleet.cli import main
from x2gofleet.events import compare
from x2gofleet.keys import Keys, target_id
from x2gofleet.kinds import Kind
from x2gofleet.store import Store

from .reader import StubWorker, row

EPOCH = 1_795_000_000
SERVERS = ("ts01", "ts02", "ts03")


def session(user: UserName, display: int = 50) -> str:
    """The name of a session as x2goserver writes it: without what it has no place for."""
    return f"{user.in_session_names or 'x'}-{display}-{EPOCH}_stDMATE_dp24"


def of(user: UserName, display: int = 50, **more: Any) -> bytes:
    return row(user.text, display, name=session(user, display), **more)


def idle(fleet: FleetBuilder, *servers: str) -> None:
    fleet.publish({"mate": servers})
    for server in servers:
        fleet.listing(server, "sessions", b"")


@pytest.fixture
def cache(open_cache: Any, brokers_url: str, namespace: str) -> Any:
    return open_cache(brokers_url, namespace, lookup_seconds=10.0)


@pytest.fixture
def readers(brokers_url: str, namespace: str) -> Any:
    """One reader, for tests of many names."""
    with FleetCache.from_url(brokers_url, namespace=namespace, lookup_seconds=10.0) as cache:
        yield cache


@pytest.mark.parametrize("user", NAMES, ids=label)
def test_lookups_give_the_user_s_own_of_everything(readers: Any, fleet: FleetBuilder, user: UserName) -> None:
    fleet.publish({"mate": ["ts01", "ts02"]})
    fleet.listing("ts01", "sessions", row("somebody", 49) + of(user, 50))
    fleet.listing("ts02", "sessions", of(user, 51, status="S", hostname="ts02") + row(f"x{user.text}", 52))
    mounts = [f"{session(user, 50)}|192.0.2.1|/own\n", f"somebody-49-{EPOCH}_stDMATE_dp24|192.0.2.2|/theirs\n"]
    for server, lines in (("ts01", mounts), ("ts02", [])):
        fleet.listing(server, "mounts", "".join(lines))
        desktop = f"{user.text}@:50\n" if lines else ""
        fleet.listing(target_id(server, user.text), "desktops", desktop)

    sessions = readers.list_sessions(profile_name="mate", username=user.text)
    assert set(sessions) == {session(user, 50), session(user, 51)}
    assert {info.username for info in sessions.rows} == {user.text}
    assert set(readers.find_sessions(username=user.text)) == set(sessions)
    assert readers.list_desktops(profile_name="mate", username=user.text) == [f"{user.text}@:50"]
    assert readers.list_mounts(profile_name="mate", username=user.text) == ["192.0.2.1|/own"]
    for kind in ("sessions", "desktops", "mounts"):
        assert readers.is_cached("mate", cache_type=kind, username=user.text)
    desktops = readers.snapshots(profile_name="mate", kind="desktops", username=user.text)
    assert [(each.server, each.username) for each in desktops] == [("ts01", user.text), ("ts02", user.text)]

    readers.register_session("uuid-1", "mate", user.text)
    assert set(readers.list_sessions("uuid-1")) == set(sessions)
    assert readers.list_desktops("uuid-1") == [f"{user.text}@:50"]


@pytest.mark.parametrize("user", NAMES, ids=label)
def test_logins_are_placed_reserved_and_released(readers: Any, fleet: FleetBuilder, user: UserName) -> None:
    idle(fleet, "ts01", "ts02")
    placement = readers.place("mate", user.text)
    assert sum(readers.reservations("mate").values()) == 1
    assert readers.release(placement.server, user.text)
    assert not readers.release(placement.server, user.text)
    assert readers.reserve("ts01", user.text) > 0
    assert readers.reservations("mate") == {"ts01": 1, "ts02": 0}
    fleet.listing("ts01", "sessions", of(user))
    assert readers.reservations("mate") == {"ts01": 0, "ts02": 0}
    resumed = readers.place("mate", user.text)
    assert (resumed.server, resumed.session.name) == ("ts01", session(user))


@pytest.mark.parametrize("user", NAMES, ids=label)
def test_a_user_s_own_target_is_asked_for_by_the_name(readers: Any, fleet: FleetBuilder, user: UserName) -> None:
    target = target_id("ts01", user.text)
    fleet.publish({"own": [target]})
    fleet.listing(target, "sessions", of(user))
    fleet.listing(target, "desktops", f"{user.text}@:50\n")
    fleet.listing(target, "mounts", f"{session(user)}|c|/p\n")
    for asked in (user.text, None):
        assert set(readers.list_sessions(profile_name="own", username=asked)) == {session(user)}
        assert readers.list_desktops(profile_name="own", username=asked) == [f"{user.text}@:50"]
        assert readers.list_mounts(profile_name="own", username=asked) == ["c|/p"]
    assert set(readers.find_sessions(username=user.text)) == {session(user)}
    assert readers.list_sessions(profile_name="own", username="somebody") is None
    (status,) = readers.servers()
    assert [each.id for each in status.targets] == [target]


@pytest.mark.parametrize("user", NAMES, ids=label)
def test_a_refresh_and_events_carry_the_name(
    readers: Any, fleet: FleetBuilder, store: Store, keys: Keys, valkey_url: str, user: UserName
) -> None:
    fleet.publish({"mate": ["ts01"]})
    fleet.listing("ts01", "sessions", b"")
    owned = target_id("ts01", user.text)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        fleet.listing(owned, "desktops", f"{user.text}@:50\n")
        return {"target": request["target"], "stored": [[owned, "desktops"]], "error": ""}

    with StubWorker(valkey_url, keys, "w1", answer) as worker:
        (snapshot,) = readers.update("mate", False, True, username=user.text)
        assert [request["username"] for request in worker.requests] == [user.text]
    assert (snapshot.username, snapshot.desktops()) == (user.text, (f"{user.text}@:50",))
    assert store.users_desktops("ts01") == (owned,)

    fleet.listing("ts01", "sessions", of(user), changes=compare(b"", of(user)))
    assert [event.username for event in readers.events().events] == [user.text]
    assert store.drop_orphans({"ts01"}) == 0
    assert store.drop_orphans(set()) > 0


@pytest.mark.parametrize("user", [user for user in NAMES if not user.text.startswith("@")], ids=label)
def test_the_command_line_takes_the_name(
    fleet: FleetBuilder, valkey_url: str, namespace: str, capsys: pytest.CaptureFixture[str], user: UserName
) -> None:
    fleet.publish({"mate": ["ts01"]})
    fleet.listing("ts01", "sessions", of(user))
    fleet.listing(target_id("ts01", user.text), "desktops", f"{user.text}@:50\n")
    common = ["--redis-url", valkey_url, "--namespace", namespace]
    for command, shown in (("sessions", session(user)), ("desktops", f"{user.text}@:50")):
        assert main([command, "--profile", "mate", "--user", user.text, "--json", *common]) == 0
        items = json.loads(capsys.readouterr().out)[command]
        assert [item["name" if command == "sessions" else "desktop"] for item in items] == [shown]


@pytest.mark.parametrize("case", NOT_NAMES, ids=label)
def test_what_is_no_name_has_nothing_and_is_never_written(
    readers: Any, fleet: FleetBuilder, redis_client: redis.Redis, namespace: str, case: tuple[str, str]
) -> None:
    text, reason = case
    idle(fleet, "ts01")
    before = set(redis_client.keys(f"{namespace}:*"))
    assert readers.list_sessions(profile_name="mate", username=text) == {}
    assert readers.find_sessions(username=text) == {}
    assert readers.list_desktops(profile_name="mate", username=text) is None
    assert readers.snapshots(profile_name="mate", kind="desktops", username=text) == ()
    writes: list[Callable[[], Any]] = [
        lambda: readers.place("mate", text),
        lambda: readers.reserve("ts01", text),
        lambda: readers.release("ts01", text),
        lambda: readers.update("mate", username=text, timeout=0.05),
        *([lambda: readers.register_session("uuid-1", "mate", text)] if text else []),
    ]
    for write in writes:
        with pytest.raises(ValueError, match="is no user name") as caught:
            write()
        assert reason in str(caught.value)
    assert set(redis_client.keys(f"{namespace}:*")) == before


@pytest.mark.parametrize("prefix", ["user", "corp+user", "CORP\\user", f"{'u' * 78}", "Алиса"])
def test_twelve_logins_spread_over_three_idle_servers(cache: Any, fleet: FleetBuilder, prefix: str) -> None:
    idle(fleet, *SERVERS)
    chosen = Counter(cache.place("mate", f"{prefix}{number:02}").server for number in range(12))
    assert chosen == dict.fromkeys(SERVERS, 4)
    assert cache.reservations("mate") == dict.fromkeys(SERVERS, 4)


ALIASES = ("alice", "Alice", "alice@corp.example.org", "CORP\\alice", "corp+alice")


@pytest.mark.parametrize(("account", "login"), list(itertools.permutations(ALIASES, 2)))
def test_a_login_whose_account_may_have_another_name_is_not_cached(
    cache: Any, fleet: FleetBuilder, account: str, login: str
) -> None:
    fleet.publish({"mate": ["ts01", "ts02"]})
    fleet.listing("ts01", "sessions", row("bob", 51))
    fleet.listing("ts02", "sessions", row(account, 50, "S", hostname="ts02"))
    fleet.listing("ts01", "mounts", b"")
    fleet.listing("ts02", "mounts", f"{row(account, 50).split(b'|')[1].decode()}|192.0.2.1|/own\n")
    assert cache.list_sessions(profile_name="mate", username=login) is None
    assert cache.find_sessions(username=login) is None
    assert cache.list_mounts(profile_name="mate", username=login) is None
    assert cache.place("mate", login) is None
    assert len(cache.list_sessions(profile_name="mate", username=account)) == 1
    assert len(cache.list_sessions(profile_name="mate", username="bob")) == 1
    assert cache.list_sessions(profile_name="mate", username="carol") == {}
    assert cache.list_mounts(profile_name="mate", username="carol") == []
    # By a name of its own the user has sessions: then that is the account.
    fleet.listing("ts01", "sessions", row("bob", 51) + row(login, 52))
    assert len(cache.list_sessions(profile_name="mate", username=login)) == 1


def test_the_command_line_says_by_which_names_there_are_sessions(
    fleet: FleetBuilder, valkey_url: str, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.publish({"mate": ["ts01"], "own": ["Carol@ts02"]})
    fleet.listing("ts01", "sessions", row("alice") + row("bob", 51))
    fleet.listing("Carol@ts02", "sessions", row("carol"))
    common = ["--redis-url", valkey_url, "--namespace", namespace]
    assert main(["sessions", "--profile", "mate", "--user", "CORP\\Alice", *common]) == 1
    out, err = capsys.readouterr()
    assert "no sessions" not in out
    assert "not cached: no sessions by the name CORP\\Alice, but some of alice: that may be another name" in err
    assert main(["sessions", "--profile", "mate", "--user", "dora", *common]) == 0
    assert "no sessions of dora" in capsys.readouterr().out
    assert main(["sessions", "--profile", "own", "--user", "Carol", "--json", *common]) == 0
    assert [item["user"] for item in json.loads(capsys.readouterr().out)["sessions"]] == ["carol"]


def test_an_own_target_of_an_alias_answers_for_it_whatever_the_rows_say(cache: Any, fleet: FleetBuilder) -> None:
    fleet.publish({"own": ["Alice@ts01"]})
    fleet.listing("Alice@ts01", "sessions", row("alice", 50, "S"))
    fleet.listing("Alice@ts01", "mounts", f"{row('alice').split(b'|')[1].decode()}|192.0.2.1|/own\n")
    for login in ("Alice", None):
        assert len(cache.list_sessions(profile_name="own", username=login)) == 1
        assert cache.list_mounts(profile_name="own", username=login) == ["192.0.2.1|/own"]
    assert len(cache.find_sessions(username="Alice")) == 1
    assert cache.place("own", "Alice").session is not None
    cache.reserve("ts01", "Alice")
    assert cache.reservations("own") == {"ts01": 0}
    # alice may be the same account, or not.
    assert cache.list_sessions(profile_name="own", username="alice") is None
    assert cache.find_sessions(username="alice") is None
    assert cache.place("own", "alice") is None


def test_mounts_of_names_that_look_alike_in_sessions_are_told_apart(cache: Any, fleet: FleetBuilder) -> None:
    plus, plain = "corpalice-50-1795000000_stDMATE_dp24", "corpalice-51-1795000000_stDMATE_dp24"
    fleet.publish({"mate": ["ts01"]})
    fleet.listing("ts01", "sessions", row("corp+alice", 50, name=plus) + row("corpalice", 51, name=plain))
    fleet.listing("ts01", "mounts", f"{plus}|192.0.2.1|/own\n{plain}|192.0.2.2|/theirs\n")
    assert cache.list_mounts(profile_name="mate", username="corp+alice") == ["192.0.2.1|/own"]


def test_keys_of_plain_names_are_those_of_earlier_versions(fleet: FleetBuilder, redis_client: redis.Redis) -> None:
    fleet.publish({"own": ["alice@corp.example.org@ts01"]})
    fleet.listing("alice@corp.example.org@ts01", Kind.SESSIONS, b"")
    key = fleet.store.keys.snapshot("alice@corp.example.org@ts01", Kind.SESSIONS)
    assert key.endswith(":{alice@corp.example.org@ts01}:sessions")
    assert redis_client.exists(key)
