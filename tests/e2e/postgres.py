"""A PostgreSQL of the tests' own from Debian's programs: a cluster in a temporary folder, and its faults on demand."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Self

from .namespace import PATH, wait_until
from .postgres_wire import PostgresConnection, PostgresError, Row
from .realserver import free_port

DATABASE = "x2go_sessions"
SUPERUSER = "postgres"
# The role of the connections that fill the server: one that may connect, and nothing else.
CROWD = "crowd"
_EMPTY_DATABASE = "postgres"

# A superuser can always connect: these slots are kept for it.
_RESERVED_CONNECTIONS = 3

# PostgreSQL refuses to run as root.
_OWNER = "postgres"

_LIBRARY = Path("/usr/lib/postgresql")

# Ends the server when this process ends, however that comes: its standard input ends then. SIGCONT, for a frozen one.
_KEEP = 'setpriv --pdeathsig QUIT "$@" & pid=$!; cat >/dev/null; kill -INT $pid; kill -CONT $pid; wait $pid'

# For connections, or on a standby for read-only ones.
_READY = "database system is ready to accept "
_NO_PORT = "could not create any TCP/IP sockets"

ShutdownMode = Literal["smart", "fast", "immediate"]
_SHUTDOWN_SIGNALS: dict[ShutdownMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


def programs() -> Path | None:
    """The folder of the newest installed PostgreSQL server's programs; None where there is none."""
    found = [path.parent for path in _LIBRARY.glob("*/bin/initdb")]
    return max(found, key=lambda path: float(path.parent.name), default=None)


class PostgresServer:
    """One PostgreSQL at 127.0.0.1:`port`, owned by an ordinary user; use as a context manager.

    max_connections: how many connections it takes, of which ordinary roles get three fewer. Roles log in by
    scram-sha-256 at `port`; tests come in without a password, as any role, over a Unix socket that only root and the
    owner can reach.
    """

    def __init__(self, *, max_connections: int = 40) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.superuser_password = "superuser-of-the-tests"
        self._max_connections = max_connections
        self._directory: Path | None = None
        self._keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._create_cluster()
            self.start()
            self.sql(f"create role {CROWD} login", database=_EMPTY_DATABASE)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server, where it runs, and remove its files."""
        if self.is_running():
            self.stop("immediate")
        if self._directory is not None:
            shutil.rmtree(self._directory)
            self._directory = None

    @property
    def directory(self) -> Path:
        if self._directory is None:
            raise PostgresError("this PostgreSQL has no cluster; use it as a context manager")
        return self._directory

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def is_running(self) -> bool:
        return self._keeper is not None

    def log(self) -> str:
        """Everything that the server has logged, each connection included."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start the server on the port that it had before, or on a free one; returns when it takes connections."""
        for _ in range(20):
            port = self.port or free_port()
            before = len(self.log())
            self._keeper = self._spawn(port)

            def said(text: str) -> bool:
                return text in self.log()[before:]  # noqa: B023

            try:
                wait_until(lambda: said(_READY) or said(_NO_PORT), f"port {port}", timeout_seconds=60)
            except TimeoutError as exc:
                raise PostgresError(f"PostgreSQL does not start: {self.log()[before:][-2000:]}") from exc
            if said(_READY):
                self.port = port
                return
            self.stop()
            if self.port:
                break
        raise PostgresError(f"PostgreSQL does not start: {self.log()[-2000:]}")

    def stop(self, mode: ShutdownMode = "fast") -> None:
        """Stop the server, by its pid; returns when no process of it is left."""
        keeper = self._keeper
        if keeper is None:
            raise PostgresError("PostgreSQL is not running")
        assert keeper.stdin is not None
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            pid = self.pid
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, _SHUTDOWN_SIGNALS[mode])
            wait_until(lambda: _is_gone(pid), "PostgreSQL to stop", timeout_seconds=60)
        keeper.stdin.close()
        keeper.wait(timeout=60)
        self._keeper = None

    def restart(self, mode: ShutdownMode = "fast") -> None:
        """Stop and start on the same port; open connections are cut unless mode is `smart`."""
        self.stop(mode)
        self.start()

    @contextlib.contextmanager
    def stopped(self, mode: ShutdownMode = "fast") -> Iterator[None]:
        """While this lasts the port refuses connections."""
        self.stop(mode)
        try:
            yield
        finally:
            self.start()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """While this lasts the kernel takes connections at the port, and nobody answers them."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def connect(
        self,
        role: str = SUPERUSER,
        database: str = DATABASE,
        *,
        application_name: str = "tests",
        timeout_seconds: float = 30.0,
    ) -> PostgresConnection:
        """Connect as any role, past its password; its rights and limits hold."""
        return PostgresConnection(
            self.directory / f".s.PGSQL.{self.port}",
            role=role,
            database=database,
            application_name=application_name,
            timeout_seconds=timeout_seconds,
        )

    def sql(
        self, statement: str, parameters: Sequence[object] = (), *, role: str = SUPERUSER, database: str = DATABASE
    ) -> list[Row]:
        """Run one statement as `role` (with `$1`, `$2` ...) on a connection of its own; returns its rows as text."""
        with self.connect(role, database) as connection:
            return connection.query(statement, parameters)

    def configure(self, setting: str, value: object) -> None:
        """Set a server setting by ALTER SYSTEM; most hold for new connections at once, some after `restart`."""
        with self.connect() as connection:
            connection.query(f"alter system set {setting} = {literal(value)}")
            connection.query("select pg_reload_conf()")

    def enable_tls(self) -> str:
        """Have the server take TLS too, with a certificate of its own, which is its own CA; returns that."""
        key, certificate = self.data / "server.key", self.data / "server.crt"
        name = ["-subj", f"/CN={self.host}", "-addext", f"subjectAltName=IP:{self.host}"]
        files = ["-keyout", str(key), "-out", str(certificate)]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *name, *files]
        subprocess.run(command, capture_output=True, check=True)
        key.chmod(0o600)
        for path in (key, certificate):
            shutil.chown(path, _OWNER, _OWNER)
        self.configure("ssl", "on")
        return certificate.read_text()

    def set_password(self, role: str, password: str) -> None:
        """Change a role's password; open connections stay."""
        self.sql(f"alter role {identifier(role)} password {literal(password)}")

    def set_connection_limit(self, role: str, limit: int) -> None:
        """Let a role open that many connections at a time, -1 for any number; open ones stay."""
        self.sql(f"alter role {identifier(role)} connection limit {limit}")

    @contextlib.contextmanager
    def toggled_connection_limit(self, role: str, *, seconds: float = 0.4) -> Iterator[None]:
        """While this lasts the role may connect and may not in turn, each for a random time up to `seconds`."""

        def toggle(end: threading.Event) -> None:
            with self.connect() as connection:
                while not end.is_set():
                    for limit in (0, -1):
                        connection.query(f"alter role {identifier(role)} connection limit {limit}")
                        end.wait(random.uniform(0, seconds))
                connection.query(f"alter role {identifier(role)} connection limit -1")

        with _in_background(toggle):
            yield

    @contextlib.contextmanager
    def all_connections_taken(self) -> Iterator[None]:
        """While this lasts every connection that ordinary roles may open is taken, also one that is freed later."""
        full = threading.Event()

        def take(end: threading.Event) -> None:
            with contextlib.ExitStack() as taken:
                while not end.is_set():
                    try:
                        taken.enter_context(self.connect(CROWD, _EMPTY_DATABASE))
                    except PostgresError:
                        full.set()
                        end.wait(0.05)

        with _in_background(take):
            wait_until(full.is_set, "PostgreSQL to refuse a connection")
            yield

    @contextlib.contextmanager
    def login_storm(self, *, seconds: float = 0.4) -> Iterator[None]:
        """While this lasts more clients than max_connections come and go; each stays a random time up to `seconds`."""

        def come_and_go(end: threading.Event) -> None:
            while not end.is_set():
                with contextlib.suppress(PostgresError, OSError), self.connect(CROWD, _EMPTY_DATABASE):
                    end.wait(random.uniform(0, seconds))
                end.wait(random.uniform(0, seconds / 8))

        with contextlib.ExitStack() as clients:
            for _ in range(self._max_connections + 5):
                clients.enter_context(_in_background(come_and_go))
            yield

    @contextlib.contextmanager
    def locked_table(self, table: str = "sessions", mode: str = "access exclusive") -> Iterator[PostgresConnection]:
        """While this lasts a transaction holds the lock; yields its connection."""
        with self.connect(application_name="locker") as connection:
            connection.query("begin")
            connection.query(f"lock table {identifier(table)} in {mode} mode")
            yield connection

    def backends(self, role: str) -> list[tuple[str, str, str]]:
        """Every connection of a role now: its application name, state, and what it waits on ("" for nothing)."""
        found = self.sql(
            "select application_name, coalesce(state, ''), coalesce(wait_event_type, '') from pg_stat_activity"
            " where usename = $1 order by pid",
            (role,),
        )
        return [(row[0] or "", row[1] or "", row[2] or "") for row in found]

    def end_backends(self, role: str) -> None:
        """Cut every connection that a role has now."""
        self.sql("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = $1", (role,))

    @contextlib.contextmanager
    def cut_connections(self, role: str, *, seconds: float = 0.2) -> Iterator[None]:
        """While this lasts every connection of the role is cut again and again, after random times up to `seconds`."""

        def cut(end: threading.Event) -> None:
            with self.connect() as connection:
                while not end.wait(random.uniform(0, seconds)):
                    connection.query(
                        "select pg_terminate_backend(pid) from pg_stat_activity where usename = $1", (role,)
                    )

        with _in_background(cut):
            yield

    def _create_cluster(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="x2gofleet-postgres-"))
        self._directory = directory
        shutil.chown(directory, _OWNER, _OWNER)
        password = directory / "password"
        password.write_text(f"{self.superuser_password}\n")
        password.chmod(0o644)
        how = ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}", "--no-sync"]
        done = subprocess.run(
            [program("initdb"), "-D", self.data, "-U", SUPERUSER, "-E", "UTF8", "--locale=C.UTF-8", *how],
            capture_output=True,
            check=False,
            cwd="/",
            env={"PATH": PATH, "LC_ALL": "C.UTF-8"},
            user=_OWNER,
            group=_OWNER,
            extra_groups=[],
        )
        password.unlink()
        if done.returncode != 0:
            raise PostgresError(f"initdb failed: {done.stderr.decode(errors='replace').strip()}")
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"listen_addresses = '{self.host}'\n"
                f"unix_socket_directories = '{directory}'\n"
                f"max_connections = {self._max_connections}\n"
                f"superuser_reserved_connections = {_RESERVED_CONNECTIONS}\n"
                "shared_buffers = 16MB\n"
                "fsync = off\n"
                "log_connections = on\n"
                "log_line_prefix = '%m [%p] %u %a '\n"
            )

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                ["sh", "-c", _KEEP, "keep", str(program("postgres")), "-D", str(self.data), "-p", str(port)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={"PATH": PATH, "LC_ALL": "C.UTF-8", "TZ": "UTC"},
                cwd="/",
                user=_OWNER,
                group=_OWNER,
                extra_groups=[],
            )


@contextlib.contextmanager
def _in_background(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `work(end)` on a thread until the block ends; an exception of it is raised there."""
    end = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work, end)
        try:
            yield
        finally:
            end.set()
        done.result()


def is_listening(host: str, port: int) -> bool:
    """Whether something takes connections there."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def literal(value: object) -> str:
    """SQL for a text constant, where PostgreSQL takes no parameter."""
    text = str(value).replace("'", "''")
    return f"'{text}'"


def identifier(name: str) -> str:
    """SQL for a name of a role or table."""
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def program(name: str) -> Path:
    """The path of one of the newest PostgreSQL's programs."""
    found = programs()
    if found is None:
        raise PostgresError("postgresql is not installed; run tests/e2e/setup.sh")
    return found / name


def _is_gone(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"
