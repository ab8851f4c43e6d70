"""Fixtures of the tests on real X2Go servers; skipped where those can't run, failed where CI demands them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .polled import PROFILE, PolledFleet, write_inventory
from .polled_farm import PATIENT, RARELY
from .postgres import PostgresServer
from .postgres_farm import PostgresFarm, missing_postgres
from .realserver import USERS, RealX2GoServer, create_empty_database, missing_requirements

ServerFactory = Callable[..., RealX2GoServer]
FarmFactory = Callable[..., PostgresFarm]
PollFactory = Callable[..., PolledFleet]
Ssh = Callable[..., subprocess.CompletedProcess[bytes]]

SSH = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "GlobalKnownHostsFile=none"]


@dataclass(frozen=True, slots=True)
class LoginKey:
    """An ed25519 key pair without a passphrase; `public_text` is one line for authorized_keys."""

    private_path: Path
    public_text: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def real_x2go() -> None:
    """Skip the test where no real X2Go server can run; fail it there with X2GOFLEET_REQUIRE_E2E=1."""
    skip_without(missing_requirements())


@pytest.fixture(scope="session")
def real_postgres(real_x2go: None) -> None:
    """As `real_x2go`, for tests that need Debian's PostgreSQL too."""
    skip_without(missing_postgres())


def skip_without(lacking: str) -> None:
    """Skip the test for want of something, or fail it with X2GOFLEET_REQUIRE_E2E=1."""
    if not lacking:
        return
    if os.environ.get("X2GOFLEET_REQUIRE_E2E") == "1":
        pytest.fail(f"X2GOFLEET_REQUIRE_E2E=1, but {lacking}", pytrace=False)
    pytest.skip(lacking)


@pytest.fixture(scope="session")
def empty_database(real_x2go: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_empty_database(tmp_path_factory.mktemp("x2go-state"))


@pytest.fixture(scope="session")
def login_key(real_x2go: None, tmp_path_factory: pytest.TempPathFactory) -> LoginKey:
    """The key that every server made by the fixtures lets in as root."""
    private = tmp_path_factory.mktemp("login-key") / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", private], check=True)
    return LoginKey(private, private.with_suffix(".pub").read_text().strip())


def _factory(
    stack: ExitStack, empty_database: Path, login_key: LoginKey, paths: pytest.TempPathFactory
) -> ServerFactory:
    def start(hostname: str = "ts01", **settings: object) -> RealX2GoServer:
        directory = paths.mktemp(hostname) / "server"
        server = RealX2GoServer(directory, empty_database=empty_database, hostname=hostname, **settings)  # type: ignore[arg-type]
        stack.enter_context(server)
        server.authorize("root", login_key.public_text)
        return server

    return start


@pytest.fixture
def start_server(
    empty_database: Path, login_key: LoginKey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerFactory]:
    """`start_server(hostname, ...)`: a new real server per call; `login_key` logs in as root; gone with the test."""
    with ExitStack() as stack:
        yield _factory(stack, empty_database, login_key, tmp_path_factory)


@pytest.fixture
def server(start_server: ServerFactory) -> RealX2GoServer:
    """A real server `ts01` of this test's own."""
    return start_server("ts01")


@pytest.fixture(scope="module")
def start_module_server(
    empty_database: Path, login_key: LoginKey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerFactory]:
    """As `start_server`, for servers that all tests of a module share."""
    with ExitStack() as stack:
        yield _factory(stack, empty_database, login_key, tmp_path_factory)


def _farm_factory(stack: ExitStack, start_server: ServerFactory) -> FarmFactory:
    def start(
        hostnames: Sequence[str] = ("ts01", "ts02", "ts03"), *, max_connections: int = 40, **settings: Any
    ) -> PostgresFarm:
        database = stack.enter_context(PostgresServer(max_connections=max_connections))
        servers = {name: start_server(name) for name in hostnames}
        return PostgresFarm(database, servers, users=USERS, **settings)

    return start


@pytest.fixture
def start_postgres_farm(real_postgres: None, start_server: ServerFactory) -> Iterator[FarmFactory]:
    """`start_postgres_farm(hostnames, ...)`: new servers on a PostgreSQL of their own; gone with the test."""
    with ExitStack() as stack:
        yield _farm_factory(stack, start_server)


@pytest.fixture(scope="module")
def start_module_postgres_farm(real_postgres: None, start_module_server: ServerFactory) -> Iterator[FarmFactory]:
    """As `start_postgres_farm`, for a farm that all tests of a module share."""
    with ExitStack() as stack:
        yield _farm_factory(stack, start_module_server)


@pytest.fixture
def farm(module_farm: PostgresFarm) -> Iterator[PostgresFarm]:
    """The module's own `module_farm`, without the sessions of other tests."""
    yield module_farm
    module_farm.database.sql("truncate sessions, mounts, used_ports")


@pytest.fixture
def poll_farm(farm: PostgresFarm, poll: PollFactory) -> Callable[..., PolledFleet]:
    """`poll_farm(...)`: a worker on all servers of the farm; returns once it has polled each."""

    def start(**settings: object) -> PolledFleet:
        polled = poll(farm.servers, **{"login": PATIENT, "intervals": RARELY, **settings})
        polled.wait_until(
            lambda: polled.cache.is_cached(PROFILE, cache_type="sessions"), "the first snapshots", seconds=60
        )
        return polled

    return start


@pytest.fixture
def poll(login_key: LoginKey, valkey_url: str, namespace: str, tmp_path: Path) -> Iterator[PollFactory]:
    """`poll(server, ...)` polls a real server as ts01, or several given as a dict; settings as of `write_inventory`.

    `redis_url`: another Redis than the one that all tests share.
    """
    with ExitStack() as stack:

        def start(
            servers: RealX2GoServer | dict[str, RealX2GoServer], *, redis_url: str = valkey_url, **settings: Any
        ) -> PolledFleet:
            named = servers if isinstance(servers, dict) else {"ts01": servers}
            inventory = write_inventory(tmp_path, named, login_key.private_path, **settings)
            return stack.enter_context(PolledFleet(inventory, redis_url, namespace))

        yield start


@pytest.fixture
def ssh(login_key: LoginKey, tmp_path: Path) -> Ssh:
    """`ssh(server, command, user="root")` with the host key checked and no configuration of this machine."""

    def run(
        server: RealX2GoServer, command: str, *, user: str = "root", known_hosts_line: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        known_hosts = tmp_path / f"known_hosts-{server.port}"
        known_hosts.write_text(f"{known_hosts_line or server.known_hosts_line}\n")
        trust = ["-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known_hosts}"]
        login = ["-i", str(login_key.private_path), "-p", str(server.port), "-l", user]
        return subprocess.run(
            [*SSH, *trust, *login, server.host, command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=check,
            timeout=60,
        )

    return run
