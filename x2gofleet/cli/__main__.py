"""``python -m x2gofleet.cli``."""

from __future__ import annotations

import sys

from x2gofleet.cli.app import main

sys.exit(main())
