"""text: harmless texts, cell widths, ages for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2gofleet.cli.text import cell_width, clean, counted, duration, fold, iso


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alice", "alice"),
        ("a\x1b[31mb", "a\ufffd[31mb"),
        ("a\x9b31mb", "a\ufffd31mb"),
        ("a\nb\tc\rd", "a b c d"),
        ("a\x00b\x7fc", "a\ufffdb\ufffdc"),
        ("a\u202eb\u200bc\ufeffd", "a\ufffdb\ufffdc\ufffdd"),
        ("a\u2028b", "a\ufffdb"),
        (b"a\xffb".decode("utf-8", "surrogateescape"), "a\ufffdb"),
        ("Jürgen 山田", "Jürgen 山田"),
    ],
)
def test_nothing_that_a_terminal_obeys_is_left(text: str, expected: str) -> None:
    assert clean(text) == expected


@given(st.text())
def test_a_clean_text_can_be_printed_and_stays_clean(text: str) -> None:
    cleaned = clean(text)
    assert all(char.isprintable() or char.isspace() for char in cleaned)
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in cleaned)
    assert clean(cleaned) == cleaned
    cleaned.encode()


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
