"""Whole logins (list profiles, select one) through Debian's x2gobroker daemon: its own agents against the cache."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.e2e.broker import DAEMON, BrokerDaemon, BrokerHost
from tests.e2e.polled import PROFILE, PolledFleet, write_inventory
from tests.e2e.realserver import RealX2GoServer, create_empty_database, missing_requirements
from tests.integration.reader import OwnValkey

Row = tuple[str, str, float, str]
NAMES = ("ts01", "ts02", "ts03")
NAMESPACE = "bench-broker"
LIVE_ROUNDS = 2
CACHED_ROUNDS = 30

# What the daemon does for each of a client's two requests, but for HTTP.
LOGINS = """
import json, statistics, time
import x2gobroker.agent
from x2gobroker.brokers.inifile_broker import X2GoBroker

def login():
    began = time.perf_counter()
    X2GoBroker().list_profiles("{user}")
    X2GoBroker().select_session("{profile}", "{user}")
    return (time.perf_counter() - began) * 1000

login()
print(json.dumps(statistics.median(login() for _ in range({rounds}))))
"""


def _median_ms(run: Callable[[], object], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        found.append((time.perf_counter() - began) * 1000)
    return statistics.median(found)


def _login(daemon: BrokerDaemon, username: str, profile: str) -> Callable[[], None]:
    def login() -> None:
        daemon.profiles(username)
        daemon.select(username, profile)

    return login


def run() -> list[Row]:
    """Return (what, baseline, ratio, goal) of each measurement; needs root, Debian's x2goserver and x2gobroker."""
    lacking = missing_requirements() or ("" if Path(DAEMON).exists() else f"no {DAEMON}; run tests/e2e/setup.sh")
    if lacking:
        print(f"no logins through a real broker: {lacking}", file=sys.stderr)
        return []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="x2gofleet-bench-")))
        key = directory / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        (directory / "state").mkdir()
        database = create_empty_database(directory / "state")
        servers = {}
        for name in NAMES:
            server = stack.enter_context(RealX2GoServer(directory / name, empty_database=database, hostname=name))
            server.authorize("root", key.with_suffix(".pub").read_text())
            servers[name] = server
        (directory / "valkey").mkdir()
        valkey = stack.enter_context(OwnValkey(directory / "valkey"))
        inventory = write_inventory(directory, servers, key, intervals={"sessions": 2, "load": 5, "mounts": 20})
        polled = stack.enter_context(PolledFleet(inventory, valkey.url, NAMESPACE))
        broker = stack.enter_context(BrokerHost(directory / "broker", servers))
        settings = {"X2GOFLEET_REDIS_URL": valkey.url, "X2GOFLEET_NAMESPACE": NAMESPACE}
        name = servers["ts02"].insert_session("alice", 50)
        servers["ts02"].change_status("alice", name, "S")
        running = servers["ts03"].insert_session("bob", 51)
        for server_name in NAMES:
            polled.next_snapshot("sessions", server_name)
        rows: list[Row] = []
        for count in (1, 10):
            broker.configure({f"{PROFILE}{number}": servers for number in range(count)})
            goal = "<= 10 ms" if count == 1 else "<= 15 ms"
            rows += _backend_class(broker, settings, count, goal)
            with broker.daemon(None) as live, broker.daemon(settings) as cached:
                rows += _daemon(live, cached, count, goal)
        # The one server that has it: of three on SQLite, live agents find it on one login in three.
        broker.configure({f"{PROFILE}0": {"ts03": servers["ts03"]}})
        with broker.daemon(None) as live, broker.daemon(settings) as cached:
            rows.append(_take_over(servers["ts03"], running, polled, live, cached))
        return rows


def _backend_class(broker: BrokerHost, settings: dict[str, str], count: int, goal: str) -> list[Row]:
    cached_ms, live_ms = (
        broker.python(LOGINS.format(user="john_doe", profile=f"{PROFILE}0", rounds=rounds), chosen)
        for chosen, rounds in ((settings, CACHED_ROUNDS), (None, LIVE_ROUNDS))
    )
    what = f"login, {_profiles(count)}, backend class: {cached_ms:.1f} ms"
    return [(what, f"live agents, {live_ms:.0f} ms", cached_ms / live_ms, goal)]


def _profiles(count: int) -> str:
    return f"{count} profile{'s' if count > 1 else ''}"


def _daemon(live: BrokerDaemon, cached: BrokerDaemon, count: int, goal: str) -> list[Row]:
    rows = []
    for username, what in (("john_doe", "new session"), ("alice", "suspended one")):
        ours, theirs = (_login(daemon, username, f"{PROFILE}0") for daemon in (cached, live))
        ours()
        cached_ms, live_ms = _median_ms(ours, CACHED_ROUNDS), _median_ms(theirs, LIVE_ROUNDS)
        rows.append(
            (
                f"login, {_profiles(count)}, daemon, {what}: {cached_ms:.1f} ms",
                f"live agents, {live_ms:.0f} ms",
                cached_ms / live_ms,
                goal,
            )
        )
    return rows


def _take_over(
    server: RealX2GoServer, session: str, polled: PolledFleet, live: BrokerDaemon, cached: BrokerDaemon
) -> Row:
    found = []
    for daemon in (cached, live):
        server.change_status("bob", session, "R")
        polled.next_snapshot("sessions", "ts03")
        found.append(_median_ms(_login(daemon, "bob", f"{PROFILE}0"), 1))
    cached_ms, live_ms = found
    what = f"login, 1 profile, daemon, taking over: {cached_ms:.0f} ms"
    return what, f"live agents, {live_ms:.0f} ms", cached_ms / live_ms, "2000 ms is the broker's own sleep"


def main() -> None:
    """Print the ratios."""
    for what, baseline, found, goal in run():
        print(f"{what:52} {found:8.4f}x  {baseline:50} goal {goal}")


if __name__ == "__main__":
    main()
