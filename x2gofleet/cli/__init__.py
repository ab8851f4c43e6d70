"""The command ``x2gofleet``: what the shared cache says, for people and scripts."""

from __future__ import annotations

from x2gofleet.cli.app import main

__all__ = ["main"]
