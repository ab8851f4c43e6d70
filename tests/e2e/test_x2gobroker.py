"""Debian's x2gobroker daemon over three real X2Go servers with a SQLite database each, with the adapter and without."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.reader import OwnValkey
from tests.system_python import SYSTEM_PYTHON, require
from x2gofleet.keys import Keys

from .broker import DAEMON, LIBRARY, USER, BrokerHost, Selected
from .conftest import LoginKey, ServerFactory
from .namespace import wait_until
from .polled import PROFILE, PolledFleet, write_inventory
from .realserver import RealX2GoServer

NAMES = ("ts01", "ts02", "ts03")
LIVE_SECONDS = "2"
NAMESPACE = "broker-test"

CHECK_LOAD = """
import json, x2gobroker.agent, x2gobroker.brokers.inifile_broker
broker = x2gobroker.brokers.inifile_broker.X2GoBroker()
agents = broker.get_all_remote_agents("mate")
print(json.dumps({agent["hostname"]: x2gobroker.agent.check_load(agent) for agent in agents}))
"""


@dataclass(frozen=True, slots=True)
class Site:
    """Three servers, the worker that polls them, the Valkey that it writes to, and the broker's machine.

    The broker has a profile `mate` of all servers, and for each server a profile `only-ts01` ... of it alone: what the
    live path gives for the right one is what a broker on a shared database would give for all.
    """

    servers: dict[str, RealX2GoServer]
    valkey: OwnValkey
    polled: PolledFleet
    broker: BrokerHost
    key_file: Path

    @property
    def settings(self) -> dict[str, str]:
        return {
            "X2GOFLEET_REDIS_URL": self.valkey.url,
            "X2GOFLEET_NAMESPACE": NAMESPACE,
            "X2GOFLEET_BROKER_LIVE_SECONDS": LIVE_SECONDS,
        }

    def profiles(self) -> dict[str, dict[str, RealX2GoServer]]:
        return {PROFILE: self.servers, **{f"only-{name}": {name: server} for name, server in self.servers.items()}}

    def write_inventory(self, per_server: dict[str, dict[str, object]]) -> None:
        """Change the settings of servers, and return once readers know."""
        profiles = {name: {"servers": list(servers)} for name, servers in self.profiles().items()}
        directory = self.polled.inventory.parent
        write_inventory(directory, self.servers, self.key_file, profiles=profiles, per_server=per_server)
        self.polled.worker.reload()
        expected = {name: bool(per_server.get(name, {}).get("drain")) for name in self.servers}
        self.polled.wait_until(
            lambda: {status.id: status.drained for status in self.polled.cache.servers()} == expected,
            "the changed inventory to be published",
        )

    def connections(self) -> dict[str, int]:
        return {name: server.connections() for name, server in self.servers.items()}

    def agent_logins(self) -> dict[str, int]:
        """How often an agent was asked, whoever else connects meanwhile."""
        return {
            name: sum(attempt.user == USER for attempt in server.authentication_attempts())
            for name, server in self.servers.items()
        }

    def poll(self) -> None:
        """Return once every server was polled anew."""
        for name in self.servers:
            self.polled.next_snapshot("sessions", name)
            self.polled.next_snapshot("load", name)


@pytest.fixture(scope="module")
def site(
    start_module_server: ServerFactory, login_key: LoginKey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    require("x2gobroker", "x2gobroker-daemon x2gobroker-loadchecker x2gobroker-agent")
    servers = {name: start_module_server(name) for name in NAMES}
    directory = tmp_path_factory.mktemp("site")
    profiles = {PROFILE: {"servers": list(servers)}, **{f"only-{name}": {"servers": [name]} for name in servers}}
    inventory = write_inventory(directory, servers, login_key.private_path, profiles=profiles)
    with ExitStack() as stack:
        valkey = stack.enter_context(OwnValkey(tmp_path_factory.mktemp("valkey")))
        polled = stack.enter_context(PolledFleet(inventory, valkey.url, NAMESPACE))
        broker = stack.enter_context(BrokerHost(tmp_path_factory.mktemp("broker") / "host", servers))
        found = Site(servers, valkey, polled, broker, login_key.private_path)
        found.poll()
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


def place_of(site: Site, selected: Selected) -> str:
    """The name of the server that a client is sent to."""
    return next(name for name, server in site.servers.items() if selected.server == f"{server.host}:{server.port}")


@contextmanager
def no_redis(site: Site) -> Iterator[None]:
    """Have no Redis for a while."""
    site.valkey.kill()
    try:
        yield
    finally:
        site.valkey.start()
        site.polled.wait_until(lambda: site.polled.cache.is_cached(PROFILE), "all to be cached anew", seconds=30)


def settle(site: Site) -> None:
    """End all sessions, forget all reservations."""
    for server in site.servers.values():
        server.sql("delete from sessions")
    for name in site.servers:
        site.polled.redis.delete(Keys(NAMESPACE).reserved(name))
    site.poll()


@pytest.mark.parametrize("load_checker", [False, True])
def test_logins_that_have_no_session_yet_are_spread_and_a_drained_server_gets_none(
    site: Site, load_checker: bool
) -> None:
    settle(site)
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
    with site.broker.daemon(site.settings) as daemon:
        usual = daemon.profiles("alice")[0]
        site.servers["ts03"].freeze_sshd()
        try:
            listed, seconds = daemon.profiles("alice")
            resumed = daemon.select("alice", PROFILE)
            assert listed == usual
            assert place_of(site, resumed) == "ts02"
            assert max(seconds, resumed.seconds) < 2
            site.polled.wait_until(lambda: site.polled.status("ts03").up is False, "ts03 to be down", seconds=30)
            new = [daemon.select(f"user{number}", PROFILE) for number in range(4)]
            # With alice's session five in all, on the two that are left.
            assert Counter(place_of(site, each) for each in new)["ts01"] in (2, 3)
            assert {place_of(site, each) for each in new} == {"ts01", "ts02"}
            assert max(each.seconds for each in new) < 2
            with no_redis(site):
                live, seconds = daemon.profiles("alice")
                # A hung agent takes its time limit once, however many profiles it is asked for; the others answer.
                assert live["only-ts02"] == usual["only-ts02"]
                assert seconds < 15
                again, seconds = daemon.profiles("alice")
                assert again["only-ts02"] == usual["only-ts02"]
                assert seconds < 12
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
        wait_until(lambda: "ts03:" in ask(PROFILE), "the load checker's first round", timeout_seconds=30)
        figures = dict(line.split(":") for line in ask(PROFILE).split())
    assert site.connections() == before
    loads = site.polled.cache.load(PROFILE)
    assert loads is not None
    assert set(figures) == set(loads)
    assert all(int(figure) >= 1 for figure in figures.values())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"X2GOFLEET_REDIS_URL": "http://127.0.0.1"}, "http"),
        ({"X2GOFLEET_BROKER_LIVE_SECONDS": "soon"}, "X2GOFLEET_BROKER_LIVE_SECONDS: expected seconds"),
        ({"X2GOFLEET_BROKER_FALBACK": "none"}, "X2GOFLEET_BROKER_FALBACK: there is no such setting"),
        ({"X2GOFLEET_BROKER_CONFIG": "/nowhere"}, "/nowhere: can't be read"),
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
