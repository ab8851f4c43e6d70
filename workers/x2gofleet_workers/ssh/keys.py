"""keys: the private key of a login, and its certificate where there is one, read from files at each connection."""

from __future__ import annotations

import copy
import logging
import os
import shlex
import threading
from collections.abc import Callable
from dataclasses import dataclass

import paramiko

from x2gofleet.errors import SetupError
from x2gofleet_workers.ssh.blobs import CERTIFICATE_SUFFIX, BadKey, WireReader, plain_type, strict_base64, take_key
from x2gofleet_workers.ssh.faults import describe, exhausted
from x2gofleet_workers.ssh.files import FileContent, NotUsable, read_file
from x2gofleet_workers.ssh.key_formats import KeyProblem, parse_key

MAX_FILE_BYTES = 1024 * 1024
_OTHERS = 0o077

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoginKey:
    """A private key, and the same with its certificate, which is tried first."""

    key: paramiko.PKey
    certified: paramiko.PKey | None = None

    @property
    def forms(self) -> tuple[paramiko.PKey, ...]:
        """What to log in with, in this order."""
        return (self.key,) if self.certified is None else (self.certified, self.key)


class KeyFiles:
    """Reads key files. Thread-safe. What is odd about one that can be used is logged once for each content."""

    def __init__(self, warn: Callable[[str], None] = log.warning) -> None:
        self._warn = warn
        self._lock = threading.Lock()
        self._warned: set[tuple[object, ...]] = set()

    def load(self, path: str) -> LoginKey:
        """Return the key in a file; raises SetupError that says what is wrong with it and how to fix it."""
        try:
            content = read_file(path, MAX_FILE_BYTES)
            key = parse_key(content.data, path)
        except FileNotFoundError:
            raise SetupError(f"the key file {path} does not exist", mend="correct key_file in fleet.toml") from None
        except NotUsable as exc:
            raise SetupError(
                f"the key file {path} can't be read: it is {exc}", mend="set key_file to the file of a private key"
            ) from exc
        except OSError as exc:
            raise SetupError(
                f"the key file {path} can't be read: {exc.strerror}", mend=f"let uid {os.geteuid()} read it"
            ) from exc
        except KeyProblem as exc:
            raise SetupError(f"the key file {path} {exc.reason}", mend=exc.remedy) from exc
        self._see_mode(path, content)
        return LoginKey(key, self._certified(key, f"{path}-cert.pub"))

    def _see_mode(self, path: str, content: FileContent) -> None:
        # As ssh, which refuses such a key: of another owner's file, the mode says nothing of its users.
        if content.owner == os.geteuid() and content.mode & _OTHERS:
            self._warn_once(
                (path, content.identity),
                f"the key file {path} can be read by others on this machine, and ssh would refuse it: "
                f"chmod 600 {shlex.quote(path)}",
            )

    def _certified(self, key: paramiko.PKey, path: str) -> paramiko.PKey | None:
        try:
            content = read_file(path, MAX_FILE_BYTES)
        except FileNotFoundError:
            return None
        except (OSError, NotUsable) as exc:
            if exhausted(exc) is not None:
                raise
            self._warn_once((path,), f"the certificate {path} is not used: {describe(exc)}")
            return None
        try:
            certified = copy.copy(key)
            certified.load_certificate(paramiko.Message(certificate_of(content.data, key)))
        except Exception as exc:
            # Of any class: paramiko reads a file of anybody's making.
            self._warn_once((path, content.identity), f"the certificate {path} is not used: {describe(exc)}")
            return None
        return certified

    def _warn_once(self, what: tuple[object, ...], text: str) -> None:
        with self._lock:
            if what in self._warned:
                return
            self._warned.add(what)
        self._warn(text)


def certificate_of(data: bytes, key: paramiko.PKey) -> bytes:
    """Return the blob of the certificate in a -cert.pub file; raises BadKey where it is not one of ``key``."""
    words = data.split(None, 2)
    name = words[0].decode("ascii", "backslashreplace") if words else ""
    if len(words) < 2 or not name.endswith(CERTIFICATE_SUFFIX):
        raise BadKey("the file has no certificate")
    blob = strict_base64(words[1])
    reader = WireReader(blob)
    plain = plain_type(reader.text())
    reader.string()
    if take_key(plain, reader).blob != key.asbytes():
        raise BadKey("it is the certificate of another key")
    return blob


def load_key(path: str) -> LoginKey:
    """Return the key in a file, as ``KeyFiles.load``."""
    return KeyFiles().load(path)
