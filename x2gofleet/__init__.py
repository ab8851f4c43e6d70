"""x2gofleet: what every X2Go server of a fleet is doing, answered from Redis.

from x2gofleet import FleetCache
with FleetCache.from_url("redis://127.0.0.1:6379/0") as cache:
    cache.list_sessions(profile_name="mate", username="alice")
"""

from x2gofleet.aio import AsyncFleetCache
from x2gofleet.cache import FleetCache
from x2gofleet.errors import (
    CacheUnavailable,
    FleetError,
    NoServerAvailable,
    RefreshFailed,
    SchemaMismatch,
    SnapshotCorrupt,
    UnknownProfile,
)
from x2gofleet.kinds import Kind
from x2gofleet.load import LoadReport
from x2gofleet.lookup import ServerStatus, TargetStatus
from x2gofleet.model import SessionList
from x2gofleet.placement import Candidate, Placement
from x2gofleet.rows import Mount, RejectedRow, SessionInfo
from x2gofleet.snapshot import Snapshot

__all__ = [
    "AsyncFleetCache",
    "CacheUnavailable",
    "Candidate",
    "FleetCache",
    "FleetError",
    "Kind",
    "LoadReport",
    "Mount",
    "NoServerAvailable",
    "Placement",
    "RefreshFailed",
    "RejectedRow",
    "SchemaMismatch",
    "ServerStatus",
    "SessionInfo",
    "SessionList",
    "Snapshot",
    "SnapshotCorrupt",
    "TargetStatus",
    "UnknownProfile",
]
