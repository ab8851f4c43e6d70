"""Real servers that fail, each in its own way: told by class and text, and never as "no sessions"."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from x2gofleet.cli.app import main as x2gofleet
from x2gofleet.errors import RefreshFailed
from x2gofleet.kinds import Kind

from .conftest import LoginKey, PollFactory
from .polled import PROFILE, PolledFleet, write_known_hosts
from .polled_farm import refresh
from .realserver import DatabaseFault, RealX2GoServer

LIST_ALL = "/usr/sbin/x2golistsessions_root"
TTLS = {"sessions": 4}

AssertTold = Callable[[PolledFleet, str, str], None]


@pytest.fixture
def assert_told(
    valkey_url: str, namespace: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> AssertTold:
    """`assert_told(polled, error_class, said)`: ts01's failure comes, and is in servers(), `status` and the log."""

    def check(polled: PolledFleet, error_class: str, said: str) -> None:
        polled.wait_for_error(error_class)
        # A server whose mounts fail first is up until its sessions fail.
        polled.wait_until(lambda: polled.status().up is False, "the sessions to fail")
        for status in (polled.status(), polled.target_status("ts01")):
            assert (status.up, status.error_class) == (False, error_class)
            assert said in status.error_text
        capsys.readouterr()
        assert x2gofleet(["--redis-url", valkey_url, "--namespace", namespace, "status", "--fail-on-down"]) == 1
        printed = " ".join(capsys.readouterr().out.split())
        assert f"ts01: {error_class}: " in printed
        assert said in printed
        logged = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert [line for line in logged if line.startswith(f"ts01: {error_class}: ") and said in line]

    return check


def shown(polled: PolledFleet) -> frozenset[str] | None:
    """The session names that a broker is told; None where nothing is cached."""
    sessions = polled.cache.list_sessions(profile_name=PROFILE)
    return None if sessions is None else frozenset(sessions)


def assert_ages_out(polled: PolledFleet, name: str) -> None:
    """The last good snapshot is all that a broker gets, and then it is not cached."""
    seen: list[frozenset[str] | None] = []

    def is_over() -> bool:
        seen.append(shown(polled))
        return seen[-1] is None

    polled.wait_until(is_over, "the last good snapshot to age out")
    assert set(seen[:-1]) <= {frozenset({name})}
    assert not polled.cache.is_cached(PROFILE, cache_type="sessions")


def assert_refused(polled: PolledFleet, said: str) -> None:
    """A refresh on request fails with that text."""
    with pytest.raises(RefreshFailed) as caught:
        polled.cache.update(PROFILE)
    assert said in caught.value.errors["ts01"]


def assert_recovers(polled: PolledFleet, name: str) -> None:
    """The server comes back by itself, and no kind is told to fail any more."""

    def is_well() -> bool:
        status = polled.status()
        return status.up is True and not status.error_class and shown(polled) == {name}

    polled.wait_until(is_well, "the end of the failure")
    assert polled.status().failures == 0


def assert_update_recovers(polled: PolledFleet, name: str) -> None:
    """A refresh on request is made at once, in the middle of the back-off."""
    retry_at = polled.poller().retry_at(Kind.SESSIONS)
    assert retry_at is not None
    assert retry_at > time.monotonic()
    polled.cache.update(PROFILE)
    assert polled.status().up
    assert shown(polled) == {name}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("garbage", "file is not a database"),
        ("missing-table", "no such table: sessions"),
        ("directory", "disk I/O error"),
        ("absent", "No such file or directory"),
    ],
)
def test_an_unreadable_session_database(
    server: RealX2GoServer, poll: PollFactory, assert_told: AssertTold, how: DatabaseFault, said: str
) -> None:
    name = server.insert_session("alice", 50)
    polled = poll(server, ttls=TTLS)
    polled.next_snapshot()
    assert shown(polled) == {name}

    server.make_database_unreadable(how)
    assert_told(polled, "ListingFailed", said)
    assert polled.status().error_text.startswith("/var/lib/x2go/x2go_sessions: ")
    assert "on the server, " in polled.status().error_text
    assert_ages_out(polled, name)
    assert_told(polled, "ListingFailed", said)

    server.restore_database()
    assert_recovers(polled, name)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("backend=nonsense\n", 'the backend "nonsense" in /etc/x2go/x2gosql/sql is not supported'),
        ("", "/etc/x2go/x2gosql/sql names no backend"),
        ("backend=postgres\n", "/etc/x2go/x2gosql/passwords/x2gopgadmin: No such file"),
    ],
)
def test_a_broken_sql_configuration(
    server: RealX2GoServer, poll: PollFactory, assert_told: AssertTold, config: str, said: str
) -> None:
    name = server.insert_session("alice", 50)
    polled = poll(server, ttls=TTLS)
    polled.next_snapshot()

    server.break_sql_config(config)
    assert_told(polled, "ListingFailed", said)
    assert_ages_out(polled, name)

    server.restore_sql_config()
    assert_recovers(polled, name)


def test_sshd_down(server: RealX2GoServer, poll: PollFactory, assert_told: AssertTold) -> None:
    name = server.insert_session("alice", 50)
    polled = poll(server, ttls=TTLS)
    polled.next_snapshot()

    server.stop_sshd()
    assert_told(polled, "Unreachable", f"127.0.0.1 port {server.port}: Connection refused")
    assert "see whether the server and its sshd run" in polled.status().error_text
    assert_ages_out(polled, name)
    server.start_sshd()
    assert_recovers(polled, name)

    server.stop_sshd()
    # The fourth failure in a row is followed by a pause of eight intervals.
    polled.wait_until(lambda: polled.status().failures >= 4, "four failures in a row")
    assert_refused(polled, "Connection refused")
    server.start_sshd()
    assert_update_recovers(polled, name)


def test_connections_that_are_cut_are_made_again(
    server: RealX2GoServer, poll: PollFactory, caplog: pytest.LogCaptureFixture
) -> None:
    name = server.insert_session("alice", 50)
    polled = poll(server)
    polled.next_snapshot()

    server.drop_connections()
    polled.next_snapshot()

    assert shown(polled) == {name}
    assert polled.poller().counters.connections == 2
    assert {record.getMessage().split(": ")[1] for record in caplog.records if record.levelname == "WARNING"} <= {
        "ConnectionLost"
    }


@pytest.mark.parametrize(
    ("key_type", "said"),
    [("ed25519", "which is not the known one; no key was offered"), ("ecdsa", "has no host key of the known types")],
)
def test_another_host_key_and_no_authentication_is_tried(
    server: RealX2GoServer, poll: PollFactory, assert_told: AssertTold, key_type: str, said: str
) -> None:
    name = server.insert_session("alice", 50)
    polled = poll(server, ttls=TTLS)
    polled.next_snapshot()
    connections, attempts = server.connections(), server.authentication_attempts()
    assert attempts

    server.change_host_key(key_type)  # type: ignore[arg-type]
    assert_told(polled, "HostKeyMismatch", said)
    assert "if the server was reinstalled, replace its line in" in polled.status().error_text
    assert_refused(polled, said)
    polled.wait_until(lambda: server.connections() >= connections + 2, "two more connections in sshd's log")
    assert server.authentication_attempts() == attempts
    assert_ages_out(polled, name)

    write_known_hosts(polled.inventory.parent / "known_hosts", {"ts01": server})
    assert_update_recovers(polled, name)
    assert len(server.authentication_attempts()) > len(attempts)


def test_a_host_key_that_nobody_knows_and_nothing_is_connected(
    server: RealX2GoServer, poll: PollFactory, assert_told: AssertTold
) -> None:
    name = server.insert_session("alice", 50)
    polled = poll(server)
    polled.next_snapshot()
    connections = server.connections()

    write_known_hosts(polled.inventory.parent / "known_hosts", {})
    server.drop_connections()
    assert_told(polled, "HostKeyUnknown", f"has no key of [127.0.0.1]:{server.port}")
    assert f"ssh-keyscan -p {server.port} 127.0.0.1 >> " in polled.status().error_text
    assert_refused(polled, "has no key of")
    assert server.connections() == connections

    write_known_hosts(polled.inventory.parent / "known_hosts", {"ts01": server})
    assert_update_recovers(polled, name)


def test_a_key_that_is_refused(
    server: RealX2GoServer, poll: PollFactory, assert_told: AssertTold, login_key: LoginKey
) -> None:
    name = server.insert_session("alice", 50)
    polled = poll(server, ttls=TTLS)
    polled.next_snapshot()

    server.revoke("root")
    server.drop_connections()
    assert_told(polled, "AuthenticationFailed", f"refused the key {login_key.private_path}")
    assert "add the public key of" in polled.status().error_text
    assert_ages_out(polled, name)

    server.authorize("root", login_key.public_text)
    assert_update_recovers(polled, name)


@dataclass(frozen=True, slots=True)
class Missing:
    command: str
    said: str
    remedy: str


@pytest.mark.parametrize(
    "missing",
    [
        Missing(LIST_ALL, "x2golistsessions_root could not be run", "install x2goserver on the server"),
        Missing("/usr/bin/perl", "the login could not start the probe", "install perl on the server"),
    ],
    ids=lambda missing: missing.command.rpartition("/")[2],
)
def test_a_command_that_is_missing(
    server: RealX2GoServer, poll: PollFactory, assert_told: AssertTold, missing: Missing
) -> None:
    name = server.insert_session("alice", 50)
    polled = poll(server, ttls=TTLS, login={"listing": "command"})
    polled.next_snapshot()

    server.remove_command(missing.command)
    # The resident probe needs no perl any more: it is missing when the next one is started.
    server.drop_connections()
    assert_told(polled, "CommandMissing", missing.said)
    assert_refused(polled, missing.said)
    assert missing.remedy in polled.status().error_text
    assert_ages_out(polled, name)

    server.restore_command(missing.command)
    assert_update_recovers(polled, name)


def test_a_host_name_that_changed_after_sessions_were_made(
    server: RealX2GoServer, poll: PollFactory, assert_told: AssertTold
) -> None:
    name = server.insert_session("alice", 50)
    polled = poll(server, ttls=TTLS)
    polled.next_snapshot()

    server.set_hostname("renamed")
    assert_told(polled, "HostNameChanged", "the server's host name was ts01 and is renamed now")
    assert 'set it in fleet.toml: hostname = "renamed"' in polled.status().error_text
    assert_ages_out(polled, name)

    server.set_hostname("ts01")
    assert_update_recovers(polled, name)


@pytest.mark.parametrize("script", ["exec sleep 1000", "trap '' TERM; sleep 1000"], ids=["hangs", "ignores TERM"])
def test_a_listing_that_hangs_is_stopped_and_load_goes_on(
    server: RealX2GoServer, poll: PollFactory, assert_told: AssertTold, script: str
) -> None:
    name = server.insert_session("alice", 50)
    polled = poll(server, ttls=TTLS, login={"deadline": 5, "listing": "command"})
    polled.next_snapshot()

    server.replace_command(LIST_ALL, f"#!/bin/sh\n{script}\n")
    server.change_status("alice", name, "S")
    assert_told(polled, "DeadlineExceeded", "x2golistsessions_root did not end within")
    assert_ages_out(polled, name)
    for _ in range(3):
        polled.next_snapshot("load")
    assert set(polled.cache.load(PROFILE) or {}) == {"ts01"}
    assert polled.poller().counters.connections == 1

    server.restore_command(LIST_ALL)
    # A refresh may still join a poll that began before.
    polled.wait_until(lambda: not refresh(polled), "the listing to answer again")
    assert polled.cache.list_sessions(profile_name=PROFILE)[name].status == "S"  # type: ignore[index]
    polled.wait_until(lambda: not [p for p in server.processes() if "sleep 1000" in p.command], "the end of the hung")


def test_an_sshd_that_hangs(server: RealX2GoServer, poll: PollFactory, assert_told: AssertTold) -> None:
    name = server.insert_session("alice", 50)
    polled = poll(server, ttls=TTLS, login={"deadline": 2})
    polled.next_snapshot()

    server.freeze_sshd()
    assert_told(polled, "DeadlineExceeded", "no complete answer within 2 s")
    assert_ages_out(polled, name)
    # Not on the old connection alone: the kernel takes new ones, and nobody answers.
    polled.wait_until(lambda: polled.status().failures >= 2, "a second failure")
    assert polled.status().error_class == "DeadlineExceeded"

    server.thaw_sshd()
    assert_recovers(polled, name)
