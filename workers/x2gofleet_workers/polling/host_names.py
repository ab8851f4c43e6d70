"""host_names: finds servers of one host name on one PostgreSQL database, each of which would list the other's rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import redis

from x2gofleet.errors import CacheUnavailable, HostNameShared
from x2gofleet.store import HOST_NAME_VALID_MS, Store
from x2gofleet.text import show
from x2gofleet_workers.probe.protocol import Section

AGAIN_SECONDS = 10.0

log = logging.getLogger(__name__)


def host_name_shared(host_name: str, servers: Sequence[str]) -> HostNameShared:
    """Return the error of servers that have one host name on one database."""
    return HostNameShared(
        f"more than one server has the host name {show(host_name, 64)} on the same PostgreSQL database "
        f"({', '.join(servers)}): X2Go lists the sessions of each on the other",
        mend="give each server a host name of its own, or remove one of the two from the inventory where both are the "
        "same machine",
    )


class HostNames:
    """The host name of one server, recorded where the workers of all servers see it.

    It is recorded with each new listing that was proven, and at least every 10 s where the listing stays the same.
    Another server's record counts for 90 s, or for three intervals where that is longer.
    """

    def __init__(
        self, server: str, store: Store, monotonic: Callable[[], float], *, interval_seconds: float = 0.0
    ) -> None:
        self._server, self._store, self._monotonic = server, store, monotonic
        self._valid_ms = max(HOST_NAME_VALID_MS, int(3000 * interval_seconds))
        self._recorded = ("", "")
        self._due_at = -1.0
        self._has_warned = False
        self._error: HostNameShared | None = None

    def require_sole(self, section: Section) -> None:
        """Record the host name and database of a good section of sessions.

        Raises HostNameShared where another server has them too, and CacheUnavailable.
        """
        found = (section.host, section.database.identity)
        if section.error is not None or not found[1]:
            return
        if section.same and self._recorded[0] and found != self._recorded:
            # Another name or database comes with a listing, which is proven.
            self.require_none_known()
            return
        is_recorded = section.same and found == self._recorded and self._monotonic() < self._due_at
        if not is_recorded or self._error is not None:
            others = self._record(*found)
            self._due_at = self._monotonic() + AGAIN_SECONDS
            if others is not None:
                self._recorded = found
                self._error = host_name_shared(section.host, sorted((self._server, *others))) if others else None
        self.require_none_known()

    def require_none_known(self) -> None:
        """Raise HostNameShared where the last listing of sessions did."""
        if self._error is not None:
            raise self._error

    def _record(self, host_name: str, database: str) -> tuple[str, ...] | None:
        """Return the other servers of this name; None where that cannot be told and what was told last holds."""
        try:
            found = self._store.record_host_name(self._server, host_name, database, valid_ms=self._valid_ms)
        except CacheUnavailable as exc:
            # Denied, or not what it should be: that one key must not end the polls of all these servers.
            is_refused = isinstance(exc.__cause__, redis.exceptions.ResponseError)
            if not is_refused and self._recorded != (host_name, database):
                raise
            if not self._has_warned:
                log.warning("%s: two servers of one host name cannot be found: %s", self._server, exc)
            self._has_warned = True
            return () if is_refused else None
        self._has_warned = False
        return found
