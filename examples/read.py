import os

from x2gofleet import FleetCache

with FleetCache.from_url(os.environ["X2GOFLEET_REDIS_URL"]) as cache:
    print(cache.is_cached("mate", cache_type="sessions"), cache.is_cached("no-such-profile"))
    sessions = cache.list_sessions(profile_name="mate", username="alice")
    if sessions is None:
        print("alice's sessions are unknown: profile mate is not cached")
    else:
        for session in sessions.values():
            print(session.name, session.status, "on", session.server)
        print("asked", round(sessions.oldest_age, 1), "s ago; unknown on:", sessions.missing_servers)
    print(cache.list_mounts(profile_name="mate", username="alice"))
    loads = cache.load("mate")
    print(loads and {server: load.load_factor for server, load in loads.items()})
