r"""qsettings: a value as QSettings, with which X2Go Client writes its files, means it: ``B\xfcro``, ``"a, b"``.

Only what is written by QSettings itself is read: other escapes mean another thing to each of the readers.
"""

from __future__ import annotations

import re

_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]+)|([\\\"]))")
_WITHOUT = "do without it"
_TYPED = re.compile(r"@[A-Za-z]+\(.*\)\Z", re.DOTALL)


class Ambiguous(ValueError):
    """QSettings and python-x2go take a value for different texts: ``reason`` and ``remedy``."""

    def __init__(self, reason: str, remedy: str = _WITHOUT) -> None:
        self.reason, self.remedy = reason, remedy
        super().__init__(f"{reason}. {remedy}")


def decode_value(text: str) -> str:
    """Return what a value means; one without escapes, quotes and ``@`` means what it says.

    Raises Ambiguous.
    """
    body = _unquoted(text)
    if _TYPED.match(body):
        raise Ambiguous("X2Go Client takes it for data of a type")
    if body.startswith("@@"):
        body = body[1:]
    if "\\" not in body:
        return body
    units: list[str] = []
    at = 0
    while (found := body.find("\\", at)) >= 0:
        matched = _ESCAPE.match(body, found)
        if matched is None:
            raise Ambiguous("X2Go Client takes its \\ for an escape", "write \\\\ for a single one")
        units += body[at:found], _character(matched)
        at = matched.end()
    units.append(body[at:])
    try:
        # Characters beyond 16 bits are written as two escapes.
        return "".join(units).encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise Ambiguous("its escapes are no text") from None


def _unquoted(text: str) -> str:
    quotes = len(re.findall(r'(?<!\\)(?:\\\\)*"', text))
    if not quotes:
        if ";" in text:
            raise Ambiguous("X2Go Client takes what follows its ; for a comment", "write it in quotes")
        return text
    if quotes != 2 or len(text) < 2 or text[0] != '"' or text[-1] != '"':
        raise Ambiguous("its quotes don't match, or are not around the whole of it")
    return text[1:-1]


def _character(matched: re.Match[str]) -> str:
    if matched[1] is None:
        return matched[2]
    number = int(matched[1][-8:], 16) if len(matched[1]) <= 8 else 0x110000
    if number > 0xFFFF:
        raise Ambiguous(r"its escape \x is followed by too many digits")
    return chr(number)
