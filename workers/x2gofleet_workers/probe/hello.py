"""hello: the first line of a probe: which protocol it speaks, as whom it runs, on which host.

``x2gofleet-probe 2 uid=N user=NAME host=NAME``; before it comes whatever login shells print.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from x2gofleet.errors import NotProven
from x2gofleet_workers.probe.words import decode_words, encode_words, name_of, number_of, text_of

PROTOCOL_VERSION = 2
PROBE_NAME = "x2gofleet-probe"
MAX_NOISE_BYTES = 64 * 1024
MAX_UID = 0xFFFFFFFF
# Nothing but words behind the version: a greeting in prose is noise, that of any protocol is not.
_HELLO = re.compile(rb"x2gofleet-probe ([0-9]{1,9}) (uid=.*|[a-z_]+=\S*(?: [a-z_]+=\S*)*)", re.DOTALL)
_WORDS = ("uid", "user", "host")


@dataclass(frozen=True, slots=True)
class Hello:
    """What a probe says of itself when it starts: as whom it runs, and the host's name."""

    uid: int
    user: str
    host: str

    def encode(self) -> bytes:
        """Return the hello as it is sent, with the newline before it that ends what a shell may have printed."""
        words = encode_words((("uid", self.uid), ("user", self.user), ("host", self.host)))
        return b"\n%b %d %b\n" % (PROBE_NAME.encode(), PROTOCOL_VERSION, words)


def parse_hello(line: bytes) -> Hello | None:
    """Return the hello in ``line`` (without its newline), None where the line is something else.

    Raises NotProven for a hello of another protocol, which says which side to upgrade, and for a malformed one.
    """
    found = _HELLO.fullmatch(line)
    if found is None:
        return None
    version = int(found[1])
    if version != PROTOCOL_VERSION:
        raise NotProven(
            f"the probe on the server speaks protocol {version}, this worker speaks protocol {PROTOCOL_VERSION}",
            mend=_upgrade(version),
        )
    where = "the probe's hello"
    words = decode_words(found[2], where, _WORDS)
    if "user" not in words:
        raise NotProven(f"{where}: expected the words uid, user and host, got no user")
    uid = number_of(words, "uid", where, most=MAX_UID)
    return Hello(uid, text_of(words, "user"), name_of(words, "host", where))


def _upgrade(version: int) -> str:
    if version > PROTOCOL_VERSION:
        return (
            "the probe is newer: upgrade x2gofleet on this worker's machine, or install the probe of this version "
            "on the server (x2gofleet-worker probe prints it)"
        )
    return (
        "the probe is older: install the probe of this version on the server (x2gofleet-worker probe prints it); "
        "only an installed probe can be older, one that is sent along never is"
    )


class HelloDecoder:
    """Finds the hello in what a login prints; each byte is looked at once.

    After ``feed`` has returned the hello, ``rest`` has the bytes that came behind it.
    """

    def __init__(self) -> None:
        self.rest = b""
        self._line = bytearray()
        self._noise_bytes = 0
        self._start = b""

    @property
    def noise(self) -> bytes:
        """The beginning of what came before the hello, for a message."""
        return self._start

    def feed(self, data: bytes) -> Hello | None:
        """Take in bytes; return the hello once it has come, None before. Raises NotProven."""
        if len(self._start) < _NOISE_KEPT_BYTES:
            self._start += data[: _NOISE_KEPT_BYTES - len(self._start)]
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            self._line += memoryview(data)[at:end]
            hello = parse_hello(bytes(self._line))
            self._line = bytearray()
            self._count(end + 1 - at, hello)
            at = end + 1
            if hello is not None:
                self.rest = data[at:]
                return hello
        self._line += memoryview(data)[at:]
        self._count(len(data) - at, None)
        return None

    def _count(self, length: int, hello: Hello | None) -> None:
        self._noise_bytes += length
        if hello is None and self._noise_bytes > MAX_NOISE_BYTES:
            raise NotProven(f"expected the probe's hello within {MAX_NOISE_BYTES} bytes, got other lines alone")


_NOISE_KEPT_BYTES = 4096
