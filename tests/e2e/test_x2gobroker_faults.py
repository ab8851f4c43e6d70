"""Agents that fail Debian's x2gobroker daemon while polls go on: every request has a reply, and the right one."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from .broker import USER, BrokerDaemon, Selected
from .broker_faults import (
    FAULTS,
    Reply,
    ask_at_once,
    daemons,
    hung_sshd,
    key_options,
    no_fault,
    no_key_file,
    reply_or_none,
)
from .broker_site import Site, open_site, settle
from .conftest import LoginKey, ServerFactory
from .namespace import wait_until
from .polled import PROFILE
from .realserver import RealX2GoServer, free_port

USERS = ("bob", "alice", "john_doe")
HANGING = {"lost packets", "hung sshd", "hung agent"}
# x2gobroker itself replies with HTTP 500.
NOT_HANDLED_BY_X2GOBROKER = {"agent that is no text", "agent that talks nonsense"}
# x2gobroker goes on with an agent that answers its ping with a failure, if it has no other.
SAYS_NO = {"agent that fails", "agent that closes"}
SAYS_YES = {"agent that talks nonsense"}
NO_SERVER = "no-X2Go-Server-available"


@dataclass(frozen=True, slots=True)
class Farm:
    """A site where bob has a running session on ts03, alice a suspended one, and john_doe none."""

    site: Site
    running: str
    suspended: str

    @property
    def ts03(self) -> RealX2GoServer:
        return self.site.servers["ts03"]

    def address(self, name: str) -> str:
        return f"{self.site.servers[name].host}:{self.site.servers[name].port}"

    def configure(self, port: int, more: str = "") -> None:
        """Let the broker find the agent of ts03 at a port, and so its clients the server."""
        ts01, ts02 = (f"{name} ({self.address(name)})" for name in ("ts01", "ts02"))
        ts03 = f"ts03 (127.0.0.1:{port})"
        hosts = {
            PROFILE: f"{ts01}, {ts02}, {ts03}",
            "only-ts03": ts03,
            "pair": f"{ts01}, {ts03}",
            "both-fail": f"ts02 (127.0.0.1:{port}), {ts03}",
        }
        profiles = [f"\n[{name}]\nname = {name}\nhost = {found}\n" for name, found in hosts.items()]
        self.site.broker.configure({}, more="".join(profiles) + more)

    @contextmanager
    def daemon(
        self, *, cached: bool = True, unguarded: bool = False, live_seconds: float = 3, **more: str
    ) -> Iterator[BrokerDaemon]:
        """Run a daemon that is answered from the fleet, or by agents alone, because nobody publishes its namespace."""
        settings = {**self.site.settings, "X2GOFLEET_BROKER_LIVE_SECONDS": str(live_seconds), **more}
        if not cached:
            settings["X2GOFLEET_NAMESPACE"] = "nobody"
        with self.site.broker.daemon(settings, unguarded=unguarded) as daemon:
            yield daemon

    def is_unchanged(self) -> bool:
        rows = self.ts03.sql("select session_id, status from sessions order by status")
        return rows == [(self.running, "R"), (self.suspended, "S")]


@pytest.fixture(scope="module")
def farm(
    start_module_server: ServerFactory, login_key: LoginKey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Farm]:
    with open_site(start_module_server, login_key, tmp_path_factory) as site:
        settle(site)
        running = site.servers["ts03"].insert_session("bob", 50)
        suspended = site.servers["ts03"].insert_session("alice", 51)
        site.servers["ts03"].change_status("alice", suspended, "S")
        site.poll()
        yield Farm(site, running, suspended)


def shown(selected: Selected) -> tuple[str, str | None, str | None]:
    """The server, and name and status of the session."""
    if selected.session is None:
        return selected.server, None, None
    return selected.server, selected.session[1], selected.session[4]


Shown = dict[tuple[str, str], tuple[str, str | None, str | None]]


def select_all(daemon: BrokerDaemon, profiles: tuple[str, ...], seconds: list[float]) -> Shown:
    """Select each profile for each user."""
    found: Shown = {}
    for profile in profiles:
        for user in USERS:
            selected = daemon.select(user, profile)
            seconds.append(selected.seconds)
            found[user, profile] = shown(selected)
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_every_login_is_answered_whatever_its_agent_does(farm: Farm, fault: str) -> None:
    port = free_port()
    farm.configure(port)
    door = f"127.0.0.1:{port}"
    cached: Shown = {}
    live: Shown = {}
    stock: Shown = {}
    statuses: dict[str, str | None] = {}
    seconds: list[float] = []
    live_profiles = ("only-ts03", "pair", "both-fail")
    compared = fault not in HANGING | NOT_HANDLED_BY_X2GOBROKER
    with ExitStack() as stack:
        stack.enter_context(FAULTS[fault](farm.site, farm.ts03, port))
        ours = stack.enter_context(farm.daemon())
        agents = stack.enter_context(farm.daemon(cached=False, live_seconds=12, X2GOFLEET_BROKER_REQUEST_SECONDS="60"))

        def ask_ours() -> None:
            for user in USERS:
                listed, taken = ours.profiles(user)
                seconds.append(taken)
                statuses[user] = listed["only-ts03"].get("status")
            cached.update(select_all(ours, ("only-ts03", PROFILE), seconds))

        calls = [ask_ours, lambda: live.update(select_all(agents, live_profiles, seconds))]
        if compared:
            plain = stack.enter_context(farm.site.broker.daemon(None))
            calls.append(lambda: stock.update(select_all(plain, live_profiles, [])))
        ask_at_once(calls)
    print(f"{fault}: {len(seconds)} replies, the slowest after {max(seconds):.1f} s")

    assert statuses == {"bob": "R", "alice": "S", "john_doe": None}
    idle = cached.pop(("john_doe", PROFILE))
    assert idle in [(farm.address(name), None, None) for name in ("ts01", "ts02")]
    # The broker writes S into the row of a session that it takes over; X2Go's resume suspends what still runs.
    assert cached == {
        ("bob", "only-ts03"): (door, farm.running, "S"),
        ("bob", PROFILE): (door, farm.running, "S"),
        ("alice", "only-ts03"): (door, farm.suspended, "S"),
        ("alice", PROFILE): (door, farm.suspended, "S"),
        ("john_doe", "only-ts03"): (door, None, None),
    }
    for user in USERS:
        assert live[user, "only-ts03"] == (door, None, None)
        pair = {farm.address("ts01"), door} if fault in SAYS_YES else {farm.address("ts01")}
        assert live.get((user, "pair")) in [(address, None, None) for address in pair]
        server, *session = live[user, "both-fail"]
        assert session == [None, None]
        assert server == door if fault in SAYS_NO | SAYS_YES else server.startswith(NO_SERVER)
    if compared:
        assert stock == live
    assert farm.is_unchanged()


def test_a_broker_without_a_key_asks_nobody_and_replies(farm: Farm) -> None:
    port = free_port()
    farm.configure(port)
    with no_key_file(farm.site, farm.ts03, port), farm.daemon() as daemon, farm.site.broker.daemon(None) as stock:
        for user in USERS:
            assert shown(daemon.select(user, "only-ts03")) == (f"127.0.0.1:{port}", None, None)
            assert shown(stock.select(user, "only-ts03")) == (f"127.0.0.1:{port}", None, None)
    assert farm.is_unchanged()


@pytest.mark.parametrize("fault", ["unknown host key", "other host key", "key refused", "connection refused"])
def test_without_the_guard_a_login_has_no_reply(farm: Farm, fault: str) -> None:
    port = free_port()
    farm.configure(port)
    replies: dict[bool, dict[str, Reply | None]] = {}
    with FAULTS[fault](farm.site, farm.ts03, port):
        for unguarded in (False, True):
            with farm.daemon(unguarded=unguarded) as daemon:
                replies[unguarded] = {user: reply_or_none(daemon, user, PROFILE) for user in USERS}
    assert [user for user, reply in replies[False].items() if reply is None] == []
    assert {reply.status for reply in replies[False].values() if reply is not None} == {200}
    assert [user for user, reply in replies[True].items() if reply is None] == ["bob"]


def test_a_hung_agent_is_asked_once_by_a_storm_and_its_connection_closed(farm: Farm) -> None:
    port = free_port()
    farm.configure(port)
    before = farm.site.agent_logins()["ts03"]
    log = farm.ts03.namespace.disk / "var/log/agent-sshd.log"
    began = len(log.read_text(errors="replace")) if log.exists() else 0

    def connections() -> list[str]:
        return [found.command for found in farm.ts03.processes() if found.command.startswith(f"sshd: {USER}")]

    with FAULTS["hung agent"](farm.site, farm.ts03, port), farm.daemon() as daemon:
        selected: list[Selected] = []
        storm = [lambda user=user: selected.append(daemon.select(user, PROFILE)) for user in ("bob", *USERS * 2)]
        seconds = ask_at_once(storm)
        print(f"storm of {len(storm)}: {', '.join(f'{each:.1f}' for each in sorted(seconds))} s")
        assert sum(shown(each)[1:] == (farm.running, "S") for each in selected) == 3
        assert sum(shown(each)[1:] == (farm.suspended, "S") for each in selected) == 2
        # Closed by the broker, though the agent would go on for minutes.
        wait_until(lambda: not connections(), "the end of the broker's connection", timeout_seconds=60)
        assert log.read_text(errors="replace")[began:].count("Starting session: forced-command") == 1
    assert farm.site.agent_logins()["ts03"] == before
    assert farm.is_unchanged()


def test_all_agents_of_a_request_share_one_limit(farm: Farm) -> None:
    port = free_port()
    names = [f"hung{number}" for number in range(8)]
    hosts = farm.site.broker.namespace.path("/etc/hosts")
    text = hosts.read_text()
    hosts.write_text(text + "".join(f"127.0.0.1 {name}\n" for name in names))
    many = "\n[many]\nname = many\nhost = " + ", ".join(f"{name} (127.0.0.1:{port})" for name in names) + "\n"
    farm.configure(port, many)
    written = len(farm.site.broker.broker_log())
    try:
        with (
            hung_sshd(farm.site, farm.ts03, port),
            farm.daemon(cached=False, live_seconds=2, X2GOFLEET_BROKER_REQUEST_SECONDS="6") as daemon,
        ):
            selected = daemon.select("bob", "many")
            log = farm.site.broker.broker_log()[written:]
            again = daemon.select("john_doe", "only-ts03")
    finally:
        hosts.write_text(text)
    waited = [float(found) for found in re.findall(r"hung\d, port \d+, did not answer within ([\d.]+) s", log)]
    print(f"{len(waited)} hung agents: {selected.seconds:.1f} s, the limits {waited}")
    assert selected.server.startswith(NO_SERVER)
    assert waited[0] == 2.0
    assert waited == sorted(waited, reverse=True)
    assert len(waited) == len(names)
    assert sum(waited) < 6
    assert shown(again) == (f"127.0.0.1:{port}", None, None)


def test_a_key_that_can_not_be_taken_back_leaves_no_second_broker(farm: Farm) -> None:
    port = free_port()
    farm.configure(port, f"\n[auto]\nname = auto\nhost = ts03 (127.0.0.1:{port})\nbroker-session-autologin = true\n")
    site, forks = farm.site, set[int]()
    with no_fault(site, farm.ts03, port), farm.daemon() as daemon, farm.daemon(unguarded=True) as unguarded:
        brokers = daemons(site)
        assert len(brokers) == 2
        try:
            # x2gobroker forks, to take the key back after 20 s.
            for each in (daemon, unguarded):
                assert "PRIVATE KEY" in each.ask("john_doe", "selectsession", "auto")
            forks = set(daemons(site)) - set(brokers)
            assert len(forks) == 2
            with key_options(site, farm.ts03, None):
                wait_until(lambda: len(daemons(site)) == 3, "the end of the guarded fork", timeout_seconds=120)
                (left,) = forks & set(daemons(site))
                wait_until(lambda: fork_answers(unguarded, left), "a second broker", timeout_seconds=120)
        finally:
            for pid in forks & set(daemons(site)):
                os.kill(pid, signal.SIGKILL)


def fork_answers(daemon: BrokerDaemon, fork: int) -> bool:
    """Whether a fork serves logins: it has taken one that its parent, stopped meanwhile, can't have."""
    parent = int(re.search(r"^PPid:\s(\d+)$", Path(f"/proc/{fork}/status").read_text(), re.MULTILINE)[1])  # type: ignore[index]
    os.kill(parent, signal.SIGSTOP)
    try:
        return "SERVER:" in daemon.ask("alice", "selectsession", PROFILE, timeout_seconds=3)
    except OSError:
        return False
    finally:
        os.kill(parent, signal.SIGCONT)
