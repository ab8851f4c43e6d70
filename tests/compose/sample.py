"""Runs in the client's container, sent there by run.py: asks the cache as a broker does, 20 times a second.

Prints a JSON line whenever the answer's shape or the owners change, all sessions for each line of its input, and a
summary at the input's end. Arguments: PROFILE SESSIONS SERVERS, the numbers that make an answer complete. After the
first complete answer every one that is not complete is a gap.
"""

import json
import os
import queue
import sys
import threading
import time
from typing import Any

from x2gofleet import CacheUnavailable, FleetCache


def ask(cache: FleetCache, profile: str) -> tuple[dict[str, Any], float, list[list[str]]]:
    """Return what the answer looks like, its age in seconds, and its sessions."""
    try:
        sessions = cache.list_sessions(profile_name=profile)
        owners = {status.id: status.owner for status in cache.servers()}
        polled_by = {
            snapshot.server: snapshot.worker for snapshot in cache.snapshots(profile_name=profile, kind="sessions")
        }
    except CacheUnavailable as exc:
        return {"state": f"unavailable: {exc}", "sessions": 0, "servers": 0, "owners": {}, "polled_by": {}}, 0.0, []
    if sessions is None:
        return {"state": "not cached", "sessions": 0, "servers": 0, "owners": owners, "polled_by": polled_by}, 0.0, []
    seen = {
        "state": "missing " + ", ".join(sessions.missing_servers) if sessions.missing_servers else "cached",
        "sessions": len(sessions.rows),
        "servers": len({row.server for row in sessions.rows}),
        "owners": owners,
        "polled_by": polled_by,
    }
    rows = [[row.server, row.name, row.username, row.status] for row in sessions.rows]
    return seen, sessions.oldest_age or 0.0, rows


def read_input(lines: "queue.Queue[str]") -> None:
    for line in sys.stdin:
        lines.put(line)
    lines.put("")


def tell(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


def main() -> None:
    profile, wanted_sessions, wanted_servers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=read_input, args=(lines,), daemon=True).start()
    last: dict[str, Any] = {}
    samples = gaps = 0
    oldest = longest_pause = oldest_at = 0.0
    was_complete, before = False, time.monotonic()
    with FleetCache.from_url(os.environ["X2GOFLEET_REDIS_URL"]) as cache:
        while True:
            seen, age, rows = ask(cache, profile)
            now = time.monotonic()
            complete = seen["state"] == "cached" and seen["sessions"] == wanted_sessions
            complete = complete and seen["servers"] == wanted_servers
            if was_complete:
                samples += 1
                gaps += not complete
                longest_pause = max(longest_pause, now - before)
                if age > oldest:
                    oldest, oldest_at = age, time.time()
            before = now
            was_complete = was_complete or complete
            if seen != last:
                tell({"at": time.time(), "complete": complete, **seen})
                last = seen
            try:
                if not lines.get(timeout=0.05):
                    break
                tell({"rows": rows})
            except queue.Empty:
                pass
    summary = {"samples": samples, "gaps": gaps, "oldest": round(oldest, 2), "oldest_at": oldest_at}
    tell({"summary": {**summary, "longest_pause": round(longest_pause, 2)}})


main()
