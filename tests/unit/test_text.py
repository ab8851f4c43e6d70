"""text: what is shown is harmless, whatever it was made of."""

from __future__ import annotations

import io
import json
import logging
import pickle
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.escapes import ESCAPES, obeyed
from x2gofleet.errors import (
    CacheUnavailable,
    FleetError,
    InventoryError,
    NoServerAvailable,
    NotProven,
    RefreshFailed,
    UnknownProfile,
)
from x2gofleet.text import CleanFormatter, clean, escaped, json_text, say, show

EVERY_ESCAPE = pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES)


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
    assert not obeyed(cleaned)
    assert "\n" not in cleaned
    assert clean(cleaned) == cleaned
    cleaned.encode()


@EVERY_ESCAPE
def test_each_way_to_show_is_harmless(escape: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert obeyed(escape) or "\n" in escape
    text = f"a{escape}b"
    for shown in (clean(text), show(text), show(text.encode("utf-8", "surrogatepass")), escaped(text)):
        assert not obeyed(shown)
        assert "\n" not in shown
        assert (shown[0], shown[-1]) == ("a", "b")
    say(text)
    out = capsys.readouterr().out
    assert (out[0], out[-2:], out.count("\n")) == ("a", "b\n", 1)
    assert not obeyed(out)
    document = json_text({"key": text})
    assert not obeyed(document)
    assert "\n" not in document
    assert json.loads(document) == {"key": text}


def test_texts_for_messages_are_short_and_say_that_they_go_on() -> None:
    assert show("a  b\n c") == "a b c"
    assert show(b"a\xffb") == "a\ufffdb"
    assert show("x" * 300) == "x" * 199 + "…"
    assert show("x" * 10, 4) == "xxx…"


@EVERY_ESCAPE
def test_every_error_has_a_harmless_text(escape: str) -> None:
    found: list[FleetError] = [
        FleetError(escape),
        CacheUnavailable(escape),
        UnknownProfile(escape, (escape, "mate")),
        NoServerAvailable(escape, {escape: escape}),
        RefreshFailed({escape: escape}),
        InventoryError(escape, escape, key=escape, mend=escape),
        NotProven(escape, mend=escape),
    ]
    for error in found:
        for each in (error, pickle.loads(pickle.dumps(error))):
            assert not obeyed(str(each))
            assert "\n" not in str(each)
    refused = found[4]
    assert isinstance(refused, RefreshFailed)
    assert not any(map(obeyed, refused.errors.values()))


def logged(formatter: logging.Formatter, escape: str) -> str:
    """Return what is logged of a message, an argument, a traceback and a stack with an escape in each."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    # One that pytest knows nothing of: its reports can't hold a lone surrogate.
    log = logging.Logger("tests")  # noqa: LOG001
    log.addHandler(handler)
    try:
        log.warning("said %s", escape)
        try:
            raise ValueError(f"one {escape}")
        except ValueError as exc:
            raise RuntimeError(f"other {escape}") from exc
    except RuntimeError:
        log.warning("failed", exc_info=sys.exc_info(), stack_info=True)
    return stream.getvalue()


@EVERY_ESCAPE
def test_a_record_is_one_line_and_its_traceback_looks_like_no_record(escape: str) -> None:
    text = logged(CleanFormatter("%(levelname)s %(message)s"), escape)
    assert not obeyed(text)
    records = [line for line in text.splitlines() if not line.startswith(" ")]
    assert len(records) == 2
    assert records[1] == "WARNING failed"
    assert "ValueError: one" in text
    # Without it the same is written as it came.
    assert escape in logged(logging.Formatter("%(levelname)s %(message)s"), escape)
