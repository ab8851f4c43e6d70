"""User names on real servers: which X2Go takes, what it makes of them, and accounts that have several."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.user_names import NAMES, UserName, label
from x2gofleet.errors import RefreshFailed

from .broker_site import Site, open_site, place_of, settle
from .conftest import LoginKey, PollFactory, ServerFactory
from .namespace import NamespaceError
from .polled import PROFILE, PolledFleet
from .realserver import RealX2GoServer

LONG = "l" * 80
# A home directory's name is shorter; setpriv takes a name of digits for a uid; Debian has a user _apt.
REAL = [user for user in NAMES if len(user.text.encode()) < 200 and not user.text.isdigit() and user.text != "_apt"]
ALIASES = ("Alice", "alice@corp.example.org", "asmith")


@pytest.fixture(scope="module")
def server(start_module_server: ServerFactory) -> RealX2GoServer:
    server = start_module_server("ts01", users=("alice",))
    for user in REAL:
        if user.text != "alice":
            server.add_user(user.text)
    return server


@pytest.fixture(scope="module")
def displays() -> Iterator[int]:
    return iter(range(50, 1000))


@pytest.mark.parametrize("user", REAL, ids=label)
def test_x2goserver_takes_a_name_or_not_as_the_table_says(
    server: RealX2GoServer, poll: PollFactory, displays: Iterator[int], user: UserName
) -> None:
    display = next(displays)
    try:
        server.insert_session(user.text, display, epoch=1_795_000_000)
    except NamespaceError:
        assert not user.x2goserver
        return
    assert user.x2goserver
    ((session, name),) = server.sql("select session_id, uname from sessions where display = ?", [display])
    assert session == f"{user.in_session_names}-{display}-1795000000_stDMATE_dp24"
    polled = poll(server)
    polled.next_snapshot()
    if name == user.text:
        sessions = polled.cache.list_sessions(profile_name=PROFILE, username=user.text)
        assert sessions is not None
        assert set(sessions) == {session}
    else:
        # X2Go's own way with a domain: it drops the backslash, and then lists nothing for the user.
        assert name == user.text.replace("\\", "")
        assert server.run(["x2golistsessions"], user.text).stdout == b""
        assert polled.cache.list_sessions(profile_name=PROFILE, username=user.text) is None
    everybody = polled.cache.list_sessions(profile_name=PROFILE)
    assert everybody is not None
    assert everybody[str(session)].username == name


@pytest.mark.parametrize("name", ["carol@corp.example.org", "corp+alice", "CORP\\alice", LONG, "jürgen", "a$(id)b"])
def test_desktops_are_asked_for_by_any_name(server: RealX2GoServer, poll: PollFactory, name: str) -> None:
    polled = poll(server)
    polled.next_snapshot()
    with server.x_display(name) as display:
        (found,) = polled.cache.update(PROFILE, False, True, username=name, timeout=30)
        assert (found.username, found.desktops()) == (name, (f"{name}@{display}",))
        assert polled.cache.list_desktops(profile_name=PROFILE, username=name) == [f"{name}@{display}"]


def test_a_shared_desktop_whose_display_x2go_cuts_off_fails_nobody(server: RealX2GoServer, poll: PollFactory) -> None:
    lock = "/tmp/x2godesktopsharing_@carol@corp.example.org@:77"
    server.run(["sh", "-c", 'touch "$1" && chmod 666 "$1"', "sh", lock])
    polled = poll(server)
    polled.next_snapshot()
    assert b"carol@corp.example.org\n" in server.run(["x2golistdesktops"], "alice").stdout
    (found,) = polled.cache.update(PROFILE, False, True, username="alice", timeout=30)
    assert (found.desktops(), found.rejected_rows) == ((), 1)
    server.run(["rm", lock])


def test_a_name_that_no_account_has_is_a_failure_of_that_name(server: RealX2GoServer, poll: PollFactory) -> None:
    polled = poll(server)
    polled.next_snapshot()
    for name in ("nobody;touch /tmp/ran".replace(" ", "$IFS").replace("/", "%"), "corp+nobody"):
        with pytest.raises(RefreshFailed, match=re.escape("user")):
            polled.cache.update(PROFILE, False, True, username=name, timeout=30)
    assert polled.cache.is_cached(PROFILE, cache_type="sessions")


def poll_as(poll: PollFactory, server: RealX2GoServer, user: str) -> PolledFleet:
    intervals = {"sessions": 1, "desktops": 1, "mounts": 1}
    return poll(server, profiles={"own": {"servers": ["ts01"], "user": user}}, intervals=intervals)


@pytest.mark.parametrize("login", [*ALIASES, "corp+alice", LONG])
def test_a_user_s_own_target_lists_what_the_uid_has_whatever_the_login_is_called(
    start_server: ServerFactory, login_key: LoginKey, poll: PollFactory, login: str
) -> None:
    server = start_server("ts01", users=("alice",))
    server.revoke("root")
    if login in ALIASES:
        server.add_alias(login, "alice")
        account = "alice"
    else:
        server.add_user(login)
        account = login
    server.authorize(login, login_key.public_text)
    server.authorize(account, login_key.public_text) if account != login else None
    own = server.insert_session(account, 50)
    # X2Go itself does not find sessions whose name lacks a character of the user's, to change their status.
    status = "R" if "+" in account else "S"
    if status == "S":
        server.change_status(account, own, "S")
    server.insert_mount(account, own, "10.1.2.3", "/media/disk/_tmp")
    polled = poll_as(poll, server, login)
    polled.wait_until(lambda: polled.cache.list_sessions(profile_name="own", username=login), "the session", seconds=60)
    polled.wait_until(lambda: polled.cache.list_mounts(profile_name="own", username=login), "the mount", seconds=60)
    sessions = polled.cache.list_sessions(profile_name="own", username=login)
    assert sessions is not None
    assert [(row.username, row.status) for row in sessions.rows] == [(account, status)]
    placement = polled.cache.place("own", login)
    assert placement is not None
    assert placement.session is not None
    if account != login:
        assert polled.cache.list_sessions(profile_name="own", username=account) is None


@pytest.fixture(scope="module")
def site(
    start_module_server: ServerFactory, login_key: LoginKey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with open_site(start_module_server, login_key, tmp_path_factory) as site:
        for server in site.servers.values():
            for alias in ALIASES:
                server.add_alias(alias, "alice")
        yield site


@pytest.mark.parametrize("login", ALIASES)
def test_a_login_by_another_name_of_the_account_gets_the_account_s_session(site: Site, login: str) -> None:
    settle(site)
    site.broker.configure(site.profiles())
    session = site.servers["ts02"].insert_session("alice", 50)
    site.servers["ts02"].change_status("alice", session, "S")
    site.poll()
    with site.broker.daemon(None) as live:
        expected = live.select(login, "only-ts02")
        assert expected.session is not None
    with site.broker.daemon(site.settings) as daemon:
        # Nothing in this name is like the account's: only the right server's agent knows.
        profile = "only-ts02" if login == "asmith" else PROFILE
        listed, _ = daemon.profiles(login)
        selected = daemon.select(login, profile)
    assert selected.stable == expected.stable
    assert selected.session is not None
    assert selected.session[1] == session
    assert (listed[profile]["status"], listed[profile]["host"]) == ("S", "ts02")


def test_a_broker_of_the_same_directory_asks_no_agent_for_an_alias(site: Site) -> None:
    settle(site)
    site.broker.configure(site.profiles())
    session = site.servers["ts02"].insert_session("alice", 50)
    site.servers["ts02"].change_status("alice", session, "S")
    site.poll()
    passwd = site.broker.namespace.path("/etc/passwd")
    before_text = passwd.read_text()
    line = next(line for line in before_text.splitlines() if line.startswith("alice:"))
    passwd.write_text(before_text + "".join(f"{alias}{line.removeprefix('alice')}\n" for alias in ALIASES))
    try:
        before = site.connections()
        with site.broker.daemon(site.settings) as daemon:
            for login in ALIASES:
                selected = daemon.select(login, PROFILE)
                assert selected.session is not None
                assert (place_of(site, selected), selected.session[1]) == ("ts02", session)
        assert site.connections() == before
    finally:
        passwd.write_text(before_text)


@pytest.mark.parametrize("prefix", ["user", "corp+user", "CORP\\user", "u" * 78])
def test_twelve_logins_spread_over_three_idle_servers(site: Site, prefix: str) -> None:
    settle(site)
    site.broker.configure(site.profiles())
    logins = [f"{prefix}{number:02}" for number in range(12)]
    site.broker.know(*logins)
    with site.broker.daemon(site.settings) as daemon:
        spread = Counter(place_of(site, daemon.select(login, PROFILE)) for login in logins)
    assert spread == {"ts01": 4, "ts02": 4, "ts03": 4}
