"""forks: what must begin anew in a forked child: locks that another thread may have held, connections of the parent.

Prefork servers load an application once and fork their workers from it.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Forked(Protocol):
    """An object that can begin anew."""

    def after_fork(self) -> None:
        """Forget the parent's locks, threads and connections. Runs in the child, before anything else there."""


_known: WeakSet[Forked] = WeakSet()


def begins_anew(each: Forked) -> None:
    """Have ``each.after_fork`` called in every child that is forked from now on."""
    _known.add(each)


def _in_child() -> None:
    for each in list(_known):
        each.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
