"""reference: when a target's records are compared with X2Go's own query, and what follows from a difference."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from x2gofleet.errors import ListingFailed
from x2gofleet_workers.inventory import Target
from x2gofleet_workers.probe.reference import Agreement, Comparison

COMPARE_SECONDS = 600.0
COMPARE_AGAIN_SECONDS = 60.0
MAX_DIFFERENCES = 3

log = logging.getLogger(__name__)


class ReferenceCheck:
    """The comparisons of one target: one for each new probe, then one every ten minutes.

    Three differences in a row over unchanged records fail the target until a comparison is equal again. What cannot
    be compared is no difference.
    """

    def __init__(self, target: Target, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._target, self._monotonic = target, monotonic
        self._applies = target.scope == "server" and target.listing == "records"
        self._due_at = monotonic()
        self._differences = 0
        self._records_digest = ""
        self._difference = ""

    def new_probe(self) -> None:
        """Note that a probe was started: a comparison is due."""
        self._due_at = self._monotonic()

    def is_due(self) -> bool:
        """Whether a comparison is to be made now."""
        return self._applies and self._monotonic() >= self._due_at

    def failed(self) -> None:
        """Note that no comparison could be made."""
        self._due_at = self._monotonic() + COMPARE_AGAIN_SECONDS

    def compared(self, comparison: Comparison) -> None:
        """Note what a comparison came to."""
        match comparison.agreement:
            case Agreement.EQUAL:
                self._differences, self._difference = 0, ""
                self._due_at = self._monotonic() + COMPARE_SECONDS
            case Agreement.INCONCLUSIVE:
                self.failed()
            case Agreement.DIFFERS:
                self._differs(comparison)

    def _differs(self, comparison: Comparison) -> None:
        if comparison.records_digest != self._records_digest:
            self._differences = 0
        self._records_digest = comparison.records_digest
        self._differences += 1
        self._due_at = self._monotonic()
        log.warning(
            "%s: the session records and X2Go's own query differ (%d of %d): %s",
            self._target.id,
            self._differences,
            MAX_DIFFERENCES,
            comparison.text,
        )
        if self._differences >= MAX_DIFFERENCES:
            self._difference = comparison.text
            self._due_at = self._monotonic() + COMPARE_AGAIN_SECONDS

    def require_agreement(self) -> None:
        """Raise ListingFailed where the records are known to be read differently from X2Go's own query."""
        if self._difference:
            raise ListingFailed(
                f"the session records and X2Go's own query differ: {self._difference}",
                mend=f'set `listing = "command"` for the server {self._target.server} in fleet.toml, and report this '
                "difference to the developers of x2gofleet",
            )
