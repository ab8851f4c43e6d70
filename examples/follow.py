"""Follows the sessions of a profile: a line whenever one starts, changes, ends or becomes unknown.

Usage: follow.py PROFILE
"""

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
                state = "unknown: not cached" if sessions is None else f"{len(sessions.rows)} session(s)"
                if sessions is not None and sessions.missing_servers:
                    state += f", unknown on {', '.join(sessions.missing_servers)}"
            except CacheUnavailable as exc:
                sessions, state = None, f"Redis can't be asked: {exc}"
            if sessions is not None:
                # A server that is down has not ended its sessions: they are unknown until it is polled again.
                now = {key: "unknown" for key in known if key[0] in sessions.missing_servers}
                now |= {(row.server, row.name): row.status for row in sessions.rows}
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
