"""`x2gofleet-worker check` over good and broken real servers; and a profile of which one server does not answer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from x2gofleet_workers.cli import main

from .conftest import LoginKey, PollFactory, ServerFactory
from .polled import PROFILE, write_inventory


def test_each_target_is_told_by_a_line_with_its_mend(
    start_server: ServerFactory, login_key: LoginKey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("ts01", "rekeyed", "revoked", "damaged", "dead", "plain")
    servers = {name: start_server(name) for name in names}
    servers["ts01"].insert_session("alice", 50, cookie="c0ffee" * 5)
    servers["plain"].authorize("bob", login_key.public_text)
    inventory = write_inventory(
        tmp_path,
        servers,
        login_key.private_path,
        per_server={"plain": {"user": "bob"}},
        profiles={
            "mate": {"servers": list(names)},
            "bob-desktop": {"servers": ["plain"], "user": "bob", "key_file": str(login_key.private_path)},
        },
    )
    servers["rekeyed"].change_host_key()
    servers["revoked"].revoke("root")
    servers["damaged"].make_database_unreadable("garbage")
    servers["dead"].stop_sshd()

    assert main(["check", "--inventory", str(inventory)]) == 1

    printed = capsys.readouterr()
    lines = {line.split()[1]: line for line in printed.out.splitlines()}
    assert set(lines) == {*names, "bob@plain"}
    assert len(printed.out.splitlines()) == len(lines)
    assert printed.err == "5 of 7 target(s) failed\n"
    for target, said in {
        "ts01": r"ok +ts01 +root@.* 1 session\(s\), host name ts01, sqlite, by records, equal to X2Go's own query",
        "bob@plain": r"ok +bob@plain +bob@.* 0 session\(s\), host name plain",
        "rekeyed": r"FAILED .* HostKeyMismatch: .*not the known one.*\. if the server was reinstalled",
        "revoked": r"FAILED .* AuthenticationFailed: .*refused the key.*\. add the public key of",
        "damaged": r"FAILED .* ListingFailed: .*file is not a database.*\. on the server, move",
        "dead": r"FAILED .* Unreachable: .*Connection refused\. see whether the server and its sshd run",
        "plain": r"FAILED .* NotPermitted: bob may not become root by sudo: .*\. let bob run the probe by sudo",
    }.items():
        assert re.match(said, lines[target]), lines[target]
        assert f"{servers[target.rpartition('@')[2]].port}" in lines[target]
    assert "c0ffee" not in printed.out + printed.err


def test_a_fleet_without_fault(start_server: ServerFactory, login_key: LoginKey, tmp_path: Path) -> None:
    servers = {name: start_server(name) for name in ("ts01", "ts02")}
    inventory = write_inventory(tmp_path, servers, login_key.private_path)
    command = [sys.executable, "-m", "x2gofleet_workers", "check", "--inventory", str(inventory)]

    done = subprocess.run(command, capture_output=True, check=False, timeout=60, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", "ts01"], ["ok", "ts02"]]
    assert last == "all 2 target(s) answer"


def test_a_profile_of_two_servers_with_one_unknown_and_then_down(
    start_server: ServerFactory, poll: PollFactory
) -> None:
    one, two = start_server("ts01"), start_server("ts02")
    name = one.insert_session("alice", 50)
    two.insert_session("alice", 50)
    two.freeze_sshd()
    polled = poll({"ts01": one, "ts02": two}, per_server={"ts02": {"deadline": 6}})

    # Nobody has told yet of ts02: what ts01 has is not the whole answer, and nothing says that it is all there is.
    polled.next_snapshot(server="ts01")
    assert polled.status("ts02").up is None
    assert polled.cache.list_sessions(profile_name=PROFILE) is None
    assert not polled.cache.is_cached(PROFILE, cache_type="sessions")
    assert polled.cache.view("sessions", profile_name=PROFILE).unknown_servers == ("ts02",)

    polled.wait_for_error("DeadlineExceeded", "ts02")
    sessions = polled.cache.list_sessions(profile_name=PROFILE)
    assert sessions is not None
    assert (set(sessions), sessions.missing_servers) == ({name}, ("ts02",))
    assert polled.cache.is_cached(PROFILE, cache_type="sessions")

    two.thaw_sshd()
    polled.cache.update(PROFILE)
    sessions = polled.cache.list_sessions(profile_name=PROFILE)
    assert sessions is not None
    assert ({row.server for row in sessions.rows}, sessions.missing_servers) == ({"ts01", "ts02"}, ())
