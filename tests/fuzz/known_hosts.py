"""Broken known_hosts files: each is read, costs no good line, and what is decided of a key is decided, never raised."""

from __future__ import annotations

import base64
import os
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from x2gofleet_workers.ssh import Endpoint
from x2gofleet_workers.ssh.blobs import BadKey, key_from_blob, wire_mpint, wire_string
from x2gofleet_workers.ssh.certificates import certificate_from_blob
from x2gofleet_workers.ssh.host_keys import KnownHosts

from tests.fuzz.decoder import Tally
from tests.fuzz.mutations import mutate
from x2gofleet.errors import HostKeyMismatch, HostKeyUnknown

_SALT = base64.b64encode(bytes(range(20))).decode()
_DIGEST = base64.b64encode(bytes(range(20, 40))).decode()
# The base point of its curve.
_POINT = bytes.fromhex(
    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)


def _text(blob: bytes) -> str:
    return f"{key_from_blob(blob).type} {base64.b64encode(blob).decode()}"


def _ed25519(last: int) -> bytes:
    return wire_string(b"ssh-ed25519") + wire_string(bytes(31) + bytes([last]))


_KEY, _OTHER, _AUTHORITY = (_ed25519(last) for last in (1, 2, 3))
# Unlike the others: no change makes one of them this one, in a line that revokes it.
_GOOD = wire_string(b"ssh-ed25519") + wire_string(b"\xa5" * 32)
_ECDSA = b"".join(map(wire_string, (b"ecdsa-sha2-nistp256", b"nistp256", _POINT)))
_RSA = wire_string(b"ssh-rsa") + wire_mpint(65537) + wire_mpint((1 << 1023) + 1155)
_CERTIFICATE = b"".join(
    (
        *map(wire_string, (b"ssh-ed25519-cert-v01@openssh.com", bytes(32), bytes(31) + b"\1")),
        *(bytes(8), b"\0\0\0\2", wire_string(b"id"), wire_string(wire_string(b"ts01.example.org"))),
        *(bytes(8), b"\xff" * 8, *map(wire_string, (b"", b"", b"", _AUTHORITY))),
        wire_string(wire_string(b"ssh-ed25519") + wire_string(bytes(64))),
    )
)
_LINES = (
    "# a comment",
    "",
    f"ts01.example.org {_text(_KEY)} comment",
    f"[ts01.example.org]:2222 {_text(_OTHER)}",
    f"*.example.org,!ts02.example.org,ts0? {_text(_ECDSA)}",
    f"|1|{_SALT}|{_DIGEST} {_text(_RSA)}",
    f"@revoked * {_text(_OTHER)}",
    f"@cert-authority *.example.org {_text(_AUTHORITY)}",
    f"2001:db8::1,[2001:db8::1]:2222 {_text(_KEY)}",
    "ts01.example.org 1024 37 1593",
    "ts01.example.org ssh-dss AAAAB3NzaC1kc3M=",
)
BASES = tuple(
    "".join(f"{line}{end}" for line in lines).encode()
    for lines, end in ((_LINES, "\n"), (_LINES[::-1], "\r\n"), (_LINES[2:3], "\n"), (_LINES[4:8], "\n"))
)
_BASE64 = re.compile(rb"AAAA[A-Za-z0-9+/]{12,}=*")
_PLACES = (("ts01.example.org", 22), ("ts01.example.org", 2222), ("2001:db8::1", 22))
_SHOWN = tuple(map(key_from_blob, (_KEY, _OTHER, _ECDSA, _RSA)))
_NAME = "good.example.net"
_LAST_LINE = f"{_NAME} {_text(_GOOD)}\n".encode()
_CERTIFIED_EVERY = 4
_SHARED_MEMORY = "/dev/shm"

Open = Callable[[Callable[[str], None]], KnownHosts]


def fuzz(runs: int, seed: int, make: Open = KnownHosts) -> Tally:
    """Read ``runs`` broken files; the same seed gives the same files."""
    tally, draw = Tally(), random.Random(seed)
    # In memory where that is possible: a file is written for each run.
    with tempfile.TemporaryDirectory(dir=_SHARED_MEMORY if os.path.isdir(_SHARED_MEMORY) else None) as folder:
        path = Path(folder) / "known_hosts"
        for run in range(runs):
            tally.runs += 1
            content = broken(draw)
            try:
                _try(content, path, make, tally, draw, certified=run % _CERTIFIED_EVERY == 0)
            except Exception as exc:
                tally.fail(f"seed {seed}, run {run}: {type(exc).__name__}: {exc}; file {content!r}")
    return tally


def broken(draw: random.Random) -> bytes:
    """Return a file that is broken anywhere, or in the middle of a key."""
    content = draw.choice(BASES)
    if draw.random() < 0.4:
        content = _with_broken_key(content, draw)
    if draw.random() < 0.8:
        content = mutate(content, draw, BASES)
    return content


def _with_broken_key(content: bytes, draw: random.Random) -> bytes:
    found = draw.choice(list(_BASE64.finditer(content)))
    blob = mutate(base64.b64decode(found[0] + b"==="), draw, (_RSA, _ECDSA, _CERTIFICATE))
    return content[: found.start()] + base64.b64encode(blob) + content[found.end() :]


def _try(content: bytes, path: Path, make: Open, tally: Tally, draw: random.Random, *, certified: bool) -> None:
    path.write_bytes(content + b"\n" + _LAST_LINE)
    said: list[str] = []
    known_hosts = make(said.append)
    host, port = draw.choice(_PLACES)
    _decide(known_hosts, Endpoint(host, port, "root", "id", str(path)), tally, draw, certified=certified)
    # No line of the file costs another host its line.
    known = known_hosts.keys_of(Endpoint(_NAME, 22, "root", "id", str(path)))
    assert any(line.key.blob == _GOOD for line in known.keys), "the last line was lost"
    for text in said:
        tally.refusals[re.sub(r"\d+|key type .*|marker .*|says .*", "", text.rpartition("passed over")[2])] += 1
        assert text.startswith(str(path)), text
        assert text.isprintable(), f"what is logged has a control character: {text!r}"


def _decide(known_hosts: KnownHosts, endpoint: Endpoint, tally: Tally, draw: random.Random, *, certified: bool) -> None:
    try:
        known = known_hosts.keys_of(endpoint)
        assert known.algorithms(), "no algorithm"
    except (HostKeyUnknown, HostKeyMismatch) as exc:
        tally.outcomes[type(exc).__name__] += 1
        return
    for key in _SHOWN:
        _verify(lambda key=key: known.verify(key, None, "SHA256:test"), tally)  # type: ignore[misc]
    if certified:
        blob = mutate(_CERTIFICATE, draw, (_RSA, _ECDSA))
        _verify(lambda: known.verify(_SHOWN[0], certificate_from_blob(blob), "SHA256:test"), tally)


def _verify(verify: Callable[[], None], tally: Tally) -> None:
    try:
        verify()
        tally.outcomes["accepted"] += 1
    except HostKeyMismatch:
        tally.outcomes["refused"] += 1
    except BadKey:
        tally.outcomes["no certificate"] += 1


def long_file(shape: str, lines: int) -> bytes:
    """Return a good file of so many lines: ``names``, ``hashed``, ``patterns``, ``bad``, or ``one line`` of names."""
    text = _text(_KEY).encode()
    match shape:
        case "names":
            return b"".join(b"host%06d.example.org %s\n" % (number, text) for number in range(lines))
        case "hashed":
            hashed = [base64.b64encode(number.to_bytes(20, "big")) for number in range(lines)]
            return b"".join(b"|1|%s|%s %s\n" % (salt, salt, text) for salt in hashed)
        case "patterns":
            return b"".join(b"*a*b*c%06d*.example.com %s\n" % (number, text) for number in range(lines))
        case "bad":
            return b"".join(b"host%06d.example.org %s*\n" % (number, text) for number in range(lines))
        case "one line":
            return b",".join(b"host%06d.example.org" % number for number in range(lines)) + b" " + text + b"\n"
    raise ValueError(shape)


LONG_SHAPES = ("names", "hashed", "patterns", "bad", "one line")
