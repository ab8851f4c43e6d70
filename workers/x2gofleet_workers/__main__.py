"""``python -m x2gofleet_workers``: the command ``x2gofleet-worker``."""

import sys

from x2gofleet.extras import how_to_install


def main() -> int:
    """Run the command. Exit status 1 where what it needs more than a reader is not installed."""
    try:
        from x2gofleet_workers.cli import main as run
    except ModuleNotFoundError as exc:
        needs = f"a worker needs more than a reader: {how_to_install('worker')}"
        print(f"x2gofleet-worker: {exc}; {needs}", file=sys.stderr)
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
