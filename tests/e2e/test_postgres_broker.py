"""Debian's x2gobroker over a farm on PostgreSQL: with the adapter it says what the live agents say.

There any agent knows the sessions of all servers, so that a profile of all of them is right without the adapter too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from .broker import BrokerDaemon
from .broker_site import Site, open_site_of
from .conftest import FarmFactory, LoginKey
from .polled import PROFILE
from .postgres_farm import PostgresFarm

USERS = ("alice", "bob", "john_doe")


@dataclass(frozen=True, slots=True)
class FarmSite:
    farm: PostgresFarm
    site: Site


@pytest.fixture(scope="module")
def module_site(
    start_module_postgres_farm: FarmFactory, login_key: LoginKey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FarmSite]:
    farm = start_module_postgres_farm(max_connections=40)
    with open_site_of(dict(farm.servers), login_key, tmp_path_factory) as site:
        yield FarmSite(farm, site)


@pytest.fixture
def on_farm(module_site: FarmSite) -> Iterator[FarmSite]:
    module_site.site.broker.configure(module_site.site.profiles())
    yield module_site
    module_site.farm.database.sql("truncate sessions, mounts, used_ports")
    module_site.site.poll()


def listed(daemon: BrokerDaemon, user: str, profile: str = PROFILE) -> tuple[str | None, str | None]:
    """The status and the host that the list of profiles shows for a user's session, None where it shows none."""
    found = daemon.profiles(user)[0][profile]
    return found.get("status"), found.get("host") if "status" in found else None


def selected(daemon: BrokerDaemon, user: str, profile: str = PROFILE) -> tuple[str, tuple[str, ...] | None]:
    return daemon.select(user, profile).stable


def test_new_suspended_and_running_are_what_the_live_agents_say(on_farm: FarmSite) -> None:
    farm, site = on_farm.farm, on_farm.site
    suspended = farm.create_session("ts02", "alice")
    farm.suspend_session("ts02", "alice", suspended)
    running = farm.create_session("ts03", "bob")
    # Two more on every server but ts02, which is the one for somebody new.
    for name in ("ts01", "ts01", "ts03"):
        farm.create_session(name, "mallory")
    site.poll()

    with site.broker.daemon(site.settings) as daemon:
        ours = {user: (listed(daemon, user), selected(daemon, user)) for user in USERS}
    # A running session was suspended, so that it can be resumed elsewhere.
    assert farm.sql("select status from sessions where session_id = $1", running) == [("S",)]
    farm.resume_session("ts03", "bob", running)
    with site.broker.daemon(None) as daemon:
        live = {user: (listed(daemon, user), selected(daemon, user)) for user in USERS}

    assert ours == live
    assert {user: found for user, (found, _) in ours.items()} == {
        "alice": ("S", "ts02"),
        "bob": ("R", "ts03"),
        "john_doe": (None, None),
    }
    sessions = {user: None if session is None else session[1] for user, (_, (_, session)) in ours.items()}
    assert sessions == {"alice": suspended, "bob": running, "john_doe": None}
    assert ours["john_doe"][1][0] == f"127.0.0.1:{site.servers['ts02'].port}"


def test_a_profile_of_some_servers_shows_their_sessions_alone(on_farm: FarmSite) -> None:
    farm, site = on_farm.farm, on_farm.site
    name = farm.create_session("ts02", "alice")
    farm.suspend_session("ts02", "alice", name)
    site.poll()
    profiles = ("only-ts01", "only-ts02")

    with site.broker.daemon(site.settings) as daemon:
        ours = {each: (listed(daemon, "alice", each), selected(daemon, "alice", each)) for each in profiles}
    with site.broker.daemon(None) as daemon:
        live = {each: (listed(daemon, "alice", each), selected(daemon, "alice", each)) for each in profiles}

    assert ours == live
    assert ours["only-ts01"] == ((None, None), (f"127.0.0.1:{site.servers['ts01'].port}", None))
    assert ours["only-ts02"][0] == ("S", "ts02")


def test_a_session_on_a_server_that_is_down_is_not_offered(on_farm: FarmSite) -> None:
    """On purpose: the live agents list it, since the database has it, and then start a new session elsewhere."""
    farm, site = on_farm.farm, on_farm.site
    name = farm.create_session("ts02", "alice")
    farm.suspend_session("ts02", "alice", name)
    site.poll()
    down = f"127.0.0.1:{site.servers['ts02'].port}"

    site.servers["ts02"].stop_sshd()
    try:
        site.polled.wait_until(lambda: site.polled.status("ts02").up is False, "ts02 to be down")
        with site.broker.daemon(site.settings) as daemon:
            ours = listed(daemon, "alice"), selected(daemon, "alice")
        with site.broker.daemon(None) as daemon:
            live = listed(daemon, "alice"), selected(daemon, "alice")
    finally:
        site.servers["ts02"].start_sshd()

    assert (ours[0], live[0]) == ((None, None), ("S", "ts02"))
    assert (ours[1][1], live[1][1]) == (None, None)
    assert down not in {ours[1][0], live[1][0]}
    site.poll()
    with site.broker.daemon(site.settings) as daemon:
        assert listed(daemon, "alice") == ("S", "ts02")
        server, session = selected(daemon, "alice")
        assert (server, session and session[1]) == (down, name)
