"""``python -m x2gofleet_workers``: the command ``x2gofleet-worker``."""

import sys

from x2gofleet_entry import worker as main

if __name__ == "__main__":
    sys.exit(main())
