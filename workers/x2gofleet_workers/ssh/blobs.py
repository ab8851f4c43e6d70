"""blobs: public keys as SSH writes them on the wire and in base64 (RFC 4253 section 6.6, RFC 5656, RFC 8709).

OpenSSH's reading is the measure: what it takes for a key is one here, in the same encoding whatever it looked like.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from x2gofleet.text import show

CERTIFICATE_SUFFIX = "-cert-v01@openssh.com"
ECDSA_POINT_BYTES: Mapping[str, int] = MappingProxyType({"nistp256": 65, "nistp384": 97, "nistp521": 133})
MIN_RSA_BITS = 1024
MAX_RSA_BITS = 16384
_ED25519_BYTES = 32
_SPACE_IN_BASE64 = b"\t\n\v\f\r "
_UNUSABLE_DSA = "DSA keys are not used any more"
_UNUSABLE_SK = "keys of security keys (sk-) are not supported"
_UNUSABLE_CERTIFICATE = "it is a certificate; name the authority that signed it in a @cert-authority line instead"


class BadKey(ValueError):
    """Bytes are not a public key; the text says why, in a clause."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key: its type as on the wire, its canonical encoding, and why it can't be used ("" where it can)."""

    type: str
    blob: bytes
    unusable: str = ""


class WireReader:
    """Takes fields off the front of a blob (RFC 4251 section 5). Raises BadKey where one is cut off."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def position(self) -> int:
        """How many bytes were taken."""
        return self._at

    @property
    def done(self) -> bool:
        """Whether everything was taken."""
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        """Take ``size`` bytes."""
        if size > len(self._data) - self._at:
            raise BadKey("the key is cut off")
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def number(self, size: int = 4) -> int:
        """Take an unsigned number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "big")

    def string(self) -> bytes:
        """Take a string with its length in front."""
        return self.take(self.number())

    def text(self) -> str:
        """Take a string as text; what is not ASCII is escaped."""
        return self.string().decode("ascii", "backslashreplace")

    def mpint(self) -> int:
        """Take a number that is not negative."""
        raw = self.string()
        if raw and raw[0] & 0x80:
            raise BadKey("a number in the key is negative")
        if len(raw) > MAX_RSA_BITS // 8 + 1:
            raise BadKey(f"a number in the key has more than {MAX_RSA_BITS} bits")
        return int.from_bytes(raw, "big")


def wire_string(value: bytes) -> bytes:
    """Return bytes as a string of the wire."""
    return struct.pack(">I", len(value)) + value


def wire_mpint(value: int) -> bytes:
    """Return a number that is not negative as an mpint, in its shortest form."""
    return wire_string(value.to_bytes(value.bit_length() // 8 + 1, "big") if value else b"")


def plain_type(name: str) -> str:
    """Return the key type of an algorithm's name: of a certificate, or of a signature by an RSA key."""
    plain = name.removesuffix(CERTIFICATE_SUFFIX)
    if plain != name and plain.startswith("sk-"):
        return f"{plain}@openssh.com"
    return "ssh-rsa" if plain in ("rsa-sha2-256", "rsa-sha2-512") else plain


def take_key(plain: str, reader: WireReader) -> PublicKey:
    """Take the fields of a key of a type, which was taken already; raises BadKey."""
    if plain not in _FIELDS:
        raise BadKey(f"the key type {_shown(plain)} is not known")
    return _FIELDS[plain](plain, reader)


def key_from_blob(blob: bytes) -> PublicKey:
    """Return the key that a blob is; raises BadKey."""
    reader = WireReader(blob)
    name = reader.text()
    if name.endswith(CERTIFICATE_SUFFIX):
        return PublicKey(name, blob, _UNUSABLE_CERTIFICATE)
    key = take_key(plain_type(name), reader)
    if not reader.done:
        raise BadKey("there is something behind the key")
    return key


def key_from_text(name: bytes, text: bytes) -> PublicKey:
    """Return the key of a type's name and base64, as known_hosts and .pub files have it; raises BadKey."""
    word = name.decode("ascii", "backslashreplace")
    plain = plain_type(word)
    if plain not in _FIELDS:
        raise BadKey(f"the key type {_shown(word)} is not known")
    key = key_from_blob(strict_base64(text))
    if plain_type(key.type) != plain or key.type.endswith(CERTIFICATE_SUFFIX) != word.endswith(CERTIFICATE_SUFFIX):
        raise BadKey(f"it says {_shown(word)}, and the key is of the type {_shown(key.type)}")
    return key


def strict_base64(text: bytes) -> bytes:
    """Decode base64 that is complete and has nothing else in it but white space; raises BadKey."""
    packed = text.translate(None, _SPACE_IN_BASE64)
    try:
        raw = base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if base64.b64encode(raw) != packed:
        raise BadKey("the base64 of the key is damaged or cut off")
    return raw


def _shown(name: str) -> str:
    return show(name, 80) or "with no name"


def _ed25519(name: str, reader: WireReader) -> PublicKey:
    point = reader.string()
    if len(point) != _ED25519_BYTES:
        raise BadKey("the key has not the length of an Ed25519 key")
    return PublicKey(name, wire_string(name.encode()) + wire_string(point))


def _ecdsa(name: str, reader: WireReader) -> PublicKey:
    curve, point = reader.text(), reader.string()
    if name != f"ecdsa-sha2-{curve}":
        raise BadKey(f"the key is of another curve than its type {name} says")
    if len(point) != ECDSA_POINT_BYTES[curve] or point[0] != 4:
        raise BadKey("the key has not the length of a point of its curve")
    return PublicKey(name, b"".join(map(wire_string, (name.encode(), curve.encode(), point))))


def _rsa(name: str, reader: WireReader) -> PublicKey:
    exponent, modulus = reader.mpint(), reader.mpint()
    if not MIN_RSA_BITS <= modulus.bit_length() <= MAX_RSA_BITS:
        raise BadKey(
            f"the RSA key has {modulus.bit_length()} bits; it must have {MIN_RSA_BITS} to {MAX_RSA_BITS}, as for ssh"
        )
    return PublicKey(name, wire_string(name.encode()) + wire_mpint(exponent) + wire_mpint(modulus))


def _dsa(name: str, reader: WireReader) -> PublicKey:
    numbers = [reader.mpint() for _ in range(4)]
    return PublicKey(name, wire_string(name.encode()) + b"".join(map(wire_mpint, numbers)), _UNUSABLE_DSA)


def _security_key(name: str, reader: WireReader) -> PublicKey:
    fields = [reader.string() for _ in range(3 if "ecdsa" in name else 2)]
    return PublicKey(name, b"".join(map(wire_string, (name.encode(), *fields))), _UNUSABLE_SK)


_FIELDS: Mapping[str, Callable[[str, WireReader], PublicKey]] = MappingProxyType(
    {
        "ssh-ed25519": _ed25519,
        **{f"ecdsa-sha2-{curve}": _ecdsa for curve in ECDSA_POINT_BYTES},
        "ssh-rsa": _rsa,
        "ssh-dss": _dsa,
        "sk-ssh-ed25519@openssh.com": _security_key,
        "sk-ecdsa-sha2-nistp256@openssh.com": _security_key,
    }
)
