"""Python begins with this module where its folder is on the path: Ctrl-C comes at the moment that INTERRUPT_AT names.

That is the import of a module, or ``exit``: Python's way out. The file BEGUN is made when the command is imported.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class _Finder:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Find nothing."""
        if name == os.environ.get("INTERRUPT_AT"):
            _interrupt()
        if name == "x2gofleet" and "BEGUN" in os.environ:
            os.close(os.open(os.environ["BEGUN"], os.O_CREAT))


if os.environ.get("INTERRUPT_AT") == "exit":
    atexit.register(_interrupt)
else:
    sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]
