"""Keys: every Redis key of x2gofleet and what it holds, in one place (the contract is docs/schema.md).

The braces around a target are a Redis Cluster hash tag: all keys of one target share a slot, so that one script
may touch them together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from x2gofleet import usernames
from x2gofleet.kinds import Kind

_NAMESPACE = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
_SERVER_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")

DEFAULT_NAMESPACE = "x2gofleet"


def is_server_id(text: str) -> bool:
    """Whether ``text`` may name a server: 1 to 64 letters, digits, ``.``, ``_``, ``-``."""
    return _SERVER_ID.match(text) is not None


def target_id(server: str, username: str | None = None) -> str:
    """Return the id of a target: ``ts01``, or ``alice@ts01`` for what belongs to one user, whose name is encoded.

    Raises ValueError for what is not a server id or user name.
    """
    if not is_server_id(server):
        raise ValueError(f"{server!r} is no server id: use letters, digits, '.', '_' and '-'")
    if username is None:
        return server
    usernames.check_username(username)
    return f"{usernames.encode(username)}@{server}"


def check_text(text: str, what: str) -> None:
    """Raise ValueError for what can't be sent to Redis: anything but a text that UTF-8 can encode."""
    try:
        text.encode()
    except (UnicodeEncodeError, AttributeError):
        raise ValueError(f"{text!r} is not a valid {what}: use text without lone surrogates") from None


def server_of(target: str) -> str:
    """Return the server id of a target id."""
    return target.rpartition("@")[2]


def user_of(target: str) -> str | None:
    """Return the user name of a target id, None for a server's own target."""
    return usernames.decode(target.rpartition("@")[0]) or None


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one namespace."""

    namespace: str = DEFAULT_NAMESPACE

    def __post_init__(self) -> None:
        if not _NAMESPACE.match(self.namespace):
            raise ValueError(f"{self.namespace!r} is no namespace: use 1 to 64 letters, digits, '.', '_', ':' and '-'")

    def snapshot(self, target: str, kind: Kind) -> str:
        """Hash: one snapshot; expires at polled_at + ttl."""
        return f"{self.namespace}:{{{target}}}:{kind.value}"

    def state(self, target: str) -> str:
        """Hash: last good and last failed poll of each kind; outlives snapshots."""
        return f"{self.namespace}:{{{target}}}:state"

    def lease(self, target: str) -> str:
        """Hash owner, nonce, fence; expires unless its owner renews it."""
        return f"{self.namespace}:{{{target}}}:lease"

    def fence(self, target: str) -> str:
        """Counter without TTL: orders the owners of a target."""
        return f"{self.namespace}:{{{target}}}:fence"

    def events(self, target: str) -> str:
        """Capped stream: what changed, written by the scripts that store what they saw."""
        return f"{self.namespace}:{{{target}}}:events"

    def workers(self) -> str:
        """Sorted set worker id -> last heartbeat (ms, Redis time)."""
        return f"{self.namespace}:workers"

    def worker(self, worker_id: str) -> str:
        """Hash: what one worker tells of itself; expires unless it is alive."""
        return f"{self.namespace}:worker:{worker_id}"

    def fleet(self) -> str:
        """Hash version, document (JSON): the published inventory."""
        return f"{self.namespace}:fleet"

    def fresh(self) -> str:
        """Hash ``<target>:<kind>`` -> hint (hints.py): what is stored and until when, for mirrors to resync from."""
        return f"{self.namespace}:fresh"

    def hosts(self) -> str:
        """Hash of which host name each server has on which PostgreSQL database, to find two of one name."""
        return f"{self.namespace}:hosts"

    def changes(self) -> str:
        """Capped stream of hints: what has just changed, so that mirrors needn't wait for their next resync."""
        return f"{self.namespace}:changes"

    def uuid(self, session_uuid: str) -> str:
        """Hash profile, username: a registered X2Go session. Raises ValueError for what UTF-8 can't encode."""
        check_text(session_uuid, "session UUID")
        return f"{self.namespace}:uuid:{session_uuid}"

    def refresh_requests(self, worker_id: str) -> str:
        """List of JSON requests (poll now, delete, check) that one worker answers."""
        return f"{self.namespace}:refresh:worker:{worker_id}"

    def refresh_answers(self, request_id: str) -> str:
        """List of JSON answers to one request."""
        return f"{self.namespace}:refresh:answer:{request_id}"

    def reserved(self, server: str) -> str:
        """Sorted set of the users who are being placed on a server, scored by when each reservation expires (ms).

        The braces put all servers' reservations into one slot: one script chooses among them.
        """
        return f"{self.namespace}:reserved:{{servers}}:{server}"
