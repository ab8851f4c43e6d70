"""Debian's pgbouncer in front of a PostgresServer, on loopback, as the owner of the cluster."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from .namespace import PATH, wait_until
from .postgres import PostgresServer, is_listening
from .realserver import free_port

PoolMode = Literal["session", "transaction"]
PROGRAM = "/usr/sbin/pgbouncer"


class PgBouncer:
    """A pgbouncer with one pool for each role; use as a context manager.

    passwords: of the roles that may log in, by name. pool_size: connections of a pool to PostgreSQL. settings: a
    pgbouncer.ini in place of one with these, of which ports and paths are made this one's.
    """

    def __init__(
        self,
        database: PostgresServer,
        passwords: Mapping[str, str],
        *,
        mode: PoolMode = "transaction",
        pool_size: int = 2,
        settings: str = "",
    ) -> None:
        self.host, self.port = "127.0.0.1", free_port()
        self._database, self._passwords, self._mode, self._pool_size = database, dict(passwords), mode, pool_size
        self._settings = settings
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        directory = self._directory = Path(tempfile.mkdtemp(prefix="x2gofleet-pgbouncer-"))
        users = directory / "userlist.txt"
        users.write_text("".join(f'"{role}" "{password}"\n' for role, password in self._passwords.items()))
        settings = directory / "pgbouncer.ini"
        text = self._settings or (
            "[databases]\n"
            "x2go_sessions = host=127.0.0.1 port=5432 dbname=x2go_sessions\n"
            "[pgbouncer]\n"
            f"listen_addr = {self.host}\nlisten_port = 6432\n"
            "auth_type = scram-sha-256\nauth_file = /etc/pgbouncer/userlist.txt\n"
            f"pool_mode = {self._mode}\ndefault_pool_size = {self._pool_size}\n"
        )
        for old, new in (
            ("5432", str(self._database.port)),
            ("listen_port = 6432", f"listen_port = {self.port}\nunix_socket_dir ="),
            ("/etc/pgbouncer/userlist.txt", str(users)),
        ):
            assert old in text
            text = text.replace(old, new)
        settings.write_text(text)
        for path in (directory, users, settings):
            shutil.chown(path, "postgres", "postgres")
        with (directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", PROGRAM, str(settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": PATH},
                cwd="/",
                user="postgres",
                group="postgres",
                extra_groups=[],
            )
        wait_until(lambda: is_listening(self.host, self.port), "pgbouncer to listen", timeout_seconds=60)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=60)
        if self._directory is not None:
            shutil.rmtree(self._directory)
