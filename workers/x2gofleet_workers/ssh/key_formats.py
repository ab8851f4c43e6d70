"""key_formats: the bytes of a key file -> a private key, or what the file is instead and how to fix that.

Every format that ssh reads: OpenSSH's own, and PEM as PKCS#1, SEC1 and PKCS#8.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import shlex

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from x2gofleet_workers.ssh.blobs import CERTIFICATE_SUFFIX, ECDSA_POINT_BYTES, MIN_RSA_BITS, BadKey, WireReader
from x2gofleet_workers.ssh.faults import describe

_BEGIN = re.compile(rb"^[ \t]*-----BEGIN ((?:OPENSSH |RSA |EC |DSA |ENCRYPTED )?PRIVATE KEY)-----[ \t]*$", re.MULTILINE)
_OPENSSH_MAGIC = b"openssh-key-v1\0"
_PUBLIC = re.compile(rb"(?:ssh-|ecdsa-sha2-|sk-)[\w@.-]+ +AAAA")
_PUBLIC_BLOCKS = (b"---- BEGIN SSH2 PUBLIC KEY ----", b"-----BEGIN PUBLIC KEY-----", b"-----BEGIN RSA PUBLIC KEY-----")
_CURVES = {"secp256r1": "nistp256", "secp384r1": "nistp384", "secp521r1": "nistp521"}
assert set(_CURVES.values()) == set(ECDSA_POINT_BYTES)


class KeyProblem(Exception):
    """A file can't be used as a key: ``reason`` is what comes after its name, ``remedy`` how to fix it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


def new_key(path: str) -> str:
    """Return how to make a key that can be used instead of the one in a file."""
    made = shlex.quote(f"{path}.new")
    return (
        f"make a new key: ssh-keygen -t ed25519 -N '' -f {made}, set key_file to it, and add {made}.pub to "
        "authorized_keys on the server"
    )


def parse_key(data: bytes, path: str) -> paramiko.PKey:
    """Return the first private key in a file's content; ``path`` is for remedies. Raises KeyProblem."""
    text = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    begin = _BEGIN.search(text)
    if begin is None:
        raise _not_a_private_key(text, path)
    label = begin[1]
    end = re.compile(rb"^[ \t]*-----END %b-----" % label, re.MULTILINE).search(text, begin.end())
    if end is None:
        raise KeyProblem("is cut off: the line with END is missing", new_key(path))
    lines = [line.strip() for line in text[begin.start() : end.end()].split(b"\n")]
    if label.startswith(b"OPENSSH"):
        _check_openssh(b"".join(lines[1:-1]), path)
    elif label.startswith(b"ENCRYPTED") or any(
        line.startswith(b"Proc-Type:") and b"ENCRYPTED" in line for line in lines
    ):
        raise _encrypted(path)
    elif label.startswith(b"DSA"):
        raise _unusable("DSA", path)
    return _loaded(b"\n".join(lines) + b"\n", openssh=label.startswith(b"OPENSSH"), path=path)


def _check_openssh(text: bytes, path: str) -> None:
    """Raise KeyProblem for a key in OpenSSH's format (PROTOCOL.key) that is encrypted or of a type without use."""
    try:
        reader = WireReader(base64.b64decode(text, validate=True))
        if reader.take(len(_OPENSSH_MAGIC)) != _OPENSSH_MAGIC:
            raise BadKey("it does not begin as such a key does")
        cipher = reader.text()
        reader.string()
        reader.string()
        reader.number()
        key_type = WireReader(reader.string()).text()
    except (BadKey, binascii.Error, ValueError) as exc:
        raise KeyProblem(f"is damaged: {describe(exc)}", new_key(path)) from exc
    if cipher != "none":
        raise _encrypted(path)
    if key_type.startswith("sk-"):
        raise KeyProblem("is the key of a security key, which somebody must touch", new_key(path))
    if key_type == "ssh-dss":
        raise _unusable("DSA", path)


def _loaded(pem: bytes, *, openssh: bool, path: str) -> paramiko.PKey:
    try:
        if openssh:
            loaded: object = serialization.load_ssh_private_key(pem, password=None)
        else:
            loaded = serialization.load_pem_private_key(pem, password=None)
        return _as_paramiko(loaded, path)
    except (KeyProblem, MemoryError):
        raise
    except Exception as exc:
        # Of any class: cryptography, OpenSSL and paramiko read a file of anybody's making.
        if "password" in str(exc).lower():
            raise _encrypted(path) from exc
        raise KeyProblem(f"is damaged: {describe(exc)}", new_key(path)) from exc


def _as_paramiko(key: object, path: str) -> paramiko.PKey:
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < MIN_RSA_BITS:
            raise KeyProblem(f"has an RSA key of {key.key_size} bits, too few for sshd", new_key(path))
        return paramiko.RSAKey(key=key)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        if key.curve.name not in _CURVES:
            raise KeyProblem(f"has a key of the curve {key.curve.name}, which SSH does not have", new_key(path))
        return paramiko.ECDSAKey(vals=(key, key.public_key()))
    if isinstance(key, ed25519.Ed25519PrivateKey):
        # paramiko takes such a key in this form alone.
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        return paramiko.Ed25519Key(file_obj=io.StringIO(text.decode()))
    if isinstance(key, dsa.DSAPrivateKey):
        raise _unusable("DSA", path)
    raise KeyProblem("has a key of a type that SSH does not have", new_key(path))


def _encrypted(path: str) -> KeyProblem:
    return KeyProblem(
        "is encrypted, and nobody is there to type its passphrase",
        f"remove the passphrase: ssh-keygen -p -N '' -f {shlex.quote(path)}",
    )


def _unusable(kind: str, path: str) -> KeyProblem:
    return KeyProblem(f"has a {kind} key, which sshd does not take any more", new_key(path))


def _not_a_private_key(text: bytes, path: str) -> KeyProblem:
    first = text.lstrip()[:200]
    if not first:
        return KeyProblem("is empty", new_key(path))
    if first.startswith(b"PuTTY-User-Key-File"):
        quoted = shlex.quote(path)
        return KeyProblem(
            "is a key in PuTTY's format",
            f"convert it: puttygen {quoted} -O private-openssh -o {shlex.quote(f'{path}.openssh')}, and set key_file "
            "to the new file",
        )
    if _PUBLIC.match(first) or first.startswith(_PUBLIC_BLOCKS):
        private = path
        for suffix in ("-cert.pub", ".pub"):
            private = private.removesuffix(suffix)
        named = f": {private}" if private != path else ", which has no .pub in its name"
        what = "a certificate" if CERTIFICATE_SUFFIX.encode() in first else "a public key"
        return KeyProblem(f"is {what}, not a private SSH key", f"set key_file to the private key{named}")
    return KeyProblem("is no private SSH key", new_key(path))
