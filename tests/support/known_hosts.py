"""The table of known_hosts files (tests/data/known_hosts.toml), with the keys, certificates and servers it names."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import asyncssh
from x2gofleet_workers.ssh.blobs import PublicKey, key_from_text, wire_mpint, wire_string

TABLE = Path(__file__).parents[1] / "data" / "known_hosts.toml"
HOST, PORT = "ts01.example.org", 22
_LETTERS = 5000
_LINES = 100_000
_SALT = bytes(range(20))
_KINDS = {
    "ed25519": "ssh-ed25519",
    "ecdsa256": "ecdsa-sha2-nistp256",
    "ecdsa384": "ecdsa-sha2-nistp384",
    "ecdsa521": "ecdsa-sha2-nistp521",
    "rsa": "ssh-rsa",
}
SERVERS: Mapping[str, tuple[str, ...]] = {
    "all": ("ed25519", "ecdsa256", "ecdsa384", "ecdsa521", "rsa"),
    "rsa": ("rsa",),
    "rsa1024": ("rsa1024",),
    "certified": ("ed25519",),
    "expired": ("ed25519",),
    "elsewhere": ("ed25519",),
    "pattern": ("ed25519",),
    "anybody": ("ed25519",),
    "user": ("ed25519",),
}
_CERTIFICATES: Mapping[str, dict[str, Any]] = {
    "certified": {"principals": [HOST, "other.example.org"]},
    "expired": {"principals": [HOST], "valid_after": "20200101", "valid_before": "20200102"},
    "elsewhere": {"principals": ["ts02.example.org"]},
    "pattern": {"principals": ["*.example.org"]},
    "anybody": {},
    "user": {"principals": [HOST]},
}


@dataclass(frozen=True, slots=True)
class Case:
    """One file of the table; ``content`` has the words in it replaced."""

    name: str
    content: bytes
    ssh: str
    ours: str
    host: str = HOST
    port: int = PORT
    kind: str = "file"
    server: str = "all"
    why: str = ""
    error: str = ""
    warns: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """Put the file, or what stands in its place, into a folder."""
        path = folder / "known_hosts"
        match self.kind:
            case "directory":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
            case "device":
                path = Path("/dev/null")
            case "missing":
                pass
            case "dangling":
                path.symlink_to(folder / "nowhere")
            case "link":
                (folder / "target").write_bytes(self.content)
                path.symlink_to(folder / "target")
            case _:
                path.write_bytes(self.content)
                if self.kind == "unreadable":
                    path.chmod(0)
        return path


class Keys:
    """Keys by the names of the table."""

    def __init__(self) -> None:
        self.private: dict[str, asyncssh.SSHKey] = {}
        for prefix in ("", "other-"):
            for name, kind in _KINDS.items():
                self.private[prefix + name] = asyncssh.generate_private_key(kind)
        self.private["other2-ed25519"] = asyncssh.generate_private_key("ssh-ed25519")
        self.private["rsa1024"] = asyncssh.generate_private_key("ssh-rsa", key_size=1024)
        self.private["ca"] = asyncssh.generate_private_key("ssh-ed25519")
        self.certificates = {name: self._certificate(name) for name in _CERTIFICATES}

    def _certificate(self, name: str) -> asyncssh.SSHCertificate:
        make = self.private["ca"].generate_host_certificate
        if name == "user":
            make = self.private["ca"].generate_user_certificate
        return make(self.private["ed25519"], name, **_CERTIFICATES[name])

    def public(self, name: str) -> tuple[str, bytes]:
        """Return type and blob of a key."""
        if name in self.private:
            key = self.private[name]
            return key.export_public_key().decode().split()[0], key.public_data
        return _MADE[name]

    def known(self, name: str) -> PublicKey:
        """Return a key as the worker has it."""
        key_type, blob = self.public(name)
        return key_from_text(key_type.encode(), base64.b64encode(blob))

    def write(self, name: str, folder: Path) -> Path:
        """Write a private key to a file of its name; return its path."""
        path = folder / name
        path.touch(mode=0o600)
        path.write_bytes(self.private[name].export_private_key())
        return path

    def word(self, word: str) -> bytes:
        """Return what a word of the table stands for."""
        name, _, part = word.partition(":")
        if name == "hash":
            return _hashed(part.encode("latin-1"))
        if name == "long":
            return b"x" * _LETTERS
        if name == "names":
            return b",".join(b"ts%05d.example.org" % number for number in range(_LETTERS))
        if name == "many":
            line = b" ".join(self._line("other-rsa"))
            return b"".join(b"host%06d.example.org %s\n" % (number, line) for number in range(_LINES))
        if name == "certificate":
            return self.certificates["certified"].export_certificate().strip()
        key_type, text = self._line(name)
        match part:
            case "type":
                return key_type
            case "base64":
                return text
            case "spaced":
                return text[:20] + b" " + text[20:]
            case "returned":
                return text[:20] + b"\r" + text[20:]
            case "cut":
                return text[:-3]
            case "unpadded":
                assert text.endswith(b"=")
                return text.rstrip(b"=")
            case "longer":
                return base64.b64encode(base64.b64decode(text) + b"\0")
        return key_type + b" " + text

    def _line(self, name: str) -> tuple[bytes, bytes]:
        key_type, blob = self.public(name)
        return key_type.encode(), base64.b64encode(blob)


def _hashed(name: bytes) -> bytes:
    digest = hmac.digest(_SALT, name, hashlib.sha1)
    return b"|1|" + base64.b64encode(_SALT) + b"|" + base64.b64encode(digest)


def _made(key_type: str, *fields: bytes) -> tuple[str, bytes]:
    return key_type, b"".join((wire_string(key_type.encode()), *fields))


# Keys of types that nothing here makes, and such as nothing makes.
_MADE = {
    "dsa": _made("ssh-dss", *(wire_mpint((1 << bits) + 7) for bits in (1023, 159, 1020, 1021))),
    "sk-ed25519": _made("sk-ssh-ed25519@openssh.com", wire_string(bytes(32)), wire_string(b"ssh:")),
    "sk-ecdsa": _made(
        "sk-ecdsa-sha2-nistp256@openssh.com",
        *map(
            wire_string,
            (
                b"nistp256",
                # The base point of the curve.
                bytes.fromhex(
                    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
                    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
                ),
                b"ssh:",
            ),
        ),
    ),
    "small-rsa": _made("ssh-rsa", wire_mpint(65537), wire_mpint((1 << 999) + 1)),
    "bad-ecdsa256": _made("ecdsa-sha2-nistp256", wire_string(b"nistp256"), wire_string(b"\4" + bytes(63) + b"\1")),
}


@cache
def keys() -> Keys:
    """Return the keys of this process."""
    return Keys()


@cache
def cases() -> tuple[Case, ...]:
    """Return the table."""
    found = []
    for entry in tomllib.loads(TABLE.read_text())["case"]:
        content = re.sub(
            rb"<([\w-]+(?::[^>]*)?)>",
            lambda word: keys().word(word[1].decode("latin-1")),
            entry.pop("content", "").encode("latin-1"),
        )
        case = Case(**{"ours": entry["ssh"], **entry, "content": content, "warns": tuple(entry.get("warns", ()))})
        assert (case.ssh != case.ours) == bool(case.why), f"{case.name}: why?"
        found.append(case)
    assert len({case.name for case in found}) == len(found)
    return tuple(found)


def names() -> list[str]:
    """Return the names of the cases, without making keys."""
    return [entry["name"] for entry in tomllib.loads(TABLE.read_text())["case"]]


def case_of(name: str) -> Case:
    """Return a case by its name."""
    return next(case for case in cases() if case.name == name)
