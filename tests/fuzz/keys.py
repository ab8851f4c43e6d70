"""Broken key files and certificates: each is read as a key that can sign, or refused with a reason and a remedy."""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Callable
from functools import cache

import paramiko
from x2gofleet_workers.ssh.blobs import BadKey
from x2gofleet_workers.ssh.key_formats import KeyProblem, parse_key
from x2gofleet_workers.ssh.keys import certificate_of

from tests.fuzz.decoder import Tally
from tests.fuzz.mutations import mutate
from tests.support.key_files import PUTTY, private_text, public_line, user_certificate

_SIGNED_EVERY = 8
_PATH = "/etc/x2gofleet/id"
_BODY = re.compile(rb"(-----BEGIN [A-Z ]+-----\n)([A-Za-z0-9+/=\n]+)(-----END)")

Parse = Callable[[bytes, str], paramiko.PKey]


@cache
def bases() -> tuple[bytes, ...]:
    """Return the files that are broken: all formats, with and without a passphrase, and what is no key."""
    good = [private_text(name, form) for name in ("ed25519", "ecdsa256", "rsa1024") for form in ("openssh", "pkcs8")]
    good += [private_text("ecdsa521", "pem"), private_text("rsa1024", "pem"), private_text("dsa", "pkcs8")]
    locked = [private_text("ecdsa256", form, "secret") for form in ("pem", "pkcs8")]
    return (*good, *locked, PUTTY, public_line("ed25519").encode() + b"\n", certificate())


@cache
def certificate() -> bytes:
    """Return the text of a certificate."""
    return user_certificate("ed25519", "root")


def fuzz(runs: int, seed: int, parse: Parse = parse_key) -> Tally:
    """Read ``runs`` broken files; the same seed gives the same changes of keys that are made anew in each process."""
    tally, draw = Tally(), random.Random(seed)
    login = parse_key(private_text("ed25519", "openssh"), _PATH)
    for run in range(runs):
        tally.runs += 1
        content = broken(draw)
        try:
            _try(content, parse, tally, sign=run % _SIGNED_EVERY == 0)
            _try_certificate(mutate(certificate(), draw, bases()), login, tally)
        except Exception as exc:
            tally.fail(f"seed {seed}, run {run}: {type(exc).__name__}: {exc}; file {content!r}")
    return tally


def broken(draw: random.Random) -> bytes:
    """Return a file that is broken anywhere, or in the middle of what its base64 says."""
    content = draw.choice(bases())
    body = _BODY.search(content)
    if body is not None and draw.random() < 0.5:
        blob = mutate(base64.b64decode(body[2]), draw, (b"\0\0\0\7ssh-rsa", b"\0\0\0\4none", bytes(40)))
        content = content[: body.start(2)] + base64.encodebytes(blob) + content[body.end(2) :]
        if draw.random() < 0.7:
            return content
    return mutate(content, draw, bases())


def _try(content: bytes, parse: Parse, tally: Tally, *, sign: bool) -> None:
    problem = None
    try:
        key = parse(content, _PATH)
    except KeyProblem as exc:
        problem = exc
    if problem is not None:
        tally.outcomes["refused"] += 1
        tally.refusals[problem.reason[:24]] += 1
        assert problem.remedy, "no remedy"
        assert f"{problem.reason} {problem.remedy}".isprintable(), f"a control character in {problem.reason!r}"
        return
    tally.outcomes["a key"] += 1
    assert key.get_name() in ("ssh-ed25519", "ssh-rsa") or key.get_name().startswith("ecdsa-"), key.get_name()
    assert key.can_sign()
    if sign:
        key.sign_ssh_data(b"test")


def _try_certificate(content: bytes, key: paramiko.PKey, tally: Tally) -> None:
    try:
        certificate_of(content, key)
        tally.outcomes["a certificate"] += 1
    except BadKey:
        tally.outcomes["no certificate"] += 1
