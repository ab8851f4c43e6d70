"""``python -m x2gofleet_workers``: the command ``x2gofleet-worker``."""

import sys

from x2gofleet_workers.cli import main

sys.exit(main())
