"""Simulated X2Go servers over real SSH on loopback: what the demo, the tests and the load tests poll.

Importing the package loads nothing but itself, so that `x2gofleet-worker` can offer `simulate` on a machine that has
only the worker; the SSH side is loaded by the first use of one of the names below.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from x2gofleet_workers.simulator.simulation import (
        RunningSimulation,
        ServerHandle,
        Simulation,
        running_simulation,
    )

__all__ = ["RunningSimulation", "ServerHandle", "Simulation", "running_simulation"]


def __getattr__(name: str) -> Any:
    """Load the SSH side on first use; ImportError names the extra to install where asyncssh is missing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.simulation"), name)
