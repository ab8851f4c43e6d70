"""text: cell widths, ages for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2gofleet.cli.text import cell_width, counted, duration, fold, iso


def test_widths_are_those_of_terminals() -> None:
    assert cell_width("abc") == 3
    assert cell_width("山田") == 4
    assert cell_width("e\u0301") == 1


@given(st.text(), st.integers(2, 12))
def test_folding_loses_nothing_and_keeps_the_width(text: str, width: int) -> None:
    pieces = list(fold(text, width))
    assert "".join(pieces) == text
    assert pieces
    assert all(cell_width(piece) <= width for piece in pieces)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "-"),
        (0, "0.0 s"),
        (1.24, "1.2 s"),
        (9.96, "10 s"),
        (99.4, "99 s"),
        (100, "2 min"),
        (3600, "60 min"),
        (7200, "2 h"),
        (86400 * 2, "2 d"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float | None, expected: str) -> None:
    assert duration(seconds) == expected


def test_times_are_iso_utc_with_ms() -> None:
    assert iso(1763845797123) == "2025-11-22T21:09:57.123Z"
    assert iso(None) is None


def test_counted() -> None:
    assert [counted(number, "server") for number in (0, 1, 2)] == ["0 servers", "1 server", "2 servers"]
