"""Broken texts of fleet.toml: a Fleet, or InventoryError."""

from __future__ import annotations

import random

from x2gofleet_workers.inventory import parse_inventory

from tests.fuzz.decoder import Tally
from tests.fuzz.mutations import mutate
from x2gofleet.errors import InventoryError
from x2gofleet.fleet import PublishedFleet

BASE = b"""\
[defaults]
user = "root"
key_file = "/k"
known_hosts = "/h"
deadline = 20
[intervals]
sessions = 2
[ttls]
load = 60.5
[servers.ts01]
host = "10.0.0.1"
labels = ["mate", "gpu"]
weight = 2.0
[servers.'ts02']
host = "::1"
port = 2222
drain = true
[profiles.mate]
labels = ["mate"]
[profiles."b\\u00fcro"]
servers = ["ts01", "ts02"]
user = "alice"
"""
OTHERS = (BASE, b"[import]\nstrict = true\n", b"a.b = {c = [1, 2e9, 0x1f, 1979-05-27]}\n", b"'''x'''\n\"\"\"y\"\"\"\n")


def fuzz(runs: int, seed: int) -> Tally:
    """Read ``runs`` broken texts."""
    tally, draw = Tally(), random.Random(seed)
    for run in range(runs):
        tally.runs += 1
        text = mutate(BASE, draw, OTHERS).decode("utf-8", "replace")
        try:
            fleet = parse_inventory(text)
        except InventoryError as exc:
            tally.outcomes["refused"] += 1
            tally.refusals[exc.reason[-20:]] += 1
            if not str(exc).isprintable() or not exc.mend:
                tally.fail(f"seed {seed}, run {run}: a message of no use: {str(exc)!r}")
        except Exception as exc:
            tally.fail(f"seed {seed}, run {run}: {type(exc).__name__}: {exc}; text {text!r}")
        else:
            tally.outcomes["read"] += 1
            published = fleet.published()
            if PublishedFleet.from_json(published.to_json(), published.version) != published:
                tally.fail(f"seed {seed}, run {run}: it is not what is published; text {text!r}")
    return tally
