"""Debian's x2gobroker daemon over three real X2Go servers with a SQLite database each, with the adapter and without."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system_python import SYSTEM_PYTHON

from .broker import DAEMON, LIBRARY
from .broker_site import Site, no_redis, open_site, place_of, settle
from .conftest import LoginKey, ServerFactory
from .namespace import wait_until
from .polled import PROFILE

CHECK_LOAD = """
import json, x2gobroker.agent, x2gobroker.brokers.inifile_broker
broker = x2gobroker.brokers.inifile_broker.X2GoBroker()
agents = broker.get_all_remote_agents("mate")
print(json.dumps({agent["hostname"]: x2gobroker.agent.check_load(agent) for agent in agents}))
"""


@pytest.fixture(scope="module")
def site(
    start_module_server: ServerFactory, login_key: LoginKey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with open_site(start_module_server, login_key, tmp_path_factory) as found:
        yield found


@contextmanager
def drained(site: Site, name: str) -> Iterator[None]:
    """Let no new session onto a server, by its setting in fleet.toml."""
    try:
        site.write_inventory({name: {"drain": True}})
        yield
    finally:
        site.write_inventory({})


def test_a_login_is_what_the_right_server_would_have_given_and_opens_no_connection(site: Site) -> None:
    settle(site)
    site.broker.configure(site.profiles())
    resumed = site.servers["ts02"].insert_session("alice", 50)
    site.servers["ts02"].change_status("alice", resumed, "S")
    running = site.servers["ts03"].insert_session("bob", 50)
    site.servers["ts01"].insert_session("bob", 51, started=False)
    ended = site.servers["ts01"].insert_session("alice", 52)
    site.servers["ts01"].change_status("alice", ended, "T")
    site.servers["ts01"].shadow_session("bob", "alice", 53, shadowed=51)
    site.servers["ts03"].insert_session("mallory", 54)
    site.poll()
    before = site.connections()
    with site.broker.daemon(site.settings) as daemon:
        listed = {user: daemon.profiles(user)[0][PROFILE] for user in ("alice", "bob", "john_doe")}
        selected = {user: daemon.select(user, PROFILE) for user in ("alice", "john_doe")}
        assert site.connections() == before
        taken_over = daemon.select("bob", PROFILE)
        # Suspending a session is the agent's work: a look whether the port is open, then the one SSH connection.
        assert site.connections() == {**before, "ts03": before["ts03"] + 2}
        site.polled.wait_until(
            lambda: (
                (found := site.polled.cache.list_sessions(profile_name=PROFILE, username="bob")) is not None
                and found[running].status == "S"
            ),
            "the refresh after the take-over",
        )

    assert listed["alice"]["status"] == "S"
    assert (listed["alice"]["host"], listed["bob"]["host"]) == ("ts02", "ts03")
    assert listed["bob"]["status"] == "R"
    assert "status" not in listed["john_doe"]
    # Unfinished sessions of all users: three on ts01, one on ts02, two on ts03.
    assert selected["john_doe"].stable == (f"127.0.0.1:{site.servers['ts02'].port}", None)
    assert selected["alice"].session is not None
    assert selected["alice"].session[1] == resumed
    assert taken_over.session is not None
    assert taken_over.session[1] == running
    assert site.servers["ts03"].sql("select status from sessions where session_id = ?", [running]) == [("S",)]

    site.servers["ts03"].change_status("bob", running, "R")
    with site.broker.daemon(None) as live:
        for user, right in (("alice", "ts02"), ("bob", "ts03"), ("john_doe", "ts02")):
            profile = live.profiles(user)[0][f"only-{right}"]
            assert profile.get("status") == listed[user].get("status")
            if "status" in profile:
                assert profile["host"] == listed[user]["host"]
            live_selected = live.select(user, f"only-{right}")
            ours = taken_over if user == "bob" else selected[user]
            assert live_selected.stable == ours.stable
    log = site.broker.log.read_text() + site.broker.broker_log()
    assert "x2gofleet answers for x2gobroker-daemon: " in log


@pytest.mark.parametrize("load_checker", [False, True])
def test_logins_that_have_no_session_yet_are_spread_and_a_drained_server_gets_none(
    site: Site, load_checker: bool
) -> None:
    settle(site)
    site.broker.know(*(f"{kind}{number}" for kind in ("user", "later") for number in range(10)))
    site.broker.configure(site.profiles(), load_checker=load_checker)
    before = site.connections()
    with site.broker.daemon(site.settings) as daemon:
        spread = Counter(place_of(site, daemon.select(f"user{number}", PROFILE)) for number in range(9))
        reserved = site.polled.cache.reservations(PROFILE)
        again = {place_of(site, daemon.select("user0", PROFILE)) for _ in range(3)}
        with drained(site, "ts02"):
            others = Counter(place_of(site, daemon.select(f"later{number}", PROFILE)) for number in range(4))
            alone = daemon.select("later9", "only-ts02")
        assert site.connections() == before

    assert spread == {"ts01": 3, "ts02": 3, "ts03": 3}
    assert reserved == {"ts01": 3, "ts02": 3, "ts03": 3}
    assert len(again) <= 2
    assert others["ts02"] == 0
    assert sum(others.values()) == 4
    assert alone.server.startswith("no-X2Go-Server-available:")


def test_hosts_are_found_with_and_without_their_domain(site: Site) -> None:
    settle(site)
    name = site.servers["ts02"].insert_session("alice", 50)
    site.servers["ts02"].change_status("alice", name, "S")
    site.poll()
    hosts = ", ".join(f"{name}.example.org ({s.host}:{s.port})" for name, s in site.servers.items())
    site.broker.configure({}, more=f"\n[{PROFILE}]\nname = mate\nhost = {hosts}\n")
    site.broker.know(*(f"user{number}" for number in range(5)))
    before = site.connections()
    with site.broker.daemon(site.settings) as daemon:
        listed, _ = daemon.profiles("alice")
        resumed = daemon.select("alice", PROFILE)
        spread = Counter(place_of(site, daemon.select(f"user{number}", PROFILE)) for number in range(5))
    assert site.connections() == before
    assert (listed[PROFILE]["status"], listed[PROFILE]["host"]) == ("S", "ts02")
    assert (place_of(site, resumed), resumed.session and resumed.session[1]) == ("ts02", name)
    assert spread == {"ts01": 2, "ts02": 1, "ts03": 2}


def test_a_hung_server_and_a_redis_that_is_down_do_not_stop_logins(site: Site) -> None:
    settle(site)
    name = site.servers["ts02"].insert_session("alice", 50)
    site.servers["ts02"].change_status("alice", name, "S")
    site.poll()
    site.broker.configure(site.profiles())
    site.broker.know(*(f"user{number}" for number in range(5)))

    def waited_for_ts03() -> int:
        lines = site.broker.broker_log().splitlines()
        return sum("ts03" in line and "did not answer within" in line for line in lines)

    before = waited_for_ts03()
    with site.broker.daemon({**site.settings, "X2GOFLEET_BROKER_LIVE_SECONDS": "9"}) as daemon:
        usual = daemon.profiles("alice")[0]
        site.servers["ts03"].freeze_sshd()
        try:
            listed, _ = daemon.profiles("alice")
            resumed = daemon.select("alice", PROFILE)
            assert listed == usual
            assert place_of(site, resumed) == "ts02"
            site.polled.wait_until(lambda: site.polled.status("ts03").up is False, "ts03 to be down")
            new = [daemon.select(f"user{number}", PROFILE) for number in range(4)]
            # With alice's session five in all, on the two that are left.
            assert Counter(place_of(site, each) for each in new)["ts01"] in (2, 3)
            assert {place_of(site, each) for each in new} == {"ts01", "ts02"}
            # No agent was waited for.
            assert waited_for_ts03() == before
            with no_redis(site):
                # A hung agent takes its time limit once, however many profiles it is asked for; the others answer.
                for _ in range(2):
                    live, _ = daemon.profiles("alice")
                    assert live["only-ts02"] == usual["only-ts02"]
                assert waited_for_ts03() == before + 1
        finally:
            site.servers["ts03"].thaw_sshd()
    before = site.agent_logins()
    with no_redis(site), site.broker.daemon({**site.settings, "X2GOFLEET_BROKER_FALLBACK": "none"}) as daemon:
        listed, _ = daemon.profiles("alice")
        assert [profile.get("status") for profile in listed.values()] == [None] * 4
        assert site.agent_logins() == before


def test_the_programs_run_as_debians_units_run_them(site: Site) -> None:
    settle(site)
    site.servers["ts02"].insert_session("alice", 50)
    site.poll()
    site.broker.configure(site.profiles(), load_checker=True)
    before = site.connections()
    with site.broker.forked_daemon(site.settings) as daemon, site.broker.forked_loadchecker(site.settings) as ask:
        listed, _ = daemon.profiles("alice")
        assert (listed[PROFILE]["status"], listed[PROFILE]["host"]) == ("R", "ts02")
        assert site.broker.owner("x2gobroker-daemon") == "x2gobroker"
        figures: dict[str, str] = {}

        def all_are_known() -> bool:
            figures.update(line.split(":") for line in ask(PROFILE).split())
            return figures.keys() == site.servers.keys()

        wait_until(all_are_known, "the load checker's first round", timeout_seconds=60)
    assert site.connections() == before
    loads = site.polled.cache.load(PROFILE)
    assert loads is not None
    assert set(figures) == set(loads)
    assert all(int(figure) >= 1 for figure in figures.values())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"X2GOFLEET_REDIS_URL": "http://127.0.0.1"}, "is not a valid Redis URL: its scheme is none of"),
        ({"X2GOFLEET_BROKER_LIVE_SECONDS": "soon"}, "X2GOFLEET_BROKER_LIVE_SECONDS: expected seconds"),
        ({"X2GOFLEET_BROKER_FALBACK": "none"}, "X2GOFLEET_BROKER_FALBACK: there is no such setting"),
        ({"X2GOFLEET_BROKER_CONFIG": "/nowhere"}, "/nowhere: there is no such file"),
    ],
)
def test_a_wrong_setting_ends_the_program_with_what_is_wrong(site: Site, settings: dict[str, str], text: str) -> None:
    done = site.broker.namespace.run(site.broker.command([DAEMON, "--help"], settings), user="x2gobroker", check=False)
    assert done.returncode == 2
    assert done.stdout == b""
    assert text in done.stderr.decode()
    assert len(done.stderr.splitlines()) == 1


def test_x2gobrokers_own_tests_give_the_same_with_the_adapter(site: Site) -> None:
    suite = f"{LIBRARY}/broker_suite.py"
    site.broker.namespace.path(suite).write_bytes(Path(__file__).with_name("broker_suite.py").read_bytes())
    found = []
    for settings in (None, site.settings):
        program = [str(SYSTEM_PYTHON), suite] if settings is None else [suite]
        command = site.broker.command(program, settings)
        done = site.broker.namespace.run(command, user="x2gobroker", timeout_seconds=200)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    without, with_adapter = found
    assert with_adapter == without
    assert sum(outcome == "passed" for outcome in without.values()) >= 40
    agents = {name: outcome for name, outcome in without.items() if name.startswith("test_broker_agent.")}
    assert set(agents.values()) == {"passed"}


@pytest.mark.parametrize("model", ["Intel(R) Xeon(R) CPU E5-2670 0 @ 2.60GHz", "AMD EPYC 7763"])
def test_load_factors_are_those_of_the_live_agents(site: Site, model: str) -> None:
    settle(site)
    site.broker.configure(site.profiles())
    processor = f"processor\t: 0\nmodel name\t: {model}\ncpu MHz\t\t: 2449.198\n\n"
    available = {"ts01": 23_456_789, "ts02": 1_999, "ts03": 512}
    for name, server in site.servers.items():
        memory = server.path("/proc/meminfo").read_text()
        memory = re.sub(r"(MemAvailable:\s+)\d+", rf"\g<1>{available[name]}", memory)
        for file, text in {"loadavg": "0.31 0.20 1.07 1/99 1\n", "meminfo": memory, "cpuinfo": processor * 3}.items():
            server.path(f"/tmp/{file}").write_text(text)
            server.run(["mount", "--bind", f"/tmp/{file}", f"/proc/{file}"])
        # The probe reads what does not change when it starts.
        server.drop_connections()
    try:
        site.polled.wait_until(
            lambda: (
                (loads := site.polled.cache.load(PROFILE)) is not None
                and all(load.cpus == 3 and load.avg15 == 1.07 for load in loads.values())
                and len(loads) == 3
            ),
            "the new figures",
            seconds=30,
        )
        before = site.connections()
        cached = site.broker.python(CHECK_LOAD, site.settings)
        assert site.connections() == before
        live = site.broker.python(CHECK_LOAD, None)
    finally:
        for server in site.servers.values():
            server.run(["umount", "/proc/loadavg", "/proc/meminfo", "/proc/cpuinfo"])
            server.drop_connections()
    assert set(live) == set(available)
    # The agent of ts03 prints no MB at all, and guesses.
    del live["ts03"]
    assert cached.pop("ts03") == 1
    assert cached == live
