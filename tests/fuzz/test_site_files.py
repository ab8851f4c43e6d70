"""A part of `make fuzz` in every test run: imports, inventories and URLs."""

from __future__ import annotations

import os
from types import ModuleType

import pytest

from tests.fuzz import imports, inventory, urls

RUNS = int(os.environ.get("FUZZ_RUNS", "300"))


@pytest.mark.parametrize(
    ("module", "outcomes"),
    [
        (imports, {"read", "left out", "refused"}),
        (inventory, {"read", "refused"}),
        (urls, {"understood", "refused"}),
    ],
)
def test_broken_files_raise_what_is_documented(module: ModuleType, outcomes: set[str]) -> None:
    tally = module.fuzz(RUNS, seed=2)
    assert (tally.failures, tally.runs) == ([], RUNS)
    assert set(tally.outcomes) == outcomes
    assert len(tally.refusals) > 5
