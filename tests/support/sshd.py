"""A real sshd on loopback with host keys of the caller's choice, and what the real ssh says of it; needs no root."""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from x2gofleet_workers.ssh.deadlines import Deadline

from tests.waiting import wait_until

SSHD = "/usr/sbin/sshd"
# Not nobody, whom nss-systemd has as a locked account.
ORDINARY = "daemon"
# ssh's connection, whatever name it was given.
_PIPE = """
import os, socket, sys, threading
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def back():
    while data := sock.recv(65536):
        os.write(1, data)
    os._exit(0)
threading.Thread(target=back, daemon=True).start()
while data := os.read(0, 65536):
    sock.sendall(data)
sock.shutdown(socket.SHUT_WR)
threading.Event().wait(10)
"""
_REFUSED = re.compile(r"Host key verification failed|no matching host key type|REMOTE HOST IDENTIFICATION|revoked")


def missing_ssh() -> str:
    """What this machine lacks for a real sshd and ssh, "" when nothing."""
    lacking = [name for name in ("ssh", "ssh-keygen", "ssh-keyscan") if shutil.which(name) is None]
    if not Path(SSHD).exists():
        lacking.append(SSHD)
    return f"not installed: {', '.join(lacking)} (openssh-server, openssh-client)" if lacking else ""


def login_name() -> str:
    """The account that a server of ``running_sshd`` lets in: its own."""
    # As root sshd wants a directory below /run.
    return ORDINARY if os.geteuid() == 0 else getpass.getuser()


@dataclass(slots=True)
class Sshd:
    """A running sshd; ``authorized_keys`` may be written to at any time."""

    port: int
    folder: Path
    user: str
    authorized_keys: Path
    log: Path


@contextlib.contextmanager
def running_sshd(
    host_keys: Sequence[Path],
    *settings: str,
    certificate: bytes = b"",
    authority: bytes = b"",
    authorized: Sequence[str] = (),
) -> Iterator[Sshd]:
    """Run sshd with host keys (files with a private key) and a certificate of one, until the end of the block.

    It lets in the ``authorized`` keys, and certificates of an ``authority``; ``settings`` are lines of sshd_config.
    """
    folder = Path(tempfile.mkdtemp(prefix="x2gofleet-sshd-"))
    try:
        folder.chmod(0o755)
        keys = []
        for number, path in enumerate(host_keys):
            keys.append(folder / f"host_key_{number}")
            keys[-1].touch(mode=0o600)
            keys[-1].write_bytes(path.read_bytes())
        if certificate:
            (folder / "host-cert.pub").write_bytes(certificate)
            settings = (*settings, f"HostCertificate {folder / 'host-cert.pub'}")
        if authority:
            (folder / "ca.pub").write_bytes(authority)
            settings = (*settings, f"TrustedUserCAKeys {folder / 'ca.pub'}")
        authorized_keys = folder / "authorized_keys"
        authorized_keys.write_text("".join(f"{line}\n" for line in authorized))
        server = Sshd(0, folder, login_name(), authorized_keys, folder / "log")
        config = folder / "config"
        config.write_text("\n".join([*(f"HostKey {key}" for key in keys), *_settings(server), *settings]) + "\n")
        if os.geteuid() == 0:
            owner = pwd.getpwnam(ORDINARY)
            for path in (folder, *folder.iterdir()):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        with _process(server, config) as process:
            wait_until(
                lambda: "Server listening" in _log(server) or process.poll() is not None, "sshd to listen", seconds=60
            )
            assert process.poll() is None, _log(server)
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settings(server: Sshd) -> list[str]:
    return [
        "ListenAddress 127.0.0.1",
        f"AuthorizedKeysFile {server.authorized_keys}",
        "PidFile none",
        "StrictModes no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "UsePAM no",
        "UseDNS no",
        "MaxStartups 1000",
        "MaxAuthTries 20",
        "LogLevel VERBOSE",
    ]


@contextlib.contextmanager
def _process(server: Sshd, config: Path) -> Iterator[subprocess.Popen[bytes]]:
    server.port = _free_port()
    as_whom: dict[str, Any] = {}
    if os.geteuid() == 0:
        as_whom = {"user": ORDINARY, "group": pwd.getpwnam(ORDINARY).pw_gid, "extra_groups": []}
    process = subprocess.Popen(
        [SSHD, "-D", "-f", str(config), "-p", str(server.port), "-E", str(server.log)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **as_whom,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def _log(server: Sshd) -> str:
    return server.log.read_text(errors="replace") if server.log.exists() else ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def keygen(path: Path, *arguments: str) -> Path:
    """Make a key pair by ssh-keygen, without a passphrase and comment unless said; returns ``path``."""
    passphrase = () if "-N" in arguments else ("-N", "")
    subprocess.run(
        ["ssh-keygen", "-q", *passphrase, "-C", "", *arguments, "-f", str(path)],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    return path


@dataclass(frozen=True, slots=True)
class Said:
    """What ssh came to: whether it took the host key, and whether it could log in."""

    host_key: bool
    login: bool
    text: str


def ssh(
    server: Sshd, known_hosts: str, key: Path, *, host: str = "127.0.0.1", port: int | None = None, seconds: float = 60
) -> Said | None:
    """Log in by the real ssh as if ``server`` were at ``host`` and ``port``; None where ssh waits for ever."""
    pipe = server.folder / "pipe.py"
    pipe.write_text(_PIPE)
    options = {
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": known_hosts,
        "GlobalKnownHostsFile": "/dev/null",
        "UpdateHostKeys": "no",
        "PreferredAuthentications": "publickey",
        "ProxyCommand": f"{sys.executable} {pipe} {server.port}",
    }
    command = ["ssh", "-F", "none", *(f"-o{name}={value}" for name, value in options.items()), "-i", str(key)]
    command += ["-p", str(server.port if port is None else port), "-l", server.user, host, "true"]
    environment = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired:
        return None
    text = ended.stderr.decode(errors="replace")
    # The account's shell may be nologin: only 255 is ssh's own.
    login = ended.returncode != 255
    if not login and not _REFUSED.search(text):
        assert "Permission denied" in text, text
    return Said(not _REFUSED.search(text), login, text)


class OneAddress:
    """A resolver that has every name at one place."""

    def __init__(self, port: int) -> None:
        self._port = port

    def addresses(self, host: str, port: int, *, timeout_seconds: float) -> list[Any]:
        """Return the place, whatever is looked for."""
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", self._port))]


def patient() -> Deadline:
    """A deadline for a busy machine."""
    return Deadline(60)
