"""Words: any value comes back, and nothing else is taken for words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x2gofleet_workers.probe.words import MAX_WORDS, decode_words, encode_words, name_of, number_of, text_of

from x2gofleet.errors import NotProven

KEYS = tuple(f"key_{chr(97 + index)}" for index in range(MAX_WORDS))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), st.binary(max_size=20), min_size=1))
def test_any_bytes_come_back(pairs: dict[str, bytes]) -> None:
    payload = encode_words(pairs.items())
    assert decode_words(payload, "a test", KEYS) == pairs
    assert payload.isascii()
    assert b"\n" not in payload


def test_words_as_they_are_sent() -> None:
    pairs: list[tuple[str, str | int | bytes]] = [("a", "é x%"), ("b", 7), ("c", b""), ("d", b"\xff=")]
    assert encode_words(pairs) == b"a=%C3%A9%20x%25 b=7 c= d=%FF%3D"


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_words_or_not_proven(payload: bytes) -> None:
    try:
        found = decode_words(payload, "a test", KEYS)
    except NotProven:
        return
    assert decode_words(encode_words(found.items()), "a test", KEYS) == found


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", r"got a word that is not \(word 1\)"),
        (b" key_a=1", r"\(word 1\)"),
        (b"key_a=1 ", r"\(word 2\)"),
        (b"key_a=1\n", r"\(word 1\)"),
        (b"key_a", r"\(word 1\)"),
        (b"=1", r"\(word 1\)"),
        (b"KEY=1", r"\(word 1\)"),
        (b"key_a=b=c", r"\(word 1\)"),
        (b"key_a=%", r"\(word 1\)"),
        (b"key_a=%4g", r"\(word 1\)"),
        (b"%6Bey_a=1", r"\(word 1\)"),
        (b"key_a=1 key_a=1", "each word once, got 'key_a' twice"),
        (b"other=1", "words of key_a, .* got 'other'"),
        (b" " * 65536, "at most 16 words, got 65537"),
    ],
)
def test_what_is_not_words_is_not_proven(payload: bytes, text: str) -> None:
    with pytest.raises(NotProven, match=f"^a test: expected.*{text}"):
        decode_words(payload, "a test", KEYS)


def test_values_are_read_as_text_numbers_and_names() -> None:
    words = {"text": b"caf\xc3\xa9 \xff", "number": b"0042", "name": b"ts01"}
    assert text_of(words, "text") == "café \ufffd"
    assert text_of(words, "none") == ""
    assert number_of(words, "number", "a test", most=42) == 42
    assert name_of(words, "name", "a test") == "ts01"


@pytest.mark.parametrize("value", [b"", b"-1", b"+1", b" 1", b"1 ", b"1.0", b"43", b"\xd9\xa1", b"9" * 5000])
def test_what_is_not_a_number_is_not_proven(value: bytes) -> None:
    with pytest.raises(NotProven, match=r"^a test: expected n as a number from 0 to 42, got"):
        number_of({"n": value}, "n", "a test", most=42)
