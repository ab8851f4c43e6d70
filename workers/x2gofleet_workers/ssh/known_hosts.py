"""known_hosts: the text of a known_hosts file -> its lines, which of them are of a host, and which can't be read.

By the rules of sshd(8), SSH_KNOWN_HOSTS FILE FORMAT, as ssh applies them; docs/servers.md lists where this differs.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from x2gofleet.text import show
from x2gofleet_workers.ssh.blobs import BadKey, PublicKey, key_from_text, strict_base64

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACE = b" \t"
_HASH_MAGIC = b"|1|"
_HASH_BYTES = 20
_MAX_PATTERN_BYTES = 1022
_FIELD = re.compile(rb"([^ \t]*)[ \t]*")
_WILDCARDS = re.compile(rb"[*?!]")
_SHOWN = 60


class Marker(Enum):
    """What a line says of its key."""

    NONE = ""
    AUTHORITY = "@cert-authority"
    REVOKED = "@revoked"


_MARKERS = {marker.value.encode(): marker for marker in Marker if marker.value}


@dataclass(frozen=True, slots=True)
class Line:
    """A line with a key; ``hosts`` is its field of names, patterns or one hashed name."""

    number: int
    marker: Marker
    hosts: bytes
    key: PublicKey


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is passed over, and why."""

    number: int
    reason: str


class KnownHostsFile:
    """What a known_hosts file says. Finding the lines of a host looks at hashed names and patterns alone."""

    def __init__(self, data: bytes) -> None:
        self.bad: list[BadLine] = []
        self.lines: list[Line] = []
        self._by_name: dict[bytes, list[int]] = {}
        self._patterns: list[tuple[int, Sequence[bytes]]] = []
        self._hashed: list[tuple[int, bytes, bytes]] = []
        for number, text in enumerate(data.removeprefix(_BYTE_ORDER_MARK).split(b"\n"), 1):
            try:
                line = _read_line(number, text)
                if line is not None:
                    self._add(line)
            except BadKey as exc:
                self.bad.append(BadLine(number, str(exc)))

    def lines_of(self, name: str) -> list[Line]:
        """Return the lines of a host, in the order of the file.

        :param name: ``ts01.example.org``, ``[ts01.example.org]:2222`` or an address in the same two forms.
        """
        wanted = name.encode("utf-8", "surrogateescape").lower()
        found = set(self._by_name.get(wanted, ()))
        found.update(index for index, patterns in self._patterns if _matches(wanted, patterns))
        found.update(
            index for index, salt, digest in self._hashed if hmac.compare_digest(_host_hash(salt, wanted), digest)
        )
        return [self.lines[index] for index in sorted(found)]

    def _add(self, line: Line) -> None:
        index = len(self.lines)
        if line.hosts.startswith(b"|"):
            salt, digest = _hashed_name(line.hosts)
            # What is no digest of a name matches none.
            if len(digest) == _HASH_BYTES:
                self._hashed.append((index, salt, digest))
        else:
            names = line.hosts.lower().split(b",")
            if any(len(name) > _MAX_PATTERN_BYTES for name in names):
                raise BadKey(f"one of its host names has more than {_MAX_PATTERN_BYTES} bytes")
            if _WILDCARDS.search(line.hosts):
                self._patterns.append((index, names))
            else:
                for name in dict.fromkeys(names):
                    self._by_name.setdefault(name, []).append(index)
        self.lines.append(line)


def _read_line(number: int, text: bytes) -> Line | None:
    """Return what a line says, None where it is blank or a comment; raises BadKey."""
    # As for ssh, which reads lines as C strings.
    text = text.partition(b"\0")[0].lstrip(_SPACE)
    if not text.strip() or text.startswith(b"#"):
        return None
    marker = Marker.NONE
    while text.startswith(b"@"):
        word, text = _field(text)
        if marker is not Marker.NONE:
            raise BadKey("it has two markers")
        if word not in _MARKERS:
            raise BadKey(f"the marker {_shown(word)} is not known")
        marker = _MARKERS[word]
    hosts, rest = _field(text)
    name, rest = _field(rest)
    if not name.strip() or name.startswith(b"#"):
        raise BadKey("it has a host and no key")
    if name.isdigit():
        raise BadKey("it is a key of SSH version 1, which nothing uses any more")
    if hosts.startswith(b"|"):
        _hashed_name(hosts)
    blob = _field(rest)[0]
    if not blob.strip():
        raise BadKey("the line ends before the key")
    return Line(number, marker, hosts, key_from_text(name, blob))


def _field(text: bytes) -> tuple[bytes, bytes]:
    """Return the field that text begins with, and what comes after the space behind it."""
    found = _FIELD.match(text)
    assert found is not None
    return found[1], text[found.end() :]


def _hashed_name(hosts: bytes) -> tuple[bytes, bytes]:
    """Return salt and digest of a hashed host name, a digest of no length where it is damaged; raises BadKey."""
    salt, separator, digest = hosts.removeprefix(_HASH_MAGIC).partition(b"|")
    try:
        raw = strict_base64(salt) if hosts.startswith(_HASH_MAGIC) and separator else b""
    except BadKey:
        raw = b""
    if len(raw) != _HASH_BYTES:
        raise BadKey("the hashed host name is damaged")
    try:
        return raw, strict_base64(digest)
    except BadKey:
        return raw, b""


def _host_hash(salt: bytes, name: bytes) -> bytes:
    return hmac.digest(salt, name, "sha1")


def _matches(name: bytes, patterns: Sequence[bytes]) -> bool:
    """Whether a name matches one of the patterns and none of those that begin with ``!``."""
    found = False
    for pattern in patterns:
        negated = pattern.startswith(b"!")
        if match_pattern(name, pattern[1:] if negated else pattern):
            if negated:
                return False
            found = True
    return found


def match_pattern(name: bytes, pattern: bytes) -> bool:
    """Whether a pattern with ``*`` and ``?`` fits all of a name; takes at most len(name) * len(pattern) steps."""
    at = in_pattern = 0
    star, resume = -1, 0
    while at < len(name):
        if in_pattern < len(pattern) and pattern[in_pattern] == 0x2A:
            star, resume = in_pattern, at
            in_pattern += 1
        elif in_pattern < len(pattern) and pattern[in_pattern] in (0x3F, name[at]):
            at += 1
            in_pattern += 1
        elif star >= 0:
            resume += 1
            at, in_pattern = resume, star + 1
        else:
            return False
    return not pattern[in_pattern:].strip(b"*")


def _shown(word: bytes) -> str:
    return show(word, _SHOWN)
