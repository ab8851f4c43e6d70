"""Broken URLs of Redis with a password in them: understood, or ValueError, and no message has four letters of it."""

from __future__ import annotations

import random

from tests.fuzz.decoder import Tally
from tests.fuzz.mutations import mutate
from x2gofleet.connection import redact_url
from x2gofleet.connection.urls import RedisUrl

SECRET = "QZXJqzxj"
BASES = tuple(
    text.encode()
    for text in (
        f"redis://w:{SECRET}@h:6379/0",
        f"rediss://:{SECRET}@[::1]:6380/1?db=2",
        f"redis+sentinel://w:{SECRET}@h1,h2:5/m?sentinel_password={SECRET}",
        f"redis+cluster://w:{SECRET}@h1:7000,[::2]",
        f"unix://w:{SECRET}@/run/x.sock?db=1&password={SECRET}",
    )
)


def fuzz(runs: int, seed: int) -> Tally:
    """Take ``runs`` broken URLs apart."""
    tally, draw = Tally(), random.Random(seed)
    for run in range(runs):
        tally.runs += 1
        url = mutate(draw.choice(BASES), draw, BASES).decode("utf-8", "surrogateescape")
        try:
            RedisUrl.parse(url)
        except ValueError as exc:
            tally.outcomes["refused"] += 1
            tally.refusals[str(exc).partition(": ")[2][:30]] += 1
            said = f"{exc}{exc!r}{redact_url(url)}"
            if any(SECRET[at : at + 4] in said for at in range(len(SECRET) - 3)):
                tally.fail(f"seed {seed}, run {run}: {said!r} of {url!r}")
        except Exception as exc:
            tally.fail(f"seed {seed}, run {run}: {type(exc).__name__}: {exc}; {url!r}")
        else:
            tally.outcomes["understood"] += 1
    return tally
