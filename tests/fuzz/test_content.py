"""A part of `make fuzz` in every test run: content of Redis."""

from __future__ import annotations

import os

import pytest

from tests.fuzz.__main__ import FUZZERS
from tests.fuzz.content import CASES, fuzz_case

RUNS = int(os.environ.get("FUZZ_RUNS", "500"))


@pytest.mark.parametrize("name", CASES)
def test_broken_content_raises_what_is_documented(name: str) -> None:
    tally = fuzz_case(name, RUNS, seed=3)
    assert (tally.failures, tally.runs) == ([], RUNS)
    refusing = bool(CASES[name].refuses)
    assert set(tally.outcomes) == ({"read", "refused"} if refusing else {"read"})
    assert bool(tally.refusals) == refusing


@pytest.mark.parametrize("name", CASES)
def test_content_as_it_is_written_is_read(name: str) -> None:
    for base in CASES[name].bases if name not in ("snapshot", "cursors") else ():
        CASES[name].read(base)


def test_each_decoder_is_fuzzed_at_length() -> None:
    assert CASES.keys() <= FUZZERS.keys()
