"""context: what the parts of one target's polling share: the target, where it is written, who is informed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from x2gofleet.store import Lease, Store
from x2gofleet_workers.hints import Hints
from x2gofleet_workers.inventory import Target
from x2gofleet_workers.metrics import LaneName, Metrics
from x2gofleet_workers.ownership import Ownership
from x2gofleet_workers.polling.host_names import HostNames
from x2gofleet_workers.polling.reference import ReferenceCheck
from x2gofleet_workers.polling.reports import Counters, Progress
from x2gofleet_workers.shortages import Shortages


class NotOwnerError(Exception):
    """This worker does not hold the target's lease."""


class Retries(Protocol):
    """Has a target polled again after a failure, whatever its interval."""

    def retry(self, target: str, lane: LaneName, delay_seconds: float) -> None:
        """Have a lane of a target poll what is due then."""


class Notices(Protocol):
    """Learns that something is new on a target."""

    def noticed(self, target: str) -> None:
        """Have a target's sessions polled soon. Called by the thread of a connection: must not wait."""


class _NoNotices:
    def noticed(self, target: str) -> None:
        """Do nothing: polls come at their intervals alone."""


NO_NOTICES: Notices = _NoNotices()


@dataclass(frozen=True, slots=True, kw_only=True)
class PollContext:
    """One target's polling. ``logins_at_address``: how many targets, this one included, share its address."""

    target: Target
    store: Store
    ownership: Ownership
    retries: Retries
    metrics: Metrics
    hints: Hints
    monotonic: Callable[[], float]
    reference: ReferenceCheck
    host_names: HostNames
    notices: Notices = NO_NOTICES
    shortages: Shortages = field(default_factory=Shortages)
    logins_at_address: int = 1
    counters: Counters = field(default_factory=Counters)
    progress: Progress = field(default_factory=Progress)

    def lease(self) -> Lease:
        """Return the target's lease; raises NotOwnerError."""
        lease = self.ownership.lease(self.target.id)
        if lease is None:
            raise NotOwnerError(self.target.id)
        return lease


@dataclass(frozen=True, slots=True)
class PollMoment:
    """What all writes of one poll share.

    ``started`` is the monotonic time at which its request was sent, ``polled_at_ms`` the same on the clock of Redis.
    """

    lease: Lease
    started: float
    polled_at_ms: int
