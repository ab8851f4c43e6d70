"""Follows the sessions of a profile: a line whenever one starts, changes or ends. Usage: follow.py PROFILE."""

import os
import signal
import sys
import threading

from x2gofleet import CacheUnavailable, FleetCache


def main() -> int:
    profile = sys.argv[1]
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    known: dict[tuple[str, str], str] = {}
    said = ""
    with FleetCache.from_url(os.environ["X2GOFLEET_REDIS_URL"]) as cache:
        while not stop.wait(0.5):
            try:
                sessions = cache.list_sessions(profile_name=profile)
                state = "not cached" if sessions is None else f"{len(sessions.rows)} session(s)"
            except CacheUnavailable as exc:
                sessions, state = None, f"Redis can't be asked: {exc}"
            if sessions is not None:
                now = {(row.server, row.name): row.status for row in sessions.rows}
                for server, name in sorted(known.keys() | now.keys()):
                    before, after = known.get((server, name)), now.get((server, name))
                    if before != after:
                        print(f"{server}  {name}  {before or '-'} -> {after or '-'}", flush=True)
                known = now
            if state != said:
                print(f"{profile}: {state}", flush=True)
                said = state
    return 0


if __name__ == "__main__":
    sys.exit(main())
