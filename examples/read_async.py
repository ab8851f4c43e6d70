import asyncio
import os

from x2gofleet import AsyncFleetCache


async def main() -> None:
    async with AsyncFleetCache.from_url(os.environ["X2GOFLEET_REDIS_URL"]) as cache:
        users = ["alice", "bob"]
        answers = await asyncio.gather(*(cache.find_sessions(username=user) for user in users))
        for user, sessions in zip(users, answers, strict=True):
            if sessions is None:
                print(user, "unknown: the fleet is not cached")
            else:
                found = [f"{session.status} on {session.server}" for session in sessions.values()]
                print(user, found, "unknown on:", sessions.missing_servers)


asyncio.run(main())
