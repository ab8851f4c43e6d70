"""The probe as it was before its mark left the arguments and its empty listings were counted.

Tests of safety run their harness against it too, to show that the harness finds the faults that it looks for.
"""

from __future__ import annotations

import re
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.e2e.realserver import RealX2GoServer

_TIMEOUT_SECONDS = 9


@dataclass(frozen=True, slots=True)
class EarlierListing:
    """What a worker of that time would have stored of one poll: session names, or None where the poll failed."""

    names: frozenset[str] | None
    mark: str


class EarlierProbe:
    """That probe.sh, run as root on a real server; use as a context manager."""

    def __init__(self, server: RealX2GoServer) -> None:
        script = Path(__file__).with_name("probe.sh").read_text()
        self._process = subprocess.Popen(
            server.namespace.enter(["sh", "-c", script, "x2gofleet-probe"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=server.namespace.login_environment("root"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate(timeout=60)

    def poll(self) -> EarlierListing:
        """Request all users' sessions once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        mark = secrets.token_hex(16)
        self._process.stdin.write(f"poll {mark} server {_TIMEOUT_SECONDS} sessions=-\n".encode())
        self._process.stdin.flush()
        answer = b""
        for line in self._process.stdout:
            answer += line
            if line.startswith(f"{mark} done ".encode()):
                break
        return EarlierListing(_believed(answer, mark.encode()), mark)


def _believed(answer: bytes, mark: bytes) -> frozenset[str] | None:
    """As proof.py did: on SQLite a row counts where a record has its name, else every row of an exit status 0 does."""
    section = re.search(
        rb"^%b begin sessions backend=(\w+)[^\n]*\n(.*?)\n%b end sessions (\d+)$" % (mark, mark),
        answer,
        re.DOTALL | re.MULTILINE,
    )
    if section is None or section[3] != b"0":
        return None
    listing, records = section[2], None
    if section[1] == b"sqlite":
        _, _, rest = section[2].partition(mark + b" listing\n")
        listing, found, after = rest.partition(b"\n" + mark + b" listed 0\n")
        if not found:
            return None
        records = {bytes.fromhex(name.decode()) for name in re.findall(rb"^%b rec (\w+)\|" % mark, after, re.MULTILINE)}
    names = {line.split(b"|")[1] for line in listing.splitlines() if line.count(b"|") in (13, 15)}
    if listing.strip() and not names:
        return None
    return frozenset(name.decode() for name in (names if records is None else names & records))
