"""Snapshot: one kind's stdout of one target, with its proof, time and fence; to and from a Redis hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from x2gofleet.errors import SchemaMismatch, SnapshotCorrupt
from x2gofleet.keys import server_of, user_of
from x2gofleet.kinds import Kind
from x2gofleet.load import LoadReport
from x2gofleet.model import SessionList
from x2gofleet.parsing import parse_desktops, parse_load, parse_mounts, strip_age
from x2gofleet.redis_values import number
from x2gofleet.rows import Mount

SCHEMA_VERSION = 1


def digest_of(kind: Kind, stdout: bytes) -> str:
    """Return a digest that is equal for two listings of the same content.

    The age column of session rows is left out: it changes at every call.
    """
    stable = strip_age(stdout) if kind is Kind.SESSIONS else stdout
    return hashlib.blake2b(stable, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one command printed on one target at one time.

    Times are milliseconds since the epoch on the clock of Redis. ``polled_at_ms`` is a lower bound of when the server
    was last asked, ``listed_at_ms`` of when the stored text was printed (at most a minute earlier: in between the
    server proved that nothing had changed). ``age`` is in seconds, counted from polled_at at the time of reading.
    """

    target: str
    kind: Kind
    stdout: bytes = field(repr=False)
    exit_status: int
    polled_at_ms: int
    listed_at_ms: int
    duration_ms: int
    digest: str
    changed_at_ms: int
    fence: int
    seq: int
    worker: str
    schema: int = SCHEMA_VERSION
    rejected_rows: int = 0
    age: float = 0.0

    @property
    def server(self) -> str:
        """Id of the server that was asked."""
        return server_of(self.target)

    @property
    def username(self) -> str | None:
        """The one user this snapshot is about, None where it holds all users of the server."""
        return user_of(self.target)

    def sessions(self) -> SessionList:
        """Parse ``stdout`` of kind sessions: every row, finished ones included."""
        self._require(Kind.SESSIONS)
        return SessionList.from_stdout(self.stdout, server=self.server)

    def desktops(self) -> tuple[str, ...]:
        """Parse ``stdout`` of kind desktops: ``user@:display`` each."""
        self._require(Kind.DESKTOPS)
        return parse_desktops(self.stdout)

    def mounts(self) -> tuple[Mount, ...]:
        """Parse ``stdout`` of kind mounts: session name and ``client|path`` each."""
        self._require(Kind.MOUNTS)
        return parse_mounts(self.stdout)[0]

    def load(self) -> LoadReport:
        """Parse ``stdout`` of kind load; raises SnapshotCorrupt where a figure is missing or absurd."""
        self._require(Kind.LOAD)
        try:
            return parse_load(self.stdout)
        except ValueError as exc:
            raise SnapshotCorrupt(f"the load snapshot of {self.target} can't be read: {exc}") from exc

    def _require(self, kind: Kind) -> None:
        if self.kind is not kind:
            raise ValueError(f"this snapshot of {self.target} holds {self.kind.value}, not {kind.value}")

    @classmethod
    def from_hash(cls, target: str, kind: Kind, fields: Mapping[bytes, bytes], *, now_ms: int) -> Snapshot:
        """Decode a Redis hash.

        ``now_ms`` is the time on the clock of Redis at which the hash was read.
        Raises SchemaMismatch for a newer schema and SnapshotCorrupt for anything that is no snapshot.
        """

        def what() -> str:
            return f"the {kind.value} snapshot of {target}"

        def stored(name: bytes) -> int:
            value = fields[name]
            # Each lookup reads eight of them, of each server.
            return int(value) if len(value) < 16 and value.isdigit() else number(value, what())

        try:
            schema = stored(b"schema")
            if schema > SCHEMA_VERSION:
                raise SchemaMismatch(
                    f"{what()} has schema {schema}, this library reads up to {SCHEMA_VERSION}: upgrade x2gofleet here"
                )
            polled_at_ms = stored(b"polled_at")
            return cls(
                target,
                kind,
                fields[b"stdout"],
                stored(b"exit_status"),
                polled_at_ms,
                stored(b"listed_at"),
                stored(b"duration_ms"),
                fields[b"digest"].decode("ascii"),
                stored(b"changed_at"),
                stored(b"fence"),
                stored(b"seq"),
                fields[b"worker"].decode(),
                schema,
                stored(b"rejected_rows"),
                max(0, now_ms - polled_at_ms) / 1000.0,
            )
        except (KeyError, ValueError) as exc:
            raise SnapshotCorrupt(
                f"{what()} can't be read ({type(exc).__name__}: {exc}): "
                "something other than an x2gofleet worker wrote it"
            ) from exc
