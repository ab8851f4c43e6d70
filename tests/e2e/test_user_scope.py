"""A real server polled as one of its users: that user's sessions, shadow sessions, desktops and mounts, no others."""

from __future__ import annotations

import pytest

from x2gofleet.errors import RefreshFailed

from .conftest import LoginKey, PollFactory, ServerFactory
from .polled import INTERVALS, PolledFleet
from .realserver import DatabaseFault, RealX2GoServer

PROFILE = "alice-desktop"
ALICE = "alice@ts01"
# Each poll here is three or four of X2Go's own commands.
SLOWER = {**INTERVALS, "sessions": 1, "desktops": 1, "mounts": 1}


@pytest.fixture
def server(start_server: ServerFactory, login_key: LoginKey) -> RealX2GoServer:
    server = start_server("ts01")
    server.revoke("root")
    server.authorize("alice", login_key.public_text)
    return server


def poll_as_alice(poll: PollFactory, server: RealX2GoServer, **settings: object) -> PolledFleet:
    profiles = {PROFILE: {"servers": ["ts01"], "user": "alice"}}
    return poll(server, **{"profiles": profiles, "intervals": SLOWER, **settings})


def names(polled: PolledFleet) -> set[str] | None:
    sessions = polled.cache.list_sessions(profile_name=PROFILE)
    return None if sessions is None else set(sessions)


def test_exactly_the_user_s_own_of_everything_is_read(server: RealX2GoServer, poll: PollFactory) -> None:
    own, starting = server.insert_session("alice", 50), server.insert_session("alice", 51, "R", started=False)
    suspended = server.insert_session("alice", 52)
    server.change_status("alice", suspended, "S")
    theirs = server.insert_session("bob", 53)
    shadow = server.shadow_session("bob", "alice", 60, shadowed=53, full=False)
    server.shadow_session("alice", "bob", 61)
    server.insert_mount("alice", own, "10.1.2.3", "/home/alice/media/disk/_tmp")
    server.insert_mount("alice", own, "10.1.2.3", "/home/alice/media/disk/_with space")
    server.insert_mount("bob", theirs, "10.1.2.9", "/home/bob/media/disk/_tmp")
    with server.x_display("alice") as display, server.x_display("bob"):
        polled = poll_as_alice(poll, server)
        polled.wait_until(lambda: polled.snapshot("desktops", username="alice"), "alice's desktops")
        polled.next_snapshot("mounts", username="alice")
        sessions = polled.cache.list_sessions(profile_name=PROFILE)

        assert sessions is not None
        assert {name: info.status for name, info in sessions.items()} == {
            own: "R",
            starting: "R",
            suspended: "S",
            shadow: "R",
        }
        assert {info.username for info in sessions.rows} == {"alice"}
        assert sessions[starting].is_starting()
        assert sessions[shadow].get_share_mode() == "0"
        assert polled.cache.list_desktops(profile_name=PROFILE) == [f"alice@{display}"]
        expected = server.run(["x2golistmounts", own], "alice").stdout.decode().splitlines()
        assert len(expected) == 2
        assert polled.cache.list_mounts(profile_name=PROFILE) == expected

    for question in ("list_sessions", "list_desktops", "list_mounts"):
        ask = getattr(polled.cache, question)
        assert ask(profile_name=PROFILE, username="alice") is not None
        assert ask(profile_name=PROFILE, username="bob") is None
    assert not polled.cache.is_cached(PROFILE, cache_type="sessions", username="bob")
    assert polled.cache.load(PROFILE) is None
    with pytest.raises(RefreshFailed, match="polled as alice, not as bob"):
        polled.cache.update(PROFILE, username="bob")


def test_changes_are_seen_at_the_next_poll(server: RealX2GoServer, poll: PollFactory) -> None:
    polled = poll_as_alice(poll, server)
    polled.next_snapshot(username="alice")
    assert names(polled) == set()

    name = server.insert_session("alice", 50)
    polled.next_snapshot(username="alice")
    assert names(polled) == {name}
    server.change_status("alice", name, "S")
    assert polled.next_snapshot(username="alice").sessions()[name].status == "S"
    server.change_status("alice", name, "F")
    polled.next_snapshot(username="alice")
    assert names(polled) == set()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("garbage", "fileisnotadatabase"),
        ("missing-table", "nosuchtable:sessions"),
        ("locked", "databaseislocked"),
        ("directory", "unabletoopendatabasefile"),
        ("absent", "nosuchtable:sessions"),
    ],
)
def test_an_unreadable_database_is_a_failure_and_never_no_sessions(
    server: RealX2GoServer, poll: PollFactory, how: DatabaseFault, said: str
) -> None:
    name = server.insert_session("alice", 50)
    server.insert_mount("alice", name, "10.1.2.3", "/home/alice/media/disk/_tmp")
    polled = poll_as_alice(poll, server, ttls={"sessions": 4})
    mounts = polled.next_snapshot("mounts", username="alice").stdout
    assert mounts
    polled.wait_until(lambda: names(polled) == {name}, "the session")

    server.make_database_unreadable(how)
    # Other kinds may fail before sessions do: a locked database takes its time.
    polled.wait_until(lambda: polled.target_status(ALICE).up is False, "its sessions to fail")
    status = polled.target_status(ALICE)
    assert status.error_class == "ListingFailed"
    assert said in status.error_text
    seen = set()
    polled.wait_until(lambda: seen.add(frozen(names(polled))) or names(polled) is None, "the old snapshot to age out")
    assert seen <= {frozenset({name}), None}
    assert polled.status().error_class == "ListingFailed"
    # missing-table leaves the mounts alone; else what was read of them before stays.
    still = polled.snapshot("mounts", username="alice")
    assert still is not None
    assert still.stdout == mounts

    server.restore_database()
    polled.cache.update(PROFILE, update_mounts=True)
    assert names(polled) == {name}
    assert polled.status().up


def frozen(found: set[str] | None) -> frozenset[str] | None:
    return None if found is None else frozenset(found)


def test_a_broken_sql_configuration_is_a_failure(server: RealX2GoServer, poll: PollFactory) -> None:
    name = server.insert_session("alice", 50)
    polled = poll_as_alice(poll, server)
    polled.next_snapshot(username="alice")

    server.break_sql_config()
    status = polled.wait_for_error("ListingFailed", ALICE)

    assert "unknown backend nonsense" in status.error_text
    assert names(polled) == {name}
    server.restore_sql_config()
    polled.wait_until(lambda: polled.status().up, "the end of the failure")
    assert names(polled) == {name}


def test_a_host_name_that_x2go_refuses_is_a_failure(server: RealX2GoServer, poll: PollFactory) -> None:
    polled = poll_as_alice(poll, server)
    polled.next_snapshot(username="alice")

    server.set_hostname("localhost")

    def says_so() -> bool:
        return "Hostname of X2Go Server is not set-up correctly" in polled.target_status(ALICE).error_text

    polled.wait_until(says_so, "the failure")
    assert polled.target_status(ALICE).error_class == "ListingFailed"
