"""A real server polled as its administrator: one answer holds all users' sessions, as X2Go's own commands tell."""

from __future__ import annotations

import pytest

from x2gofleet.errors import RefreshFailed
from x2gofleet.model import SessionInfo
from x2gofleet.parsing import strip_age
from x2gofleet.snapshot import Snapshot

from .conftest import LoginKey, PollFactory, Ssh
from .polled import PROFILE, PolledFleet
from .realserver import RealX2GoServer

LIST_ALL = "/usr/sbin/x2golistsessions_root"


def printed(server: RealX2GoServer) -> list[bytes]:
    """What x2golistsessions_root prints now, without the age column, sorted."""
    return lines(server.run([LIST_ALL]).stdout)


def lines(stdout: bytes) -> list[bytes]:
    return sorted(strip_age(stdout).splitlines())


def by_name(snapshot: Snapshot) -> dict[str, SessionInfo]:
    return {row.name: row for row in snapshot.sessions().rows}


def shown(polled: PolledFleet, **question: str) -> dict[str, str]:
    """What a broker sees: status by session name."""
    sessions = polled.cache.list_sessions(profile_name=PROFILE, **question)
    assert sessions is not None
    return {name: info.status for name, info in sessions.items()}


def test_all_users_sessions_are_read_in_every_state(server: RealX2GoServer, poll: PollFactory) -> None:
    running = server.insert_session("alice", 50)
    starting = server.insert_session("bob", 51, command="KDE", started=False)
    published = server.insert_session("john_doe", 52, "P", telekinesis_ports=(36104, 36105))
    suspended = server.insert_session("alice", 53, "R", "xterm", cookie="00112233445566778899aabbccddeeff")
    server.change_status("alice", suspended, "S")
    shadow = server.shadow_session("alice", "bob", 60)
    polled = poll(server)

    snapshot = polled.next_snapshot()

    assert lines(snapshot.stdout) == printed(server)
    assert (snapshot.rejected_rows, snapshot.exit_status, snapshot.target) == (0, 0, "ts01")
    assert shown(polled) == {running: "R", starting: "R", published: "R", suspended: "S", shadow: "R"}
    assert shown(polled, username="alice") == {running: "R", suspended: "S"}
    assert shown(polled, username="john_doe") == {published: "R"}
    assert shown(polled, username="bob") == {starting: "R", shadow: "R"}
    assert shown(polled, username="mallory") == {}
    rows = by_name(snapshot)
    assert [name for name, row in rows.items() if row.is_starting()] == [starting]
    assert rows[starting].agent_pid is None
    assert rows[published].is_published_applications_provider()
    assert (rows[published].tekictrl_port, rows[published].tekidata_port) == (36104, 36105)
    assert rows[suspended].cookie == "00112233445566778899aabbccddeeff"
    assert rows[shadow].get_share_mode() == "1"
    assert {row.hostname for row in rows.values()} == {"ts01"}
    found = polled.cache.find_sessions(username="john_doe")
    assert found is not None
    assert [(info.name, info.server) for info in found.rows] == [(published, "ts01")]


def test_suspend_resume_and_end_are_seen_at_the_next_poll(server: RealX2GoServer, poll: PollFactory) -> None:
    name = server.insert_session("alice", 50)
    other = server.insert_session("john_doe", 51)
    polled = poll(server)
    assert by_name(polled.next_snapshot())[name].status == "R"

    for status in ("S", "R", "T"):
        server.change_status("alice", name, status)  # type: ignore[arg-type]
        assert by_name(polled.next_snapshot())[name].status == status
        assert shown(polled) == {name: status, other: "R"}

    server.change_status("alice", name, "F")
    ended = polled.next_snapshot()
    assert by_name(ended)[name].is_finished()
    assert shown(polled) == {other: "R"}
    assert shown(polled, username="alice") == {}

    server.stop_agent(name)
    server.run([LIST_ALL])
    assert list(by_name(polled.next_snapshot())) == [other]


def test_a_started_session_and_a_finished_start_are_seen_at_the_next_poll(
    server: RealX2GoServer, poll: PollFactory
) -> None:
    polled = poll(server)
    assert polled.next_snapshot().stdout == b""
    assert shown(polled) == {}
    assert polled.cache.is_cached(PROFILE, cache_type="sessions")

    name = server.insert_session("john_doe", 52, started=False)
    assert by_name(polled.next_snapshot())[name].is_starting()
    server.run(
        ["/usr/lib/x2go/x2gocreatesession", name, "c" * 32, "4242", "10.1.2.3", "1", "2", "3", "-1", "-1"], "john_doe"
    )
    row = by_name(polled.next_snapshot())[name]
    assert (row.is_starting(), row.agent_pid, row.cookie, row.graphics_port) == (False, 4242, "c" * 32, 1)


def test_mounts_equal_what_x2golistmounts_prints_for_each_session(server: RealX2GoServer, poll: PollFactory) -> None:
    mounted = {"alice": server.insert_session("alice", 50), "john_doe": server.insert_session("john_doe", 51)}
    without = server.insert_session("bob", 52)
    polled = poll(server)
    assert polled.next_snapshot("mounts").stdout == b""
    assert polled.cache.list_mounts(profile_name=PROFILE) == []

    server.insert_mount("alice", mounted["alice"], "10.1.2.3", "/home/alice/media/disk/_tmp")
    server.insert_mount("alice", mounted["alice"], "10.1.2.3", "/home/alice/media/disk/_with space")
    server.insert_mount("alice", mounted["alice"], "10.1.2.3", "/home/alice/media/rw|odd|name")
    server.insert_mount("john_doe", mounted["john_doe"], "fd00::7", "/home/john_doe/media/disk/_ü")
    polled.next_snapshot("mounts")

    every = []
    for user, name in mounted.items():
        expected = server.run(["x2golistmounts", name], user).stdout.decode().splitlines()
        assert len(expected) == (3 if user == "alice" else 1)
        assert polled.cache.list_mounts(profile_name=PROFILE, username=user) == expected
        every += expected
    assert polled.cache.list_mounts(profile_name=PROFILE) == every
    assert server.run(["x2golistmounts", without], "bob").stdout == b"\n"
    assert polled.cache.list_mounts(profile_name=PROFILE, username="bob") == []


def test_desktops_asked_for_a_user_equal_what_that_user_is_told(
    server: RealX2GoServer,
    poll: PollFactory,
    ssh: Ssh,
    login_key: LoginKey,
) -> None:
    for user in ("alice", "bob", "john_doe"):
        server.authorize(user, login_key.public_text)
    polled = poll(server)
    polled.next_snapshot()
    assert polled.cache.list_desktops(profile_name=PROFILE, username="alice") is None
    assert not polled.cache.is_cached(PROFILE, cache_type="desktops", username="alice")

    with server.x_display("alice") as one, server.x_display("john_doe") as two, server.x_display("alice") as three:
        # A desktop that alice shares with everybody: what x2godesktopsharing leaves for others to find.
        server.run(["sh", "-c", f"umask 0; : >/tmp/x2godesktopsharing_@alice@{one}"], "alice")
        for user in ("alice", "bob", "john_doe"):
            told = ssh(server, "x2golistdesktops", user=user).stdout.decode().splitlines()
            stored = polled.cache.update(PROFILE, False, True, username=user)
            assert [(snapshot.target, str(snapshot.kind)) for snapshot in stored] == [(f"{user}@ts01", "desktops")]
            assert polled.cache.list_desktops(profile_name=PROFILE, username=user) == told
            assert sorted(told) == sorted(
                {
                    "alice": [f"alice@{one}", f"alice@{three}"],
                    "bob": [f"alice@{one}"],
                    "john_doe": [f"john_doe@{two}", f"alice@{one}"],
                }[user]
            )
    assert polled.cache.list_desktops(profile_name=PROFILE) is None


def test_load_is_what_the_kernel_tells(server: RealX2GoServer, poll: PollFactory) -> None:
    polled = poll(server)
    polled.next_snapshot("load")

    load = polled.cache.load(PROFILE)

    assert load is not None
    total = int(server.run(["awk", "/^MemTotal:/ {print $2}", "/proc/meminfo"]).stdout)
    assert (load["ts01"].mem_total_kb, load["ts01"].cpus) == (total, int(server.run(["nproc", "--all"]).stdout))
    assert load["ts01"].load_factor >= 1


def test_desktops_of_every_user_with_a_session_are_polled_where_their_interval_is_set(
    server: RealX2GoServer, poll: PollFactory
) -> None:
    server.insert_session("alice", 50)
    server.insert_session("john_doe", 51)
    with server.x_display("alice") as display:
        polled = poll(server, intervals={"desktops": 1})
        polled.wait_until(lambda: polled.snapshot("desktops", username="john_doe"), "john_doe's desktops")

        assert polled.cache.list_desktops(profile_name=PROFILE, username="alice") == [f"alice@{display}"]
        assert polled.cache.list_desktops(profile_name=PROFILE, username="john_doe") == []
        assert polled.cache.list_desktops(profile_name=PROFILE, username="bob") is None
    polled.wait_until(
        lambda: polled.cache.list_desktops(profile_name=PROFILE, username="alice") == [], "the end of the display"
    )


def test_desktops_of_a_user_that_is_none_are_an_error_and_nothing_is_cached(
    server: RealX2GoServer, poll: PollFactory
) -> None:
    polled = poll(server)
    polled.next_snapshot()

    with pytest.raises(RefreshFailed) as caught:
        polled.cache.update(PROFILE, False, True, username="nobody-such")

    assert "user nobody-such does not exist" in caught.value.errors["ts01"]
    assert polled.cache.list_desktops(profile_name=PROFILE, username="nobody-such") is None
    assert polled.next_snapshot().stdout == b""


@pytest.mark.parametrize("user", ["-s", "a:id", "alice\nbob"])
def test_what_is_no_user_name_reaches_no_server(server: RealX2GoServer, poll: PollFactory, user: str) -> None:
    polled = poll(server)
    polled.next_snapshot()
    with pytest.raises(ValueError, match="user name"):
        polled.cache.update(PROFILE, False, True, username=user)
