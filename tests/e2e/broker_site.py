"""A site with a broker: three real X2Go servers, the worker that polls them, a Valkey, and Debian's x2gobroker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.reader import OwnValkey
from tests.system_python import require
from x2gofleet.keys import Keys

from .broker import USER, BrokerHost, Selected
from .conftest import LoginKey, ServerFactory
from .polled import PROFILE, PolledFleet, write_inventory
from .realserver import RealX2GoServer

NAMES = ("ts01", "ts02", "ts03")
LIVE_SECONDS = "2"
NAMESPACE = "broker-test"


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


@contextmanager
def open_site(
    start_module_server: ServerFactory, login_key: LoginKey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Start all of it; every server has been polled."""
    with open_site_of({name: start_module_server(name) for name in NAMES}, login_key, tmp_path_factory) as site:
        yield site


@contextmanager
def open_site_of(
    servers: dict[str, RealX2GoServer], login_key: LoginKey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The same for servers that run."""
    require("x2gobroker", "x2gobroker-daemon x2gobroker-loadchecker x2gobroker-agent")
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


def settle(site: Site) -> None:
    """End all sessions, forget all reservations."""
    for server in site.servers.values():
        server.sql("delete from sessions")
    for name in site.servers:
        site.polled.redis.delete(Keys(NAMESPACE).reserved(name))
    site.poll()


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
        site.polled.wait_until(lambda: site.polled.cache.is_cached(PROFILE), "all to be cached anew")
