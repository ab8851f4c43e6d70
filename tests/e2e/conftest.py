"""Fixtures of the tests on real X2Go servers; skipped where those can't run, failed where CI demands them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from .realserver import RealX2GoServer, create_empty_database, missing_requirements

ServerFactory = Callable[..., RealX2GoServer]


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
    lacking = missing_requirements()
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
