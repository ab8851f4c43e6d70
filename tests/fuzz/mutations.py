"""Changes of text files, of any kind and at any place."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

_BYTES = b'\0\t\n\v\f\r !"#*,-.0|:=?@[]AZaz\x7f\x80\xbf\xef\xff'
_LONGEST = 300

Mutation = Callable[[bytes, random.Random, Sequence[bytes]], bytes]


def _place(text: bytes, draw: random.Random) -> int:
    return draw.randrange(len(text) + 1)


def _flip(text: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    at = _place(text, draw)
    return text[:at] + bytes([draw.randrange(256)]) + text[at + 1 :]


def _insert(text: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    at = _place(text, draw)
    return text[:at] + bytes([draw.choice(_BYTES)]) * draw.choice((1, 1, 2, 30)) + text[at:]


def _delete(text: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    at = _place(text, draw)
    return text[:at] + text[at + draw.randrange(1, _LONGEST) :]


def _cut(text: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    return text[: _place(text, draw)]


def _repeat(text: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    at = _place(text, draw)
    piece = text[at : at + draw.randrange(1, _LONGEST)]
    return text[:at] + piece * draw.randrange(2, 5) + text[at:]


def _splice(text: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    other = draw.choice(others)
    begin, at = _place(other, draw), _place(text, draw)
    return text[:at] + other[begin : begin + draw.randrange(1, _LONGEST)] + text[at:]


def _swap_lines(text: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    lines = text.split(b"\n")
    draw.shuffle(lines)
    return b"\n".join(lines)


def _drop_line(text: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    lines = text.split(b"\n")
    del lines[draw.randrange(len(lines))]
    return b"\n".join(lines)


MUTATIONS: tuple[Mutation, ...] = (_flip, _flip, _insert, _delete, _cut, _repeat, _splice, _swap_lines, _drop_line)


def mutate(text: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Return ``text`` with one to four changes; pieces of ``others`` come into it."""
    for _ in range(draw.choice((1, 1, 1, 2, 3, 4))):
        text = draw.choice(MUTATIONS)(text, draw, others)
    return text
