"""Broken files of session profiles: profiles with hosts and ports, left out with a reason, or InventoryError."""

from __future__ import annotations

import random
import tempfile
from functools import cache
from pathlib import Path

from x2gofleet_workers.importing import READERS, LeftOut, merge

from tests.fuzz.decoder import Tally
from tests.fuzz.mutations import mutate
from tests.support.import_cases import faults, good
from x2gofleet.errors import InventoryError


@cache
def bases() -> tuple[bytes, ...]:
    """Return the files that are broken: those of the tables."""
    return (*(case.text.encode() for case in good()), *(fault.raw for fault in faults()))


def fuzz(runs: int, seed: int) -> Tally:
    """Read and merge ``runs`` broken files."""
    tally, draw = Tally(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profiles"
        for run in range(runs):
            tally.runs += 1
            content = mutate(draw.choice(bases()), draw, bases())
            path.write_bytes(content)
            try:
                _try(draw.choice(tuple(READERS)), str(path), tally)
            except Exception as exc:
                tally.fail(f"seed {seed}, run {run}: {type(exc).__name__}: {exc}; file {content!r}")
    return tally


def _try(source: str, path: str, tally: Tally) -> None:
    left_out: list[LeftOut] = []
    try:
        profiles = READERS[source](path, left_out)
    except InventoryError as exc:
        tally.outcomes["refused"] += 1
        _check(exc)
        return
    merged = merge(profiles, left_out, {}, {}, 22)
    for each in merged.left_out:
        _check(each.error)
        tally.refusals[each.error.mend[:30]] += 1
    for table in merged.servers.values():
        assert table["host"]
        assert 1 <= table["port"] <= 65535
    names = {each.name for each in merged.left_out}
    assert not names & set(merged.profiles), "a profile is used and left out"
    tally.outcomes["left out" if names else "read"] += 1


def _check(error: InventoryError) -> None:
    assert str(error).isprintable()
    assert error.reason
    assert error.mend
