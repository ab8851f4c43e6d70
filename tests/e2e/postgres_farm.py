"""A farm of real X2Go servers that share one PostgreSQL, set up as an administrator does: by x2godbadmin."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from .namespace import PATH
from .postgres import SUPERUSER, PostgresServer, programs
from .realserver import RealX2GoServer

SQL_CONFIG = "/etc/x2go/x2gosql/sql"
ADMIN_ROLE = "x2godbuser"
ADMIN_PASSWORD_FILE = "/etc/x2go/x2gosql/passwords/x2gopgadmin"
_SUPERUSER_PASSWORD_FILE = "/etc/x2go/x2gosql/passwords/pgadmin"

SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]


def missing_postgres() -> str:
    """What this machine lacks for a farm on PostgreSQL, in one line with the fix; empty when nothing."""
    lacking = []
    if programs() is None:
        lacking.append("postgresql")
    if shutil.which("pwgen", path=PATH) is None:
        lacking.append("pwgen")
    if not Path("/usr/sbin/pgbouncer").exists():
        lacking.append("pgbouncer")
    if subprocess.run(["perl", "-MDBD::Pg", "-e1"], capture_output=True, check=False).returncode != 0:
        lacking.append("libdbd-pg-perl")
    return f"not installed: {', '.join(lacking)}; run tests/e2e/setup.sh" if lacking else ""


def role_of(user: str) -> str:
    """The database role of an X2Go user; PostgreSQL cuts it at 63 bytes."""
    return f"x2gouser_{user}"


class PostgresFarm:
    """X2Go servers by id, all on the session database of `database`.

    servers: running ones; their SQL configuration is overwritten, and their users get a role and a password file.
    users: who that is. telekinesis: whether listings have 16 fields instead of 14.
    Sessions are made, suspended and ended by X2Go's own commands, run as their user.
    """

    def __init__(
        self,
        database: PostgresServer,
        servers: Mapping[str, RealX2GoServer],
        *,
        users: tuple[str, ...],
        telekinesis: bool = False,
        ssl: SslMode = "prefer",
    ) -> None:
        self.database = database
        self.servers = dict(servers)
        self._displays = itertools.count(50)
        for server in self.servers.values():
            configure_postgres(server, database.host, database.port, ssl=ssl)
            self.set_telekinesis(server, telekinesis)
        self._first.path(_SUPERUSER_PASSWORD_FILE).write_text(f"{database.superuser_password}\n")
        self._first.run(["x2godbadmin", "--createdb"])
        for server in self.servers.values():
            self.set_admin_password_file(server, self.admin_password)
        for user in users:
            self.add_database_user(user)

    @property
    def _first(self) -> RealX2GoServer:
        return next(iter(self.servers.values()))

    @property
    def admin_password(self) -> str:
        """The password of `x2godbuser` as x2godbadmin wrote it on the first server."""
        return self._first.path(ADMIN_PASSWORD_FILE).read_text().strip()

    @staticmethod
    def set_admin_password_file(server: RealX2GoServer, password: str | None) -> None:
        """Write root's password file of one server; None removes it."""
        file = server.path(ADMIN_PASSWORD_FILE)
        if password is None:
            file.unlink()
            return
        file.touch(mode=0o600)
        file.write_text(password)

    @staticmethod
    def set_telekinesis(server: RealX2GoServer, enabled: bool) -> None:
        """Switch telekinesis on or off in one server's x2goserver.conf."""
        file = server.path("/etc/x2go/x2goserver.conf")
        word = "yes" if enabled else "no"
        settings, number = re.subn(
            r"(?ms)(^\[telekinesis\]\n(?:#[^\n]*\n)*enable=)\w+", rf"\g<1>{word}", file.read_text()
        )
        assert number == 1
        file.write_text(settings)

    def add_database_user(self, user: str) -> None:
        """Give a user a database role by `x2godbadmin --adduser`, and each server's home of theirs the password."""
        self._first.run(["x2godbadmin", "--adduser", user])
        file = f"/home/{user}/.x2go/pgsqlpass"
        password = self._first.path(file).read_text()
        owner = self._first.path(f"/home/{user}").stat().st_uid
        for server in list(self.servers.values())[1:]:
            folder = server.path(f"/home/{user}/.x2go")
            folder.mkdir(mode=0o700, exist_ok=True)
            own = server.path(file)
            own.touch(mode=0o600)
            own.write_text(password)
            for path in (folder, own):
                os.chown(path, owner, owner)

    def create_session(self, server: str, user: str, *, display: int | None = None, **how: Any) -> str:
        """Make a session of `user` on a server; returns its name.

        display: the next that no session of the farm has, when None. how: as of `RealX2GoServer.insert_session`.
        """
        number = next(self._displays) if display is None else display
        return self.servers[server].insert_session(user, number, **how)

    def shadow_session(self, server: str, owner: str, requester: str, *, shadowed: int = 50, full: bool = True) -> str:
        """As `RealX2GoServer.shadow_session`, with a display that no session of the farm has."""
        return self.servers[server].shadow_session(owner, requester, next(self._displays), shadowed=shadowed, full=full)

    def suspend_session(self, server: str, user: str, session: str) -> None:
        """Record a session as suspended, as X2Go does when its client disconnects."""
        self.servers[server].change_status(user, session, "S")

    def resume_session(self, server: str, user: str, session: str) -> None:
        """Record a session as running."""
        self.servers[server].change_status(user, session, "R")

    def finish_session(self, server: str, user: str, session: str) -> None:
        """End a session's agent and record it as finished; X2Go's next listing on that server deletes the row."""
        self.servers[server].stop_agent(session)
        self.servers[server].change_status(user, session, "F")

    def delete_session(self, session: str) -> None:
        """Delete a session's row, as X2Go's root does: its rules stop every other role, superusers included."""
        for table in ("mounts", "sessions"):
            self.sql(f"delete from {table} where session_id = $1", session, role=ADMIN_ROLE)

    def insert_mount(self, server: str, user: str, session: str, client: str, path: str) -> None:
        """Record a shared folder as x2gomountdirs does; nothing is mounted."""
        self.servers[server].insert_mount(user, session, client, path)

    def sql(self, statement: str, *parameters: object, role: str = SUPERUSER) -> list[tuple[str | None, ...]]:
        """Run one statement on the session database with `$1`, `$2` ..., as any role (`role_of(user)`)."""
        return self.database.sql(statement, parameters, role=role)

    def session_names(self, server: str) -> set[str]:
        """The sessions that the database has of a server, by its present host name."""
        rows = self.sql("select session_id from sessions where server = $1", self.servers[server].hostname)
        return {str(row[0]) for row in rows}


def configure_postgres(server: RealX2GoServer, host: str, port: int, *, ssl: SslMode = "prefer") -> None:
    """Write a server's SQL configuration for PostgreSQL, in the layout of the package's own file."""
    server.path(SQL_CONFIG).write_text(
        "# postgres or sqlite or mysql\nbackend=postgres\n\n"
        f"[postgres]\nhost={host}\nport={port}\n# database admin\ndbadmin={SUPERUSER}\nssl={ssl}\n"
    )


def listing(server: RealX2GoServer) -> bytes:
    """What x2golistsessions_root prints on a server now."""
    return server.run(["x2golistsessions_root"]).stdout
