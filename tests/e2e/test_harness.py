"""The real X2Go servers that the other tests stand on: each thing they rely on is shown here with plain ssh."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from .conftest import SSH, LoginKey, ServerFactory, Ssh
from .namespace import wait_until
from .realserver import DatabaseFault, RealX2GoServer

LIST_ALL = "x2golistsessions_root"


def rows(stdout: bytes) -> dict[str, list[str]]:
    """Rows of a listing by session name."""
    fields = [line.split("|") for line in stdout.decode().splitlines()]
    return {row[1]: row for row in fields}


def mounts_below(directory: Path) -> list[str]:
    """Lines of any process's mount table that name `directory`."""
    found = []
    for table in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            found += [line for line in table.read_text().splitlines() if str(directory) in line]
        except OSError:
            continue
    return found


def test_root_sees_every_user_s_sessions_over_ssh(server: RealX2GoServer, ssh: Ssh) -> None:
    running = server.insert_session("alice", 50)
    starting = server.insert_session("bob", 51, command="KDE", started=False)
    published = server.insert_session(
        "john_doe",
        52,
        "P",
        cookie="00112233445566778899aabbccddeeff",
        client="10.9.8.7",
        telekinesis_ports=(36104, 36105),
    )
    suspended = server.insert_session("alice", 53, "R", "xterm")
    server.change_status("alice", suspended, "S")

    listed = rows(ssh(server, LIST_ALL).stdout)

    assert {name: (row[11], row[4], row[3]) for name, row in listed.items()} == {
        running: ("alice", "R", "ts01"),
        starting: ("bob", "R", "ts01"),
        published: ("john_doe", "R", "ts01"),
        suspended: ("alice", "S", "ts01"),
    }
    assert all(len(row) == 16 for row in listed.values())
    assert listed[starting][0] == ""
    assert listed[starting][6:10] == ["", "", "", ""]
    assert listed[published][6:8] == ["00112233445566778899aabbccddeeff", "10.9.8.7"]
    assert listed[published][14:] == ["36104", "36105"]
    assert "_stRPUBLISHED_" in published
    assert "_stRxterm_" in suspended


def test_a_user_sees_only_own_sessions(server: RealX2GoServer, ssh: Ssh, login_key: LoginKey) -> None:
    own = server.insert_session("alice", 50)
    server.insert_session("bob", 51)
    server.authorize("alice", login_key.public_text)

    assert list(rows(ssh(server, "x2golistsessions", user="alice").stdout)) == [own]


def test_a_listing_as_root_by_another_user_is_empty_and_successful(
    server: RealX2GoServer, ssh: Ssh, login_key: LoginKey
) -> None:
    server.insert_session("alice", 50)
    server.authorize("bob", login_key.public_text)

    listing = ssh(server, "/usr/sbin/x2golistsessions_root", user="bob")

    assert (listing.returncode, listing.stdout, listing.stderr) == (0, b"", b"")


def test_a_sudo_rule_lets_a_user_list_all(server: RealX2GoServer, ssh: Ssh, login_key: LoginKey) -> None:
    name = server.insert_session("alice", 50)
    server.authorize("bob", login_key.public_text)
    command = "sudo -n /usr/sbin/x2golistsessions_root"

    assert ssh(server, command, user="bob", check=False).returncode != 0
    server.allow_sudo("bob", "ALL=(root) NOPASSWD: /usr/sbin/x2golistsessions_root")
    allowed = ssh(server, command, user="bob")
    assert list(rows(allowed.stdout)) == [name]
    assert allowed.stderr == b""


def test_options_of_an_authorized_key_are_obeyed(server: RealX2GoServer, ssh: Ssh, login_key: LoginKey) -> None:
    server.authorize("bob", login_key.public_text, 'restrict,command="echo forced"')

    assert ssh(server, "id", user="bob").stdout == b"forced\n"
    server.revoke("bob")
    assert ssh(server, "id", user="bob", check=False).returncode == 255


def test_two_servers_at_once_have_nothing_in_common(start_server: ServerFactory, ssh: Ssh) -> None:
    first, second = start_server("ts01"), start_server("ts02")
    one = first.insert_session("alice", 50)
    two = second.insert_session("alice", 50, epoch=1_763_800_000)
    first.set_agent_state("alice", one, "RUNNING")

    assert [row[3] for row in rows(ssh(first, LIST_ALL).stdout).values()] == ["ts01"]
    assert list(rows(ssh(second, LIST_ALL).stdout)) == [two]
    assert (ssh(first, "hostname").stdout, ssh(second, "hostname").stdout) == (b"ts01\n", b"ts02\n")
    assert first.known_hosts_line != second.known_hosts_line
    assert ssh(second, "ls -A /tmp").stdout.split() == [b".ICE-unix", b".X11-unix"]
    assert not Path("/tmp/.x2go-alice").exists()
    assert socket.gethostname() not in {"ts01", "ts02"}


def test_a_shadow_session_is_listed_for_who_asked_for_it(server: RealX2GoServer, ssh: Ssh, login_key: LoginKey) -> None:
    server.authorize("bob", login_key.public_text)
    name = server.shadow_session("alice", "bob", 60)

    shadows = rows(ssh(server, "x2golistshadowsessions", user="bob").stdout)
    assert list(shadows) == [name]
    assert len(shadows[name]) == 14
    assert ssh(server, "x2golistsessions", user="bob").stdout == b""
    assert rows(ssh(server, LIST_ALL).stdout)[name][11] == "bob"
    assert ssh(server, "x2gofeature X2GO_LIST_SHADOWSESSIONS", user="bob").stdout == b"ok\n"


def test_a_real_display_is_listed_for_its_user_alone(
    start_server: ServerFactory, ssh: Ssh, login_key: LoginKey
) -> None:
    server, other = start_server("ts01"), start_server("ts02")
    for user in ("alice", "bob"):
        server.authorize(user, login_key.public_text)
    other.authorize("alice", login_key.public_text)

    with server.x_display("alice") as display:
        assert ssh(server, "x2golistdesktops", user="alice").stdout.decode() == f"alice@{display}\n"
        assert ssh(server, "x2golistdesktops", user="bob").stdout == b""
        assert ssh(other, "x2golistdesktops", user="alice").stdout == b""
    assert ssh(server, "x2golistdesktops", user="alice").stdout == b""


def test_mounts_are_listed_a_line_each(server: RealX2GoServer, ssh: Ssh, login_key: LoginKey) -> None:
    server.authorize("alice", login_key.public_text)
    name = server.insert_session("alice", 50)
    assert ssh(server, f"x2golistmounts {name}", user="alice").stdout == b"\n"

    server.insert_mount("alice", name, "10.1.2.3", "/home/alice/media/disk/_tmp")
    server.insert_mount("alice", name, "10.1.2.3", "/home/alice/media/disk/_with space")

    assert ssh(server, f"x2golistmounts {name}", user="alice").stdout.splitlines() == [
        b"10.1.2.3|/home/alice/media/disk/_tmp",
        b"10.1.2.3|/home/alice/media/disk/_with space",
    ]


def test_a_status_set_by_the_state_file_alone_is_listed(server: RealX2GoServer, ssh: Ssh) -> None:
    name = server.insert_session("alice", 50)
    server.set_agent_state("alice", name, "RUNNING")
    assert rows(ssh(server, LIST_ALL).stdout)[name][4] == "R"

    server.set_agent_state("alice", name, "SUSPENDED")
    assert server.sql("select status from sessions") == [("R",)]
    assert rows(ssh(server, LIST_ALL).stdout)[name][4] == "S"
    assert server.sql("select status from sessions") == [("S",)]


def test_a_finished_session_is_shown_once_after_its_agent_is_gone(server: RealX2GoServer, ssh: Ssh) -> None:
    name = server.insert_session("alice", 50)
    server.change_status("alice", name, "F")
    for _ in range(2):
        assert rows(ssh(server, LIST_ALL).stdout)[name][4] == "F"

    server.stop_agent(name)
    assert rows(ssh(server, LIST_ALL).stdout)[name][4] == "F"
    assert ssh(server, LIST_ALL).stdout == b""


def test_a_user_can_forge_a_row_of_another(server: RealX2GoServer, ssh: Ssh) -> None:
    forged = "4242|alice-59-1763800000_stDMATE_dp24|59|ts01|R|2026-11-22T20:24:30|"
    forged += "f" * 32 + "|203.0.113.7|35001|35002|2026-11-22T20:24:30|alice|1|35003|-1|-1"
    server.insert_session("mallory", 58, cookie=f"x\n{forged}\nx")

    lines = ssh(server, LIST_ALL).stdout.decode().splitlines()

    assert forged in lines
    assert server.sql("select uname from sessions") == [("mallory",)]


def test_the_counter_counts_commands_and_changes_nothing(server: RealX2GoServer, ssh: Ssh, login_key: LoginKey) -> None:
    server.authorize("alice", login_key.public_text)
    name = server.insert_session("alice", 50)
    counter = server.count_commands()
    assert counter.total == 0

    assert list(rows(ssh(server, LIST_ALL).stdout)) == [name]
    assert counter.names == ("x2golistsessions_root", "x2golistsessions_sql")
    assert list(rows(ssh(server, "x2golistsessions", user="alice").stdout)) == [name]
    assert server.count_commands().by_name["x2golistsessions"] == 1
    counter.reset()
    ssh(server, "true")
    assert counter.total == 0


def test_a_command_can_be_removed_replaced_and_restored(server: RealX2GoServer, ssh: Ssh) -> None:
    command = "/usr/sbin/x2golistsessions_root"
    name = server.insert_session("alice", 50)

    server.remove_command(command)
    assert ssh(server, LIST_ALL, check=False).returncode == 127
    server.replace_command(command, "#!/bin/sh\necho garbage\n")
    assert ssh(server, LIST_ALL).stdout == b"garbage\n"
    server.restore_command(command)
    assert list(rows(ssh(server, LIST_ALL).stdout)) == [name]
    assert os.access(command, os.X_OK)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("garbage", b"file is not a database"),
        ("missing-table", b"no such table: sessions"),
        ("locked", b"database is locked"),
        ("directory", b"unable to open database file"),
        ("absent", b"no such table: sessions"),
    ],
)
def test_an_unreadable_database_is_no_session_and_success(
    server: RealX2GoServer, ssh: Ssh, how: DatabaseFault, said: bytes
) -> None:
    name = server.insert_session("alice", 50)

    server.make_database_unreadable(how)
    broken = ssh(server, LIST_ALL)
    assert broken.returncode == 0
    assert said in broken.stdout + broken.stderr
    assert name.encode() not in broken.stdout

    server.restore_database()
    assert list(rows(ssh(server, LIST_ALL).stdout)) == [name]


def test_a_broken_sql_configuration_is_success_with_no_session(server: RealX2GoServer, ssh: Ssh) -> None:
    name = server.insert_session("alice", 50)

    server.break_sql_config()
    broken = ssh(server, LIST_ALL)
    assert (broken.returncode, broken.stdout) == (0, b"")
    server.restore_sql_config()
    assert list(rows(ssh(server, LIST_ALL).stdout)) == [name]


def test_after_a_change_of_host_name_no_session_is_listed(server: RealX2GoServer, ssh: Ssh) -> None:
    server.insert_session("alice", 50)

    server.set_hostname("renamed")

    assert ssh(server, "hostname").stdout == b"renamed\n"
    assert ssh(server, LIST_ALL).stdout == b""
    assert server.sql("select server from sessions") == [("ts01",)]


def test_sshd_s_log_tells_connections_from_attempts_to_authenticate(server: RealX2GoServer, ssh: Ssh) -> None:
    old_key = server.known_hosts_line
    ssh(server, "true")
    assert server.connections() == 1
    made = [(attempt.user, attempt.method) for attempt in server.authentication_attempts()]
    assert made[0] == ("root", "none")
    assert ("root", "publickey") in made

    server.change_host_key()
    turned_away = ssh(server, "true", known_hosts_line=old_key, check=False)

    assert turned_away.returncode == 255
    assert b"Host key verification failed" in turned_away.stderr
    wait_until(lambda: server.connections() == 2, "the second connection in the log")
    assert len(server.authentication_attempts()) == len(made)
    ssh(server, "true")
    assert len(server.authentication_attempts()) > len(made)


def test_sshd_stops_cuts_connections_and_starts_again_on_its_port(
    server: RealX2GoServer, ssh: Ssh, login_key: LoginKey, tmp_path: Path
) -> None:
    port, known_hosts = server.port, tmp_path / "known_hosts"
    known_hosts.write_text(f"{server.known_hosts_line}\n")
    login = ["-o", f"UserKnownHostsFile={known_hosts}", "-i", str(login_key.private_path), "-p", str(port)]
    with subprocess.Popen(
        [*SSH, *login, f"root@{server.host}", "echo in; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"in\n"
        server.stop_sshd(drop_connections=False)
        assert client.poll() is None
        server.drop_connections()
        assert client.wait(timeout=15) == 255

    refused = ssh(server, "true", check=False)
    assert refused.returncode == 255
    assert b"Connection refused" in refused.stderr
    server.start_sshd()
    assert server.port == port
    ssh(server, "true")


def test_the_database_is_as_the_package_makes_it(server: RealX2GoServer) -> None:
    stat = server.run(["stat", "-c", "%U:%G %a", "/var/lib/x2go", "/var/lib/x2go/x2go_sessions"]).stdout
    assert stat == b"x2gouser:x2gouser 770\nroot:x2gouser 660\n"
    assert server.sql("select count(*) from sessions") == [(0,)]

    assert server.sql("pragma journal_mode=wal") == [("wal",)]
    name = server.insert_session("alice", 50)
    assert list(rows(server.run([LIST_ALL]).stdout)) == [name]


def test_nothing_is_left_after_a_server(start_server: ServerFactory, ssh: Ssh) -> None:
    server = start_server("ts01")
    directory = server.namespace.directory
    server.insert_session("alice", 50)
    with server.x_display("alice"):
        ssh(server, "setsid sleep 1000 </dev/null >/dev/null 2>&1 &")
        processes = {process.pid: process.name for process in server.processes()}
        assert {"sshd", "Xvfb", "sleep"} <= set(processes.values())
        assert mounts_below(directory)
        server.stop()

    assert [pid for pid, name in processes.items() if _name(pid) == name] == []
    assert mounts_below(directory) == []
    with socket.socket() as probe:
        assert probe.connect_ex((server.host, server.port)) != 0
    assert {path.name for path in directory.iterdir()} == {"disk", "init.log"}
    assert (directory / "disk/var/log/sshd.log").stat().st_size > 0


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_a_killed_test_run_leaves_nothing(empty_database: Path, tmp_path: Path) -> None:
    """kill -9 of the process that started a server ends the server too."""
    script = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from pathlib import Path
        from tests.e2e.realserver import RealX2GoServer
        server = RealX2GoServer(Path({str(tmp_path / "server")!r}), empty_database=Path({str(empty_database)!r}))
        server.start()
        server.insert_session("alice", 50)
        print(server.port, flush=True)
        time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        port = int(starter.stdout.readline())
        assert mounts_below(tmp_path)
        starter.kill()
    wait_until(lambda: not mounts_below(tmp_path), "the end of the orphaned server")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize(("demanded", "outcome"), [("0", "1 skipped"), ("1", "1 error")])
def test_a_machine_without_x2goserver_skips_unless_real_servers_are_demanded(
    pytestconfig: pytest.Config, demanded: str, outcome: str
) -> None:
    script = """
        import sys
        sys.path.insert(0, ".")
        import pytest
        from tests.e2e import realserver
        realserver.os.geteuid = lambda: 0
        realserver.PROGRAMS["x2golistsessions_absent"] = "x2goserver"
        test = "tests/e2e/test_harness.py::test_the_database_is_as_the_package_makes_it"
        sys.exit(pytest.main(["-p", "no:cacheprovider", "-p", "no:xdist", test]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=pytestconfig.rootpath,
        env={**os.environ, "X2GOFLEET_REQUIRE_E2E": demanded},
        capture_output=True,
        check=False,
    )
    printed = done.stdout.decode()
    assert outcome in printed
    assert "not installed: x2goserver; run tests/e2e/setup.sh" in printed
    assert done.returncode == int(demanded)
