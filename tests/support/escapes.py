"""Texts that do something to a terminal, a log or a page that shows them as they are."""

from __future__ import annotations

import re
import unicodedata

ESCAPES: dict[str, str] = {
    "colour": "\x1b[31m",
    "reset": "\x1bc",
    "clear the screen": "\x1b[2J",
    "move the cursor": "\x1b[1;1H",
    "erase the line": "\x1b[2K",
    "a line up": "\x1b[1A",
    "scroll region": "\x1b[1;2r",
    "alternate screen": "\x1b[?1049h",
    "hide the cursor": "\x1b[?25l",
    "device status report, which types an answer": "\x1b[6n",
    "device attributes, which type an answer": "\x1b[c",
    "window title": "\x1b]0;title\x07",
    "hyperlink": "\x1b]8;;http://a.example/\x1b\\",
    "clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "desktop notification": "\x1b]9;hello\x07",
    "DCS": '\x1bP$q"p\x1b\\',
    "privacy message": "\x1b^text\x1b\\",
    "application program command": "\x1b_text\x1b\\",
    "start of string": "\x1bXtext\x1b\\",
    "keypad": "\x1b=",
    "other character set": "\x1b(0",
    "shift out": "\x0e",
    "escape alone": "\x1b",
    "CSI of eight bits": "\x9b31m",
    "OSC of eight bits": "\x9d0;title\x9c",
    "DCS of eight bits": "\x90q\x9c",
    "next line of eight bits": "\x85",
    "NUL": "\x00",
    "bell": "\x07",
    "backspace": "\x08\x08\x08",
    "delete": "\x7f",
    "carriage return": "\r",
    "line feed": "\n",
    "forged record": "\n2026-01-01 00:00:00,000 INFO x2gofleet_workers: worker w1: stopped\n",
    "vertical tab": "\x0b",
    "form feed": "\x0c",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "right-to-left override": "\u202e",
    "isolate": "\u2067",
    "zero-width space": "\u200b",
    "byte order mark": "\ufeff",
    "tag": "\U000e0041",
    "private use": "\ue000",
    "not a character": "\uffff",
    "lone surrogate": "\udc9b",
}
MARK = re.compile(r"<<.*?>>", re.DOTALL)


def marked(escape: str) -> str:
    """Return an escape between marks that can be found in an output."""
    return f"<<{escape}>>"


def obeyed(output: str) -> list[str]:
    """Return what of an output a terminal might obey: anything but printable text, line ends and tabs."""
    return [
        f"U+{ord(char):04X} in {output[max(0, place - 40) : place + 40]!r}"
        for place, char in enumerate(output)
        if char not in "\n\t" and unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    ]
