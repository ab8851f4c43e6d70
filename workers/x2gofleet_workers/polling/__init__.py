"""Polling: one target's polls: ask over the probe, prove, store or confirm, record what failed.

Two lanes share a target's connection, each with a probe of its own: the quick one (sessions, load) owns the
connection, the slow one (mounts, desktops) can't delay it.
"""

from x2gofleet_workers.polling.context import NotOwnerError
from x2gofleet_workers.polling.lanes import QUICK_KINDS, SLOW_KINDS
from x2gofleet_workers.polling.poller import TargetPoller
from x2gofleet_workers.polling.reports import Counters, PollReport

__all__ = ["QUICK_KINDS", "SLOW_KINDS", "Counters", "NotOwnerError", "PollReport", "TargetPoller"]
