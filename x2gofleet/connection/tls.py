"""tls: PEM files -> a TLS context that verifies; what goes wrong in a handshake -> words that say how to fix it."""

from __future__ import annotations

import os
import ssl

from x2gofleet.connection.urls import TlsFiles

# X509_V_ERR_*: openssl/x509_vfy.h
_NOT_YET_VALID, _EXPIRED = 9, 10
_HOST_NAME, _IP_ADDRESS = 62, 64
_UNKNOWN_CA = (2, 18, 19, 20, 21, 27)


class Tls:
    """The TLS context of one URL; made anew when one of its files changed, such as a renewed certificate."""

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        self._context: tuple[tuple[object, ...], ssl.SSLContext] | None = None
        self.context()

    def context(self) -> ssl.SSLContext:
        """Return the context. Raises ValueError for a file that can't be used."""
        files = self.files
        stamps = tuple(_stamp(path) for path in (files.ca_certs, files.certfile, files.keyfile) if path)
        made = self._context
        if made is not None and made[0] == stamps:
            return made[1]
        if files.keyfile and not files.certfile:
            raise ValueError("ssl_keyfile needs ssl_certfile, the certificate that the key belongs to")
        try:
            context = ssl.create_default_context(cafile=files.ca_certs or None)
        except (OSError, ssl.SSLError) as exc:
            raise ValueError(f"ssl_ca_certs: {files.ca_certs} holds no CA certificate in PEM: {_why(exc)}") from exc
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if files.certfile:
            try:
                # Never asks for a passphrase on a terminal.
                context.load_cert_chain(files.certfile, files.keyfile or None, password=lambda: "")
            except (OSError, ssl.SSLError) as exc:
                raise ValueError(
                    f"ssl_certfile and ssl_keyfile: {files.certfile} and {files.keyfile or files.certfile} are not a "
                    f"certificate and its key in PEM, without a passphrase: {_why(exc)}"
                ) from exc
        self._context = (stamps, context)
        return context


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError as exc:
        raise ValueError(f"the TLS file {path} can't be read: {_why(exc)}") from exc
    return found.st_ino, found.st_size, found.st_mtime_ns


def _why(exc: OSError) -> str:
    reason = getattr(exc, "reason", None) or exc.strerror
    return str(reason or exc)


def tls_failure(exc: ssl.SSLError, place: str, host: str) -> str:
    """Return what a failed TLS handshake with ``place`` means, and how to fix it."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return _certificate_failure(exc, place, host)
    reason = (exc.reason or str(exc)).lower().replace("_", " ")
    if "wrong version number" in reason or "record layer failure" in reason or "packet length" in reason:
        return f"{place} does not speak TLS: give the TLS port of Redis, or redis:// where there is none ({reason})"
    if "alert" in reason and ("certificate" in reason or "unknown ca" in reason or "handshake failure" in reason):
        return (
            f"{place} refused this client's certificate, or wants one: give ssl_certfile and ssl_keyfile signed by "
            f"a CA that Redis trusts ({reason})"
        )
    return f"no TLS connection to {place}: {reason}"


def _certificate_failure(exc: ssl.SSLCertVerificationError, place: str, host: str) -> str:
    code, said = exc.verify_code, exc.verify_message
    if code == _EXPIRED:
        return f"the certificate of {place} has expired: renew it (and look at the clock of this host)"
    if code == _NOT_YET_VALID:
        return f"the certificate of {place} is not valid yet: look at the clock of this host"
    if code in (_HOST_NAME, _IP_ADDRESS):
        return (
            f"the certificate of {place} is for another name than {host!r}: use the name that it was made for, or make "
            f"one whose subjectAltName has this ({said.rstrip('.')})"
        )
    if code in _UNKNOWN_CA:
        return (
            f"the certificate of {place} was not signed by a CA that is trusted here: name the CA's file by "
            f"ssl_ca_certs=FILE in the URL ({said})"
        )
    return f"the certificate of {place} is refused: {said}"
