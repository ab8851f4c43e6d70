"""Python begins with this module where its folder is on the path: no thread starts while the file NO_THREADS exists.

What the kernel refuses by RLIMIT_NPROC or pids.max looks the same to a program; root is bound by neither.
"""

from __future__ import annotations

import os
import threading
from typing import Any

_start = threading._start_new_thread  # type: ignore[attr-defined]


def _start_unless_forbidden(*arguments: Any) -> int:
    if os.path.exists(os.environ["NO_THREADS"]):
        raise RuntimeError("can't start new thread")
    started: int = _start(*arguments)
    return started


threading._start_new_thread = _start_unless_forbidden  # type: ignore[attr-defined]
