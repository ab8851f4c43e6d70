"""words: how small structured values are written in a frame: ``key=value`` separated by one space each.

Values are percent-encoded but for letters, digits, ``.``, ``_`` and ``-``, so that any byte can be in one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from urllib.parse import unquote_to_bytes

from x2gofleet.errors import NotProven

MAX_WORDS = 16
_REMEMBERED = 8192
_REMEMBERED_BYTES = 256
_SPECIAL = re.compile(rb"[^A-Za-z0-9._-]")
_WORD = re.compile(rb"([a-z_]{1,32})=([A-Za-z0-9._-]*(?:%[0-9A-F]{2}[A-Za-z0-9._-]*)*)")
_NUMBER = re.compile(rb"[0-9]{1,10}")


def encode_words(pairs: Iterable[tuple[str, str | int | bytes]]) -> bytes:
    """Return ``pairs`` of key and value as words, in their order; strings as UTF-8."""
    return b" ".join(b"%b=%b" % (key.encode(), _encoded(value)) for key, value in pairs)


def _encoded(value: str | int | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else str(value).encode()
    if _SPECIAL.search(raw) is None:
        return raw
    return _SPECIAL.sub(lambda found: b"%%%02X" % found[0][0], raw)


def decode_words(payload: bytes, where: str, known: tuple[str, ...]) -> Mapping[str, bytes]:
    """Return the values by key.

    ``where`` says for a message what the words belong to. Raises NotProven for what is not words, for a key that is
    not one of ``known`` and for one that comes twice.
    """
    # The words of an unchanged poll are those of the poll before.
    decode = _decoded_before if len(payload) <= _REMEMBERED_BYTES else _decoded
    return decode(payload, where, known)


def _decoded(payload: bytes, where: str, known: tuple[str, ...]) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    if payload.count(b" ") >= MAX_WORDS:
        raise NotProven(f"{where}: expected at most {MAX_WORDS} words, got {payload.count(b' ') + 1}")
    for number, word in enumerate(payload.split(b" "), 1):
        match = _WORD.fullmatch(word)
        if match is None:
            raise NotProven(f"{where}: expected key=value, percent-encoded, got a word that is not (word {number})")
        key, value = match[1].decode(), match[2]
        if key in found:
            raise NotProven(f"{where}: expected each word once, got {key!r} twice")
        if key not in known:
            raise NotProven(f"{where}: expected words of {', '.join(known)}, got {key!r}")
        found[key] = unquote_to_bytes(value) if b"%" in value else value
    return MappingProxyType(found)


_decoded_before = lru_cache(maxsize=_REMEMBERED)(_decoded)


def text_of(words: Mapping[str, bytes], key: str) -> str:
    """Return a value as text, "" where it is missing; what is not UTF-8 in it is replaced."""
    return words.get(key, b"").decode("utf-8", "replace")


def number_of(words: Mapping[str, bytes], key: str, where: str, *, most: int) -> int:
    """Return a value as a whole number from 0 to ``most``; raises NotProven for another value or none."""
    value = words.get(key)
    if value is None or not _NUMBER.fullmatch(value) or int(value) > most:
        came = "none" if value is None else f"{len(value)} bytes" if len(value) > 32 else repr(value)[1:]
        raise NotProven(f"{where}: expected {key} as a number from 0 to {most}, got {came}")
    return int(value)


def name_of(words: Mapping[str, bytes], key: str, where: str) -> str:
    """Return a value as a name that is compared: not empty, in UTF-8; raises NotProven for another value or none."""
    value = words.get(key, b"")
    try:
        if value:
            return value.decode()
    except UnicodeDecodeError:
        pass
    raise NotProven(f"{where}: expected {key} as a name in UTF-8, got {'other bytes' if value else 'none'}")
