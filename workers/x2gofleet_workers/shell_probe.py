"""shell_probe: the conversation with probe.sh on a polled server: requests, framed answers.

Request, one line: ``poll MARK SCOPE TIMEOUT SECTION...``; MARK is random, so that nothing a user wrote into the
session database can look like a frame. Answer: ``MARK begin NAME ATTR=VALUE...``, the raw bytes of a command,
``MARK end NAME STATUS`` for each section (or ``MARK same sessions sig=N``), then ``MARK done uid=N host=NAME``.
What the sections hold is judged in proof.py.
"""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources

from x2gofleet.errors import NotProven
from x2gofleet.kinds import Kind

PROTOCOL_VERSION = "1"
PROBE_NAME = "x2gofleet-probe"
PROBE_LIFE_SECONDS = 7200
MAX_NOISE_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 16 * 1024 * 1024
UNKNOWN_SIGNATURE = "-"
_STATUS = re.compile(rb"[0-9]{1,3}\Z")
_UID = re.compile(r"[0-9]{1,10}\Z")


def probe_text() -> str:
    """Return the script that runs on the polled server."""
    return resources.files("x2gofleet_workers").joinpath("probe.sh").read_text(encoding="utf-8")


def start_command(command: str, *, as_root: bool) -> str:
    """Return what is executed over SSH to start the probe.

    ``command``: ``auto`` sends the script along, ``wrapper`` names it only, for a forced command. ``as_root``: the
    login is another user than root and must become root by sudo.
    """
    if command == "wrapper":
        return PROBE_NAME
    sudo = "sudo -n " if as_root else ""
    return f"exec {sudo}timeout -k 5 {PROBE_LIFE_SECONDS} sh -c {shlex.quote(probe_text())} {PROBE_NAME}"


@dataclass(frozen=True, slots=True)
class Hello:
    """What the probe says of itself when it starts."""

    uid: int
    user: str
    host: str


def parse_hello(line: bytes) -> Hello | None:
    """Return the hello in ``line``, None where it is noise; raise NotProven for another protocol."""
    words = line.decode("utf-8", "replace").split()
    if len(words) != 5 or words[0] != PROBE_NAME:
        return None
    if words[1] != PROTOCOL_VERSION:
        raise NotProven(
            f"the installed probe speaks protocol {words[1]}, this worker {PROTOCOL_VERSION}",
            mend="install the probe of this version: x2gofleet-worker probe",
        )
    attributes = dict(word.partition("=")[::2] for word in words[2:])
    try:
        return Hello(int(attributes["uid"]), attributes["user"], attributes["host"])
    except (KeyError, ValueError):
        raise NotProven("the probe's greeting is incomplete") from None


@dataclass(frozen=True, slots=True)
class Section:
    """One part of an answer: the raw bytes of one kind, or the word that nothing changed."""

    kind: Kind
    attributes: dict[str, str]
    body: bytes = field(repr=False, default=b"")
    status: int = 0
    same: bool = False

    @property
    def signature(self) -> str:
        """Signature id to hand back once the listing is stored, ``-`` where the server can't tell what changed."""
        return self.attributes.get("sig", UNKNOWN_SIGNATURE)


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the probe."""

    scope: str
    sections: tuple[str, ...]
    timeout_seconds: int
    mark: str = field(default_factory=lambda: secrets.token_hex(16))

    def line(self) -> bytes:
        """Return the request as it is sent."""
        return f"poll {self.mark} {self.scope} {self.timeout_seconds} {' '.join(self.sections)}\n".encode()


class Answer:
    """Takes an answer apart as it arrives.

    ``feed`` yields each section when it is complete; after the end mark ``done`` is set, with ``uid`` and ``host``.
    """

    def __init__(self, request: Request) -> None:
        self.mark = request.mark.encode()
        self._waiting = [Kind(section.partition("=")[0]) for section in request.sections]
        self.done = False
        self.uid = -1
        self.host = ""
        self._buffer = b""
        self._begun: tuple[Kind, dict[str, str]] | None = None
        self._searched = 0
        self._received = 0

    def feed(self, data: bytes) -> Iterator[Section]:
        """Take in bytes and yield the sections that they complete; raises NotProven for a broken frame."""
        self._received += len(data)
        if self._received > MAX_ANSWER_BYTES:
            raise NotProven(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        self._buffer += data
        while not self.done:
            section = self._section_end() if self._begun else self._line()
            if section is None:
                return
            if isinstance(section, Section):
                yield section

    def _section_end(self) -> Section | None:
        assert self._begun is not None
        kind, attributes = self._begun
        end = b"\n" + self.mark + b" end " + kind.value.encode() + b" "
        at = self._buffer.find(end, max(0, self._searched - len(end)))
        self._searched = len(self._buffer)
        if at < 0:
            return None
        line_end = self._buffer.find(b"\n", at + len(end))
        if line_end < 0:
            self._searched = at
            return None
        status = self._buffer[at + len(end) : line_end]
        body = self._buffer[:at]
        self._take(line_end + 1)
        self._begun = None
        if not _STATUS.match(status):
            raise NotProven(f"the {kind.value} section ends without an exit status")
        return self._expected(Section(kind, attributes, body, int(status)))

    def _expected(self, section: Section) -> Section:
        if not self._waiting or self._waiting.pop(0) is not section.kind:
            raise NotProven(f"the answer has {section.kind.value} that were not asked for there")
        return section

    def _take(self, length: int) -> None:
        self._buffer = self._buffer[length:]
        self._searched = 0

    def _line(self) -> Section | bool | None:
        at = self._buffer.find(b"\n")
        if at < 0:
            if len(self._buffer) > MAX_NOISE_BYTES:
                raise NotProven("the answer has no frame")
            return None
        words = self._buffer[:at].decode("utf-8", "replace").split(" ")
        self._take(at + 1)
        if words[0] != self.mark.decode() or len(words) < 3:
            raise NotProven("the answer does not begin with the mark of its request")
        attributes = dict(word.partition("=")[::2] for word in words[3:])
        match words[1]:
            case "begin":
                self._begun = (_kind(words[2]), attributes)
            case "same":
                if words[2] != Kind.SESSIONS:
                    raise NotProven("only sessions can be the same as before")
                return self._expected(Section(Kind.SESSIONS, attributes, same=True))
            case "done":
                attributes = dict(word.partition("=")[::2] for word in words[2:])
                if not _UID.match(attributes.get("uid", "")) or "host" not in attributes:
                    raise NotProven("the answer's end does not tell user and host name")
                if self._waiting:
                    raise NotProven(f"the answer lacks the {self._waiting[0].value}")
                self.uid, self.host, self.done = int(attributes["uid"]), attributes["host"], True
            case "error":
                raise NotProven(f"the probe refused the request: {' '.join(words[2:])}")
            case _:
                raise NotProven("the answer has an unknown frame")
        return True


def _kind(text: str) -> Kind:
    try:
        return Kind(text)
    except ValueError:
        raise NotProven("the answer has a section of an unknown kind") from None
