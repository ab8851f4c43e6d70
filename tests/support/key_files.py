"""The table of key files (tests/data/key_files.toml), and how each is made."""

from __future__ import annotations

import base64
import os
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import asyncssh
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from x2gofleet_workers.ssh.blobs import wire_string

TABLE = Path(__file__).parents[1] / "data" / "key_files.toml"
OTHER = "other"
_FORMATS = {
    "openssh": serialization.PrivateFormat.OpenSSH,
    "pem": serialization.PrivateFormat.TraditionalOpenSSL,
    "pkcs8": serialization.PrivateFormat.PKCS8,
}
_PARAMETERS = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
# Made by PuTTY's own tool where it is there; what comes of it otherwise is for what says what such a file is.
PUTTY = b"PuTTY-User-Key-File-3: ssh-ed25519\r\nEncryption: none\r\nComment: \r\nPublic-Lines: 2\r\n"


@cache
def private_key(name: str) -> Any:
    """Return a key of the table's name, the same one in all of a process."""
    match name:
        case "ed25519" | "other":
            return ed25519.Ed25519PrivateKey.generate()
        case "dsa":
            return dsa.generate_private_key(1024)
        case "secp256k1":
            return ec.generate_private_key(ec.SECP256K1())
        case "ecdsa256" | "ecdsa384" | "ecdsa521":
            curve = {"ecdsa256": ec.SECP256R1, "ecdsa384": ec.SECP384R1, "ecdsa521": ec.SECP521R1}[name]
            return ec.generate_private_key(curve())
    return rsa.generate_private_key(65537, int(name.removeprefix("rsa")))


@cache
def authority() -> asyncssh.SSHKey:
    """Return the key that signs the certificates of the table."""
    return asyncssh.generate_private_key("ssh-ed25519")


def public_line(name: str) -> str:
    """Return a key as authorized_keys has it; "" for one that SSH does not have."""
    if name == "secp256k1":
        return ""
    public = private_key(name).public_key()
    with _dsa_still_works():
        text: bytes = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return text.decode()


@contextmanager
def _dsa_still_works() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="SSH DSA key support")
        yield


@dataclass(frozen=True, slots=True)
class Case:
    """One file of the table."""

    name: str
    ssh: str
    ours: str
    key: str = "ed25519"
    format: str = "openssh"
    kind: str = "file"
    change: tuple[str, ...] = ()
    passphrase: str = ""
    mode: int = 0o600
    beside: str = ""
    trusts: str = "key"
    why: str = ""
    ssh_since: str = ""
    error: str = ""
    remedy: str = ""
    warns: str = ""

    def write(self, folder: Path, user: str) -> Path:
        """Put the file, what stands in its place, and what lies beside it, into a folder; return its path."""
        path = folder / "id"
        match self.kind:
            case "directory":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
            case "missing":
                pass
            case "link":
                _write(folder / "target", self._content(user), 0o600)
                path.symlink_to(folder / "target")
            case _:
                _write(path, self._content(user), 0 if self.kind == "unreadable" else self.mode)
        self._write_beside(folder, user)
        return path

    def _content(self, user: str) -> bytes:
        match self.kind:
            case "empty":
                return b""
            case "garbage":
                return bytes(range(256)) * 4
            case "public":
                return public_line(self.key).encode() + b" comment\n"
            case "certificate":
                return user_certificate(self.key, user)
            case "putty":
                return PUTTY
            case "security key":
                return _security_key()
        text = private_text(self.key, self.format, self.passphrase)
        for change in self.change:
            text = changed(text, change)
        return text

    def _write_beside(self, folder: Path, user: str) -> None:
        match self.beside:
            case "pub":
                (folder / "id.pub").write_text(public_line(self.key) + "\n")
            case "other pub":
                (folder / "id.pub").write_text(public_line(OTHER) + "\n")
            case "cert":
                (folder / "id-cert.pub").write_bytes(user_certificate(self.key, user))
            case "other cert":
                (folder / "id-cert.pub").write_bytes(user_certificate(OTHER, user))
            case "damaged cert":
                (folder / "id-cert.pub").write_bytes(user_certificate(self.key, user)[:90] + b"\n")
            case "expired cert":
                (folder / "id-cert.pub").write_bytes(user_certificate(self.key, user, valid_before="20200102"))


def private_text(name: str, format: str, passphrase: str = "") -> bytes:  # noqa: A002
    """Return a private key as text in a format of the table."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    with _dsa_still_works():
        text: bytes = private_key(name).private_bytes(serialization.Encoding.PEM, _FORMATS[format], encryption)
    return text


def changed(text: bytes, change: str) -> bytes:
    """Return the text of a key file after a change of the table."""
    lines = text.split(b"\n")
    match change:
        case "comment":
            return b"# the key of the worker\nSubject: x2gofleet\n\n" + text
        case "latin-1":
            return "# für Müller\n".encode("latin-1") + text
        case "blank":
            return b"\n" + text
        case "bom":
            return b"\xef\xbb\xbf" + text
        case "crlf":
            return text.replace(b"\n", b"\r\n")
        case "no newline":
            return text.rstrip(b"\n")
        case "behind":
            return text + b"the end\n"
        case "spaces":
            return text.replace(b"\n", b" \n")
        case "two keys":
            return text + private_text(OTHER, "openssh")
        case "second key":
            return private_text(OTHER, "openssh") + text
        case "parameters":
            return _PARAMETERS + text
        case "cut":
            return text[: len(text) // 2]
        case "hole":
            return b"\n".join((*lines[:2], *lines[3:]))
        case "letter":
            # The first letter of the last whole line: of the private numbers.
            at = text.index(lines[-4]) + 1
            return text[:at] + (b"A" if text[at : at + 1] != b"A" else b"B") + text[at + 1 :]
    raise ValueError(change)


def _write(path: Path, content: bytes, mode: int) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
    path.chmod(mode)


def user_certificate(name: str, user: str, **times: str) -> bytes:
    """Return the certificate of a key, for a login as ``user``, as a -cert.pub file has it."""
    public = asyncssh.import_public_key(public_line(name))
    after = {"valid_after": "20200101"} if times else {}
    made: bytes = (
        authority()
        .generate_user_certificate(public, "test", principals=[user], **after, **times)  # type: ignore[arg-type]
        .export_certificate()
    )
    return made


def _security_key() -> bytes:
    public = wire_string(b"sk-ssh-ed25519@openssh.com") + wire_string(bytes(32)) + wire_string(b"ssh:")
    private = bytes(8) + public + b"\x01" + wire_string(b"handle") + wire_string(b"") + wire_string(b"")
    private += bytes(range(1, 1 + -len(private) % 8))
    none = wire_string(b"none")
    blob = (
        b"openssh-key-v1\0" + none + none + wire_string(b"") + b"\0\0\0\1" + wire_string(public) + wire_string(private)
    )
    text = base64.encodebytes(blob)
    return b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + text + b"-----END OPENSSH PRIVATE KEY-----\n"


@cache
def cases() -> tuple[Case, ...]:
    """Return the table."""
    found = []
    for entry in tomllib.loads(TABLE.read_text())["case"]:
        case = Case(**{"ours": entry["ssh"], **entry, "change": tuple(entry.get("change", ()))})
        assert (case.ssh != case.ours) == bool(case.why), f"{case.name}: why?"
        found.append(case)
    assert len({case.name for case in found}) == len(found)
    return tuple(found)


def names() -> list[str]:
    """Return the names of the cases."""
    return [case.name for case in cases()]


def case_of(name: str) -> Case:
    """Return a case by its name."""
    return next(case for case in cases() if case.name == name)
