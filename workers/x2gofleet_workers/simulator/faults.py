"""What can be wrong with a simulated server, switched on and off while it runs."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

from x2gofleet_workers.probe.decoding import Begin
from x2gofleet_workers.probe.encoding import encode_begin, encode_done
from x2gofleet_workers.probe.frames import encode_frame
from x2gofleet_workers.probe.requests import SectionKind

_GARBAGE_BYTES = 512


class FaultKind(StrEnum):
    """One way of being broken."""

    HANG = "hang"
    """Accepts TCP and SSH, starts the probe, never answers a poll or a command; polled channels stay stuck."""
    TARPIT = "tarpit"
    """Accepts TCP and never sends a banner; with a number, a byte every so many seconds."""
    GARBAGE = "garbage"
    """Answers with random bytes and broken frames."""
    NOT_SSH = "not-ssh"
    """Speaks HTTP where the SSH banner belongs."""
    EMPTY = "empty"
    """Lists nothing, as a login without the right does; a root login answers as nobody."""
    MOUNTS = "mounts"
    """Cannot read what is mounted; sessions and load are answered."""
    DEAD = "dead"
    """Refuses TCP connections; existing ones break."""
    SLOW = "slow"
    """Takes that many seconds for each answer."""
    AUTH = "auth"
    """Refuses every key."""
    HOSTKEY = "hostkey"
    """Shows another host key than the known one."""


_WITH_SECONDS = {FaultKind.SLOW: True, FaultKind.TARPIT: False}
"""Faults that take seconds, and whether they must."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault and, for slow and tarpit, its seconds."""

    kind: FaultKind
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Return the fault written as ``KIND`` or ``KIND=SECONDS``; ValueError says what is wrong."""
        name, separator, number = text.partition("=")
        try:
            kind = FaultKind(name)
        except ValueError:
            known = ", ".join(kind.value for kind in FaultKind)
            raise ValueError(f"unknown fault {name!r}; known: {known}") from None
        if not separator:
            if _WITH_SECONDS.get(kind, False):
                raise ValueError(f"{kind} needs its seconds, as in {kind}=2")
            return cls(kind)
        if kind not in _WITH_SECONDS:
            raise ValueError(f"{kind} takes no value, got {number!r}")
        try:
            seconds = float(number)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < float("inf"):
            raise ValueError(f"{kind} needs a positive number of seconds, got {number!r}")
        return cls(kind, seconds)

    def __str__(self) -> str:
        return f"{self.kind}={self.seconds:g}" if self.seconds else str(self.kind)


def garbage(number: int, turn: int, draw: random.Random) -> bytes:
    """Return an answer to request ``number`` that must not be believed; ``turn`` chooses one of five ways."""
    noise, other = draw.randbytes(_GARBAGE_BYTES), number ^ 1
    begin = encode_begin(Begin(SectionKind.SESSIONS, "sqlite", "nowhere"), number)
    good_end = b"status=ok records=0 signature=1 source=records"
    done = encode_done(0, "nowhere", number)
    return (
        b"\xff" + noise,
        encode_begin(Begin(SectionKind.SESSIONS, "sqlite", "nowhere"), other)
        + encode_frame("E", other, good_end)
        + encode_done(0, "nowhere", other),
        begin + encode_frame("D", number, b"\x7f" + noise) + encode_frame("E", number, good_end) + done,
        begin + encode_frame("E", number, b"status=ok records=7 signature=1 source=records") + done,
        begin + encode_frame("E", number, b"status=same signature=%x" % draw.getrandbits(64)) + done + done,
    )[turn % 5]
