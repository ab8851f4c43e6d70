"""ini: an INI file as Python's configparser reads it, but for its faults: each is a fault of its section alone.

Case is kept and nothing is interpolated. It is read here and not by configparser, which gives up a whole file for one
line, and differs between versions of Python. A test reads the same files with both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn

from x2gofleet.errors import InventoryError
from x2gofleet.files import UnusableFile, read_text_file

DEFAULT = "DEFAULT"
TRUE, FALSE = ("1", "yes", "true", "on"), ("0", "no", "false", "off")

_SHOWN_CHARACTERS = 80


@dataclass(slots=True)
class Value:
    """The lines of a value, stripped, each with its number in the file; all but the first were indented."""

    lines: list[tuple[int, str]]

    @property
    def line(self) -> int:
        return self.lines[0][0]

    @property
    def text(self) -> str:
        return "\n".join(text for _, text in self.lines).rstrip()


@dataclass(slots=True)
class Section:
    """A section: its name, its line, its keys, and the first thing that makes it doubtful."""

    name: str
    line: int
    values: dict[str, Value] = field(default_factory=dict)
    fault: InventoryError | None = None


class IniFile:
    """The sections of an INI file, with the line of each key. Raises InventoryError for what concerns all of them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.defaults = Section(DEFAULT, 0)
        self.sections: dict[str, Section] = {}
        try:
            # Bytes that are no UTF-8 are a fault of the section whose value has them.
            text = read_text_file(path, errors="surrogateescape")
        except UnusableFile as exc:
            remedy = "correct [import] in the inventory, or put the file there" if exc.missing else exc.remedy
            raise InventoryError(path, exc.reason, line=exc.line, mend=remedy) from None
        self._parse(text.split("\n"))
        if self.defaults.fault is not None:
            raise self.defaults.fault

    def get(self, section: Section, key: str) -> str | None:
        """Return a value, [DEFAULT] counted in; None where there is none."""
        value = section.values.get(key) or self.defaults.values.get(key)
        return None if value is None else value.text

    def keys(self, section: Section) -> list[str]:
        """Return the keys of a section and of [DEFAULT]."""
        return list(dict.fromkeys((*section.values, *self.defaults.values)))

    def line(self, section: Section, key: str) -> int:
        """Return the line of a key of a section, else that of the key in [DEFAULT], else of the section."""
        value = section.values.get(key) or self.defaults.values.get(key)
        return value.line if value is not None else max(section.line, 1)

    def flag(self, section: Section, key: str) -> bool:
        """Return a boolean value, False where there is none."""
        value = (self.get(section, key) or "0").casefold()
        if value not in (*TRUE, *FALSE):
            self.fail(section, key, f"{quoted(value)} is neither true nor false", "write true or false")
        return value in TRUE

    def check_continuations(self, section: Section, single: tuple[str, ...], known: tuple[str, ...]) -> None:
        """Refuse indented lines that look like a key of ``known`` or a section, or that are more of a ``single``."""
        looks = re.compile(rf"(?:\[.*\]|(?:{'|'.join(map(re.escape, known))})\s*[=:].*)\Z")
        for key in self.keys(section):
            value = section.values.get(key) or self.defaults.values[key]
            for number, text in value.lines[1:]:
                if (text and key in single) or looks.match(text):
                    reason = f"{quoted(text)} is indented, and so is taken for more of {key}"
                    self.fail(section, key, reason, "begin the line without a space", line=number)

    def fail(self, section: Section, key: str, reason: str, remedy: str, *, line: int | None = None) -> NoReturn:
        where = f"[{section.name}] {key}".strip()
        raise InventoryError(self.path, reason, line=line or self.line(section, key), key=where, mend=remedy)

    def _parse(self, lines: list[str]) -> None:
        section: Section | None = None
        value: Value | None = None
        indent = 0
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if not text:
                if value is not None:
                    value.lines.append((number, ""))
                continue
            if text.startswith(("#", ";")):
                continue
            margin = len(line) - len(line.lstrip())
            if value is not None and margin > indent:
                value.lines.append((number, text))
                continue
            indent, value = margin, None
            header = re.match(r"\[(.+)\]", text)
            if header:
                section = self._open(header[1], number)
            elif section is None:
                reason, remedy = "there is no [section] before it", "begin a profile: [id]"
                raise InventoryError(self.path, reason, line=number, mend=remedy)
            else:
                value = self._key(section, text, number)

    def _open(self, name: str, number: int) -> Section:
        if name == DEFAULT:
            self.defaults.line = self.defaults.line or number
            return self.defaults
        if name not in self.sections:
            section = self.sections[name] = Section(name, number)
            if name != name.strip() or not name.strip() or not name.isprintable():
                reason = f"{quoted(name)} is no name for a section"
                self._fault(
                    section, number, f"[{name}]", reason, "write it in printable characters, without spaces around it"
                )
            return section
        self._fault(self.sections[name], number, f"[{name}]", "the section is in the file twice", "make them one")
        # Its keys belong to a section that is not used.
        return Section(name, number)

    def _key(self, section: Section, text: str, number: int) -> Value | None:
        key, delimiter, rest = _split(text)
        if not delimiter or not key:
            reason, remedy = "it is neither [section] nor key=value", "correct it, or make it a comment by a #"
            self._fault(section, number, f"[{section.name}]", reason, remedy)
            return None
        if key in section.values:
            reason = "the key is in its section twice"
            self._fault(section, number, f"[{section.name}] {key}", reason, "take one out")
            return Value([(number, rest)])
        value = section.values[key] = Value([(number, rest)])
        return value

    def _fault(self, section: Section, line: int, key: str, reason: str, remedy: str) -> None:
        section.fault = section.fault or InventoryError(self.path, reason, line=line, key=key, mend=remedy)


def _split(text: str) -> tuple[str, str, str]:
    """Split a line at its first ``=`` or ``:``."""
    at = min((place for place in (text.find("="), text.find(":")) if place >= 0), default=-1)
    return (text, "", "") if at < 0 else (text[:at].rstrip(), text[at], text[at + 1 :].strip())


def quoted(text: str) -> str:
    """Return a text for a message: short, whatever it is."""
    shown = repr(text[: _SHOWN_CHARACTERS + 1])
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[: _SHOWN_CHARACTERS - 1] + "…"
