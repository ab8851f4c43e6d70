"""Every error that x2gofleet raises, in one tree; their texts are clean, whatever they quote.

FleetError
├── CacheUnavailable        Redis can't be asked now: no answer, not "no sessions"
├── SchemaMismatch          a snapshot was written by a newer x2gofleet
├── SnapshotCorrupt         a stored hash is not a snapshot of this schema
├── UnknownProfile          the published inventory has no profile of that name
├── NoServerAvailable       every server of a profile is down or drained
├── RefreshFailed           update() could not get a new snapshot of every server
├── InventoryError          fleet.toml (or an import) can't be used: file, line, key, reason, remedy
└── PollError               one poll of one target failed; nothing of it is stored
    ├── OutageError         passes by itself: retried within seconds
    │   ├── Unreachable     no TCP connection, or no SSH banner
    │   ├── ConnectionLost  the connection ended in the middle of a poll
    │   ├── DeadlineExceeded  the poll's hard deadline passed
    │   ├── LoginEnded      the login ended before the probe started, and did not say why
    │   └── WorkerExhausted  the worker ran out of file descriptors, threads or memory: nothing is known of the server
    ├── SetupError          only an administrator can cause and fix it: retried slowly
    │   ├── HostKeyMismatch the host key is not the known one; no authentication was tried
    │   ├── HostKeyUnknown  known_hosts has no key for the address; no authentication was tried
    │   ├── AuthenticationFailed  the server refused the key
    │   ├── NotPermitted    the login may not list what its scope asks for
    │   ├── CommandMissing  a program that a poll needs is not on the server
    │   ├── HostNameChanged the server has another host name than its sessions, or than fleet.toml says
    │   └── HostNameShared  another server has the same host name on the same PostgreSQL database
    └── ProofError          an answer came that can't be believed
        ├── NotProven       the answer's frame, user or proof is missing or wrong
        └── ListingFailed   the database can't be read, or a command failed or printed an error where rows belong
"""

from enum import StrEnum
from typing import Any

from x2gofleet.text import clean, escaped, shortened


class FleetError(Exception):
    """Base of every error of x2gofleet; its text is one line that any terminal, log or page may show."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(clean(arg) if isinstance(arg, str) else arg for arg in args))

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own would call __init__ with the message alone, which is not what some of these are made of.
        return _unpickled, (type(self), self.args, vars(self))


def _unpickled(cls: type[FleetError], args: tuple[Any, ...], attributes: dict[str, Any]) -> FleetError:
    error = cls.__new__(cls, *args)
    vars(error).update(attributes)
    return error


class Unavailable(StrEnum):
    """Why Redis could not be asked, for programs; docs/redis.md says what each means and how to fix it."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    LOADING = "loading"
    READ_ONLY = "read_only"
    MOVED = "moved"
    OUT_OF_MEMORY = "out_of_memory"
    NO_PERMISSION = "no_permission"
    AUTHENTICATION = "authentication"
    TLS = "tls"
    NO_MASTER = "no_master"
    CLUSTER_DOWN = "cluster_down"
    NAME = "name"
    BREAKER = "breaker"
    OTHER = "other"

    @property
    def is_absence(self) -> bool:
        """Whether it may be that no Redis runs at that address."""
        return self in (Unavailable.UNREACHABLE, Unavailable.TIMEOUT, Unavailable.NAME)


class CacheUnavailable(FleetError):
    """Redis could not be asked; ``reason`` (Unavailable) tells apart why, the text says it to people."""

    def __init__(self, message: str = "", reason: Unavailable = Unavailable.OTHER) -> None:
        super().__init__(message)
        self.reason = reason


class SchemaMismatch(FleetError):
    """A stored snapshot has a schema newer than this library reads; upgrade x2gofleet here."""


class SnapshotCorrupt(FleetError):
    """A stored hash lacks fields of its schema or holds values of a wrong type."""


class UnknownProfile(FleetError, LookupError):
    """No profile of that name is in the published inventory."""

    def __init__(self, profile_name: str, known: tuple[str, ...] = ()) -> None:
        self.profile_name = profile_name
        self.known = known
        listed = ", ".join(known) if known else "none: no worker has published an inventory yet"
        super().__init__(f"unknown profile {profile_name!r}; known profiles: {listed}")


class NoServerAvailable(FleetError):
    """No server of a profile can take a login; ``reasons`` maps server ids to ``down`` or ``drained``."""

    def __init__(self, profile_name: str, reasons: dict[str, str]) -> None:
        self.profile_name, self.reasons = profile_name, dict(reasons)
        detail = ", ".join(f"{server} is {reason}" for server, reason in sorted(self.reasons.items()))
        super().__init__(f"no server of profile {profile_name!r} can take a login: {detail}")


class RefreshFailed(FleetError):
    """At least one server of a profile was not refreshed (or not deleted) as asked.

    ``errors`` maps server ids to a text each; ``partial`` is the tuple of Snapshots that did come.
    """

    def __init__(self, errors: dict[str, str], partial: tuple[Any, ...] = (), *, what: str = "refresh") -> None:
        self.errors = {server: clean(text) for server, text in errors.items()}
        self.partial = partial
        detail = "; ".join(f"{server}: {text}" for server, text in sorted(self.errors.items()))
        super().__init__(f"{what} failed for {len(self.errors)} server(s): {detail}")


class InventoryError(FleetError):
    """An inventory file can't be used; says file, line, key, reason and how to fix it."""

    def __init__(self, path: str, reason: str, *, line: int | None = None, key: str = "", mend: str = "") -> None:
        self.path, self.line, self.key, self.reason, self.mend = path, line, key, reason, mend
        where = path if line is None else f"{path}:{line}"
        shown = f"{shortened(key, 120)}: " if key else ""
        remedy = f". {shortened(mend, 1000)}" if mend else ""
        super().__init__(escaped(f"{where}: {shown}{shortened(reason, 500)}{remedy}"))


class PollError(FleetError):
    """One poll of one target failed; ``mend`` says what an operator can do, where that is known."""

    def __init__(self, message: str, *, mend: str = "") -> None:
        self.message, self.mend = clean(message), clean(mend)
        super().__init__(f"{message}. {mend}" if mend else message)


class OutageError(PollError):
    """A failure that passes by itself: retried within seconds."""


class Unreachable(OutageError):
    """No TCP connection to the server, or no SSH banner from it."""


class ConnectionLost(OutageError):
    """The connection ended in the middle of a poll."""


class DeadlineExceeded(OutageError):
    """The poll's hard deadline passed."""


class LoginEnded(OutageError):
    """The login ended before the probe started, for a reason that it did not name: a full server, a closed shell."""


class WorkerExhausted(OutageError):
    """The worker ran out of file descriptors, threads or memory: a poll could not be made, the server may be well."""


class SetupError(PollError):
    """A failure that only an administrator can cause and fix: retried slowly, because sshd penalizes storms of those.

    Nothing that a user of a polled server does is one.
    """


class HostKeyMismatch(SetupError):
    """The server's host key is not the known one; no authentication was tried."""


class HostKeyUnknown(SetupError):
    """known_hosts has no key for the server's address; no authentication was tried."""


class AuthenticationFailed(SetupError):
    """The server refused the key."""


class NotPermitted(SetupError):
    """The login may not list what its scope asks for."""


class CommandMissing(SetupError):
    """A program that a poll needs is not on the server: x2goserver, perl, a database driver, sudo or the probe."""


class HostNameChanged(SetupError):
    """The server has another host name than its sessions' records, or than fleet.toml says."""


class HostNameShared(SetupError):
    """Two servers of the fleet have one host name on one PostgreSQL database: each would list the other's sessions."""


class ProofError(PollError):
    """An answer came that can't be believed."""


class NotProven(ProofError):
    """The answer's frame, user or proof is missing or wrong."""


class ListingFailed(ProofError):
    """The session database can't be read, or a command failed or printed something else where rows belong."""
