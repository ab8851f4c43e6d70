"""faults: the probe's error codes as errors of x2gofleet, with a remedy for each.

What a user of a polled server can cause is never a SetupError: those are retried after up to ten minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from x2gofleet.errors import CommandMissing, DeadlineExceeded, ListingFailed, NotPermitted, NotProven, PollError
from x2gofleet.text import show
from x2gofleet_workers.probe.protocol import Section

_DATABASE = "/var/lib/x2go/x2go_sessions"
_SQL = "/etc/x2go/x2gosql/sql"
_PASSWORD = "/etc/x2go/x2gosql/passwords/x2gopgadmin"


@dataclass(frozen=True, slots=True)
class Fault:
    """What an error code of the probe means: its error class, and what an administrator can do."""

    error: type[PollError]
    remedy: str = ""


FAULTS: Mapping[str, Fault] = {
    "timeout": Fault(DeadlineExceeded),
    "hung": Fault(
        DeadlineExceeded, "see which file system hangs on the server, or restart the server; load figures keep coming"
    ),
    "locked": Fault(ListingFailed, "it passes when the command that holds the lock ends: fuser " + _DATABASE),
    "hot_journal": Fault(
        ListingFailed, "a writer was killed; the next X2Go command that writes repairs it: run x2gocleansessions"
    ),
    "unreadable": Fault(ListingFailed, f"on the server, see that root can read {_DATABASE}"),
    "missing": Fault(ListingFailed, "on the server, create the session database: x2godbadmin --createdb"),
    "malformed": Fault(
        ListingFailed, f"on the server, move {_DATABASE} away and create it again: x2godbadmin --createdb"
    ),
    "schema": Fault(ListingFailed, "on the server, run x2godbadmin --updatedb, or --createdb where there is none"),
    "config": Fault(ListingFailed, f'on the server, correct {_SQL}: a line "backend=sqlite" or "backend=postgres"'),
    "backend": Fault(ListingFailed, f"on the server, set backend=sqlite or backend=postgres in {_SQL}"),
    "driver": Fault(
        CommandMissing, "on the server, install perl's DBI with DBD::SQLite or DBD::Pg (x2goserver needs them too)"
    ),
    "replaced": Fault(ListingFailed, "it passes when nothing replaces the session database any more"),
    "busy": Fault(ListingFailed, 'it passes; without `listing = "command"` in fleet.toml it cannot occur'),
    "command": Fault(ListingFailed),
    "command_missing": Fault(CommandMissing, "install x2goserver on the server, or take it out of the inventory"),
    "too_large": Fault(ListingFailed, "on the server, delete the records that nobody needs"),
    "internal": Fault(NotProven),
    "request": Fault(NotProven, "worker and probe differ: upgrade both to the same version of x2gofleet"),
    "pg_connect": Fault(ListingFailed, f"see that PostgreSQL runs where {_SQL} says, and that the server reaches it"),
    "pg_password": Fault(
        ListingFailed, f"on the server, put the password of x2godbuser into {_PASSWORD}, as on the other servers"
    ),
    "pg_hba": Fault(
        ListingFailed,
        f"let x2godbuser in from this server in pg_hba.conf of PostgreSQL, with TLS as `ssl` in {_SQL} says",
    ),
    "pg_tls": Fault(
        ListingFailed,
        f"see `ssl` in {_SQL}, `ssl` of PostgreSQL, and the CA certificate in /root/.postgresql/root.crt on the server",
    ),
    "pg_limit": Fault(ListingFailed, "raise max_connections of PostgreSQL, or the connection limit of x2godbuser"),
    "pg_database": Fault(ListingFailed, "create the database x2go_sessions: x2godbadmin --createdb"),
    "pg_timeout": Fault(ListingFailed, "see what holds a lock in PostgreSQL: select * from pg_stat_activity"),
    "pg_silent": Fault(
        DeadlineExceeded,
        f"see whether PostgreSQL hangs where {_SQL} says, or a network or proxy in between drops packets",
    ),
    "pg_permission": Fault(
        ListingFailed, "grant x2godbuser SELECT on sessions and mounts, as x2godbadmin --createdb does"
    ),
    "pg_query": Fault(ListingFailed),
}


def error_of_section(section: Section, *, login: str) -> PollError:
    """Return the error that the worker raises for a section that the probe could not answer."""
    error = section.error
    assert error is not None
    if error.code == "not_root":
        return NotPermitted(
            f'{login} may not read the session database ({show(error.text)}); scope "server" needs root\'s rights',
            mend=f"log in as root, let {login} run the probe by sudo or a forced command (docs/servers.md), or set "
            'scope = "user"',
        )
    fault = FAULTS.get(error.code, Fault(NotProven))
    text = show(error.text) or error.code
    said = show(error.stderr)
    return fault.error(f"{text}: {said}" if said and said not in text else text, mend=fault.remedy)
