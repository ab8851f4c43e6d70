"""Polling: one target's polls: ask over the probe, prove, store or confirm, record what failed.

Two lanes share a target's connection. The quick one owns it and keeps a resident probe: sessions and load, of a server
as a whole also mounts. The slow one starts a probe for each poll of what X2Go's commands take long for.
"""

from x2gofleet_workers.polling.context import NotOwnerError
from x2gofleet_workers.polling.poller import TargetPoller
from x2gofleet_workers.polling.reports import Counters, PollReport
from x2gofleet_workers.polling.sections import quick_kinds, slow_kinds

__all__ = ["Counters", "NotOwnerError", "PollReport", "TargetPoller", "quick_kinds", "slow_kinds"]
