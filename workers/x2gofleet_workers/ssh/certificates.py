"""certificates: host certificates of OpenSSH (PROTOCOL.certkeys): what one says, and whether it holds for a host."""

from __future__ import annotations

from dataclasses import dataclass

import paramiko

from x2gofleet_workers.ssh.blobs import BadKey, PublicKey, WireReader, key_from_blob, plain_type, take_key

_HOST_CERTIFICATE = 2
# SHA-1 alone is missing; ssh's CASignatureAlgorithms are these and those of security keys.
_SIGNATURES = (
    *("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    *("rsa-sha2-512", "rsa-sha2-256"),
)


@dataclass(frozen=True, slots=True)
class HostCertificate:
    """A certificate: whose ``key`` it certifies, by which ``authority``; times in seconds since 1970."""

    key: PublicKey
    authority: PublicKey
    kind: int
    principals: tuple[bytes, ...]
    valid_after: int
    valid_before: int
    critical_options: bytes
    signed: bytes
    signature: bytes

    def problem(self, host: str, now_seconds: float) -> str:
        """Return why the certificate does not hold for a host, "" where it does.

        Whether ``authority`` is to be trusted is not looked at, only that it signed.
        """
        if self.kind != _HOST_CERTIFICATE:
            return "the certificate is not one of a host"
        if now_seconds < self.valid_after:
            return "the certificate is not valid yet"
        if now_seconds >= self.valid_before:
            return "the certificate has expired"
        if self.principals and host.lower().encode("utf-8", "surrogateescape") not in self.principals:
            return f"the certificate is not for {host}"
        if self.critical_options:
            return "the certificate has critical options, which are not supported"
        if not self._is_signed():
            return "the certificate is not signed by its authority"
        return ""

    def _is_signed(self) -> bool:
        try:
            if self.authority.unusable or WireReader(self.signature).text() not in _SIGNATURES:
                return False
            signer = paramiko.PKey.from_type_string(self.authority.type, self.authority.blob)
            return bool(signer.verify_ssh_sig(self.signed, paramiko.Message(self.signature)))
        except Exception:
            # Of any class: paramiko and cryptography read what a server sent.
            return False


def certificate_from_blob(blob: bytes) -> HostCertificate:
    """Return what a certificate says; raises BadKey."""
    reader = WireReader(blob)
    plain = plain_type(reader.text())
    reader.string()
    key = take_key(plain, reader)
    reader.number(8)
    kind = reader.number()
    reader.string()
    names, principals = WireReader(reader.string()), []
    while not names.done:
        principals.append(names.string())
    after, before = reader.number(8), reader.number(8)
    critical = reader.string()
    for _ in ("extensions", "reserved"):
        reader.string()
    authority = key_from_blob(reader.string())
    signed = blob[: reader.position]
    signature = reader.string()
    if not reader.done:
        raise BadKey("there is something behind the certificate")
    return HostCertificate(key, authority, kind, tuple(principals), after, before, critical, signed, signature)
