"""sections: the parts of an answer, typed: what the probe says around the data of each, and the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from x2gofleet_workers.probe.records import MountRecord, Record
from x2gofleet_workers.probe.requests import NO_SIGNATURE, Listing, SectionKind

MORE_FIELDS = 16
FEWER_FIELDS = 14


class ErrorCode(StrEnum):
    """Why the probe could not answer a section, or refused a request; a closed set."""

    TIMEOUT = "timeout"
    LOCKED = "locked"
    HOT_JOURNAL = "hot_journal"
    UNREADABLE = "unreadable"
    MISSING = "missing"
    MALFORMED = "malformed"
    SCHEMA = "schema"
    CONFIG = "config"
    BACKEND = "backend"
    DRIVER = "driver"
    REPLACED = "replaced"
    NOT_ROOT = "not_root"
    COMMAND = "command"
    COMMAND_MISSING = "command_missing"
    TOO_LARGE = "too_large"
    BUSY = "busy"
    HUNG = "hung"
    INTERNAL = "internal"
    REQUEST = "request"
    PG_CONNECT = "pg_connect"
    PG_PASSWORD = "pg_password"
    PG_HBA = "pg_hba"
    PG_TLS = "pg_tls"
    PG_LIMIT = "pg_limit"
    PG_DATABASE = "pg_database"
    PG_TIMEOUT = "pg_timeout"
    PG_SILENT = "pg_silent"
    PG_PERMISSION = "pg_permission"
    PG_QUERY = "pg_query"


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What PostgreSQL says of itself, "" or None where it does not.

    ``identity``: the same for every address of one database, and on a standby that took over. ``address``: host and
    port as the server has them. ``connections``: how many can be open at once, without the ``reserved`` ones.
    ``role_limit``: how many x2godbuser may have, None for any number. ``tls``: the version of TLS, "" without it.
    """

    identity: str = ""
    address: str = ""
    connections: int | None = None
    reserved: int = 0
    role_limit: int | None = None
    tls: str = ""


NO_FACTS = DatabaseFacts()


class SectionStatus(StrEnum):
    """How a section ended: with data, with the word that the listing is the same as before, or with an error."""

    OK = "ok"
    SAME = "same"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SectionError:
    """Why a section has no data; the texts come from the server and are cleaned where they are shown."""

    code: ErrorCode
    text: str = ""
    exit_status: int | None = None
    stderr: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section of an answer.

    ``user`` (desktops): whose were requested, "" for the probe's own user. ``backend``, ``host``, ``fields``: the
    kind of database, the host name by which records were chosen, how many fields a row of X2Go's listing has there.
    ``signature``: to be handed back with the next request, ``-`` for none. ``source``: what the rows are made from.
    ``others``: number of records of other hosts, counted where there are none of this one; ``other_hosts``: some of
    their names. ``left_out``: number of records that the probe did not send, as one database user has made too many.
    ``exit_status`` and ``stderr``: those of a command. ``database`` (sessions on PostgreSQL): what it says of itself.

    The data are ``records`` (sessions in server scope, reference), ``mounts`` (mounts in server scope) or ``stdout``;
    ``lines`` are the raw lines of X2Go's own listing beside the records.
    """

    kind: SectionKind
    status: SectionStatus = SectionStatus.OK
    user: str = ""
    backend: str = ""
    host: str = ""
    fields: int = MORE_FIELDS
    database: DatabaseFacts = NO_FACTS
    signature: str = NO_SIGNATURE
    source: Listing = Listing.RECORDS
    others: int = 0
    other_hosts: tuple[str, ...] = ()
    left_out: int = 0
    exit_status: int | None = None
    stderr: str = ""
    records: tuple[Record, ...] = field(default=(), repr=False)
    mounts: tuple[MountRecord, ...] = field(default=(), repr=False)
    stdout: bytes = field(default=b"", repr=False)
    lines: bytes = field(default=b"", repr=False)
    error: SectionError | None = None

    @property
    def same(self) -> bool:
        """Whether the listing is the one whose signature was in the request."""
        return self.status is SectionStatus.SAME
