"""``python -m x2gofleet.cli``."""

from __future__ import annotations

import sys

from x2gofleet_entry import reader

sys.exit(reader())
