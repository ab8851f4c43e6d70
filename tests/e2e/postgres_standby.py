"""A standby of a PostgresServer, and a proxy on loopback that is switched from one server to another."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Self

from .namespace import PATH
from .postgres import PostgresError, PostgresServer, program


class PostgresStandby(PostgresServer):
    """A hot standby that streams from `primary`, until it is promoted; use as a context manager."""

    def __init__(self, primary: PostgresServer) -> None:
        super().__init__()
        self._primary = primary

    def __enter__(self) -> Self:
        directory = self._directory = Path(tempfile.mkdtemp(prefix="x2gofleet-standby-"))
        shutil.chown(directory, "postgres", "postgres")
        source = f"host={self._primary.directory} port={self._primary.port} user=postgres"
        done = subprocess.run(
            [program("pg_basebackup"), "-D", self.data, "-d", source, "-R", "-X", "stream", "-c", "fast", "--no-sync"],
            capture_output=True,
            check=False,
            cwd="/",
            env={"PATH": PATH, "LC_ALL": "C.UTF-8"},
            user="postgres",
            group="postgres",
            extra_groups=[],
        )
        if done.returncode != 0:
            raise PostgresError(f"pg_basebackup failed: {done.stderr.decode(errors='replace').strip()}")
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(f"unix_socket_directories = '{directory}'\n")
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def promote(self) -> None:
        """Make it a primary; returns when it is one."""
        (done,) = self.sql("select pg_promote()")
        assert done == ("t",)


class SwitchedProxy:
    """Passes connections at 127.0.0.1:`port` on to a port that can be changed; use as a context manager."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(60)
        for end in self._open:
            end.close()

    def switch(self, port: int) -> None:
        """Pass new connections on to another port; open ones stay where they are."""
        self._target = port

    def cut(self) -> None:
        """End every connection."""
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _run(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=30)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            self._open += (client, server)
            self._run(_pass, client, server)
            self._run(_pass, server, client)


def _pass(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
