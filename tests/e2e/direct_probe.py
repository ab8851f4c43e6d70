"""The probe, run on a real server past sshd, and asked one request at a time."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

from x2gofleet_workers.probe.delivery import probe_text
from x2gofleet_workers.probe.proof import Proven, prove_sessions
from x2gofleet_workers.probe.protocol import (
    AnswerDecoder,
    HelloDecoder,
    Listing,
    Request,
    Scope,
    Section,
    SectionKind,
    SectionRequest,
)

from .realserver import RealX2GoServer

PATH_ON_SERVER = "/root/x2gofleet-probe"


class DirectProbe:
    """A probe that runs as ``user`` on a real server; use as a context manager."""

    def __init__(self, server: RealX2GoServer, *, user: str = "root", text: bytes | None = None) -> None:
        self.server, self.user = server, user
        self._text = text or probe_text()
        self._decoder: AnswerDecoder | None = None

    def __enter__(self) -> Self:
        place = PATH_ON_SERVER if self.user == "root" else f"/home/{self.user}/x2gofleet-probe"
        path = self.server.path(place)
        path.write_bytes(self._text)
        path.chmod(0o755)
        namespace = self.server.namespace
        self.process = subprocess.Popen(
            namespace.enter(["perl", place], user=self.user),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=namespace.login_environment(self.user),
        )
        decoder, self.hello = HelloDecoder(), None
        while self.hello is None:
            self.hello = decoder.feed(self._read(30.0))
        return self

    def __exit__(self, *exc: object) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGCONT)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process.stdout.close()
        self.process.stderr.close()

    def _read(self, seconds: float) -> bytes:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        if not ready:
            raise TimeoutError("the probe did not answer")
        data = os.read(self.process.stdout.fileno(), 65536)
        if not data:
            raise EOFError("the probe ended")
        return data

    def send(
        self,
        *sections: SectionRequest,
        scope: Scope = Scope.SERVER,
        seconds: int = 20,
        watch: bool = False,
        each_poll: bool = False,
    ) -> None:
        """Send a request; ``receive`` returns its sections."""
        self._decoder = AnswerDecoder(Request(scope, sections, seconds, watch, each_poll), after=self._decoder)
        assert self.process.stdin is not None
        self.process.stdin.write(self._decoder.request_frame())
        self.process.stdin.flush()

    def receive(self, *, seconds: float = 60.0) -> list[Section]:
        """Return the sections of the answer to the request that was sent."""
        decoder, found = self._decoder, []
        assert decoder is not None
        until = time.monotonic() + seconds
        while not decoder.done:
            found += decoder.feed(self._read(until - time.monotonic()))
        return found

    def has_answer(self) -> bool:
        """Whether ``receive`` would find something at once."""
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def ask(self, *sections: SectionRequest, scope: Scope = Scope.SERVER, seconds: int = 20) -> list[Section]:
        """Send a request and return its sections."""
        self.send(*sections, scope=scope, seconds=seconds)
        return self.receive()

    def sessions(self, signature: str = "-", *, listing: Listing = Listing.RECORDS) -> Section:
        """Return the section of the server's sessions."""
        (section,) = self.ask(SectionRequest(SectionKind.SESSIONS, signature, listing))
        return section

    def proven(self) -> Proven:
        """Return what may be stored of the server's sessions; raises a PollError."""
        return prove_sessions(self.sessions(), scope="server", login="root", user="root")

    def names(self) -> set[str]:
        """Return the names of the sessions that may be stored; raises a PollError."""
        return {line.split(b"|")[1].decode() for line in self.proven().stdout.splitlines()}

    def notice(self, seconds: float = 30.0) -> None:
        """Return when the probe says that sessions changed since the last answer."""
        decoder = self._decoder
        assert decoder is not None
        seen = len(decoder.notices)
        while len(decoder.notices) == seen:
            assert list(decoder.feed(self._read(seconds))) == []

    def pids(self) -> list[int]:
        """Return the process ids, on this machine, of the probe and of its reader."""
        return [each.pid for each in self.server.processes() if "x2gofleet-probe" in each.command]

    def reader_pid(self) -> int:
        """Return the process id, on this machine, of the reader: the younger of the two."""
        return max(
            self.pids(), key=lambda pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        )
