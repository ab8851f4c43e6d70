"""The server's side of the probe protocol, from one request to the frames that answer it; no I/O."""

from __future__ import annotations

import random
from collections.abc import Callable

from x2gofleet.errors import NotProven
from x2gofleet_workers.probe.encoding import encode_done, encode_refusal, encode_section
from x2gofleet_workers.probe.frames import HEADER_BYTES
from x2gofleet_workers.probe.hello import Hello
from x2gofleet_workers.probe.records import MountRecord
from x2gofleet_workers.probe.requests import Listing, Request, Scope, SectionKind, SectionRequest
from x2gofleet_workers.probe.sections import ErrorCode, Section, SectionError, SectionStatus
from x2gofleet_workers.simulator.counters import Counters
from x2gofleet_workers.simulator.faults import Fault, FaultKind, garbage
from x2gofleet_workers.simulator.fleet import ServerModel
from x2gofleet_workers.simulator.users import Login

BACKEND = "sqlite"
NOBODY = Login(username="nobody", uid=65534)
_ROOT_ONLY = frozenset({SectionKind.SESSIONS, SectionKind.MOUNTS, SectionKind.REFERENCE})
_SAME_KEPT = 8

UNREADABLE_MOUNTS = Section(
    kind=SectionKind.MOUNTS,
    status=SectionStatus.ERROR,
    error=SectionError(ErrorCode.UNREADABLE, "unable to open database file"),
)


class ProbeAnswers:
    """One started probe: as whom it runs, and which signature it handed out last.

    ``watching`` says whether the request that was answered last asks for a notice of the next change.

    :param login: as whom the probe runs.
    :param counters: where its polls are counted.
    :param draw: randomness for the garbage fault.
    """

    def __init__(
        self,
        *,
        model: ServerModel,
        login: Login,
        counters: Counters,
        clock: Callable[[], float],
        draw: random.Random,
    ) -> None:
        self.watching = False
        self._model, self._login, self._counters, self._clock, self._draw = (
            model,
            login,
            counters,
            clock,
            draw,
        )
        self._issued = 0
        self._same: dict[bytes, tuple[bool, tuple[bytes, ...]]] = {}

    def hello(self, fault: Fault | None) -> bytes:
        """Return what a probe prints first."""
        login = self._shown_login(fault)
        return Hello(login.uid, login.username, self._model.server_id).encode()

    def answer(self, number: int, payload: bytes, fault: Fault | None) -> bytes:
        """Return the whole answer to request ``number``."""
        self.watching = False
        if fault is not None and fault.kind is FaultKind.GARBAGE:
            self._counters.garbage_answers += 1
            return garbage(number, self._counters.garbage_answers, self._draw)
        # The unchanged poll is nearly every poll of a load test: nothing is built that was built before.
        if fault is None and payload in self._same and self._issued == self._model.revision:
            self._counters.same_answers += 1
            self.watching, pieces = self._same[payload]
            return (b"%08x" % number).join(pieces)
        try:
            request = Request.decode(payload)
        except NotProven as exc:
            self._counters.error_answers += 1
            return encode_refusal(ErrorCode.REQUEST, str(exc)[:400], number)
        self.watching = request.watch
        login = self._shown_login(fault)
        lists_nothing = fault is not None and fault.kind is FaultKind.EMPTY
        is_unreadable = fault is not None and fault.kind is FaultKind.MOUNTS
        sections = [
            UNREADABLE_MOUNTS
            if is_unreadable and each.kind is SectionKind.MOUNTS
            else self._section(each, request.scope, login, lists_nothing)
            for each in request.sections
        ]
        frames = [encode_section(section, request.scope, number) for section in sections]
        frames.append(encode_done(login.uid, self._model.server_id, number))
        if len(sections) == 1 and sections[0].same and len(self._same) < _SAME_KEPT:
            self._same[payload] = (request.watch, _numberless(sections[0], request.scope, frames[-1]))
        return b"".join(frames)

    def _shown_login(self, fault: Fault | None) -> Login:
        is_empty = fault is not None and fault.kind is FaultKind.EMPTY
        return NOBODY if is_empty and self._login.is_root else self._login

    def _section(self, request: SectionRequest, scope: Scope, login: Login, lists_nothing: bool) -> Section:
        if scope is Scope.SERVER and request.kind in _ROOT_ONLY:
            return self._of_the_server(request, login)
        model = self._model
        match request.kind:
            case SectionKind.LOAD:
                return Section(kind=request.kind, stdout=model.load_stdout(self._clock()))
            case SectionKind.DESKTOPS:
                return self._desktops(request, login, lists_nothing)
            case SectionKind.MOUNTS:
                mounts = () if lists_nothing else model.mounts(username=login.username)
                stdout = "".join("|".join(mount) + "\n" for mount in mounts).encode()
            case _:
                self._counters.full_listings += 1
                stdout = b"" if lists_nothing else self._user_sessions(login.username)
        return Section(kind=request.kind, exit_status=0, stdout=stdout)

    def _user_sessions(self, username: str) -> bytes:
        now = self._clock()
        return self._model.user_listing(username, now) + self._model.shadow_listing(username, now)

    def _desktops(self, request: SectionRequest, login: Login, lists_nothing: bool) -> Section:
        username = request.user or login.username
        if not login.is_root and username != login.username:
            said = "su: Authentication failure"
            return Section(kind=request.kind, user=request.user, exit_status=1, stderr=said)
        stdout = b"" if lists_nothing else self._model.desktops(username)
        return Section(kind=request.kind, user=request.user, exit_status=0, stdout=stdout)

    def _of_the_server(self, request: SectionRequest, login: Login) -> Section:
        if not login.is_root:
            error = SectionError(ErrorCode.NOT_ROOT, f"uid {login.uid} is not root")
            return Section(kind=request.kind, status=SectionStatus.ERROR, error=error)
        model, host = self._model, self._model.server_id
        if request.kind is SectionKind.MOUNTS:
            mounts = tuple(MountRecord(b"", *(column.encode() for column in mount)) for mount in model.mounts())
            return Section(kind=request.kind, backend=BACKEND, host=host, mounts=mounts)
        now = self._clock()
        if request.kind is SectionKind.REFERENCE:
            self._counters.references += 1
            return Section(
                kind=request.kind,
                backend=BACKEND,
                host=host,
                exit_status=0,
                records=model.records(now),
                lines=model.listing(now),
            )
        return self._server_sessions(request, now)

    def _server_sessions(self, request: SectionRequest, now: float) -> Section:
        model, revision = self._model, self._model.revision
        signature, host = str(revision), self._model.server_id
        if request.signature == signature and self._issued == revision:
            self._counters.same_answers += 1
            return Section(
                kind=request.kind, status=SectionStatus.SAME, backend=BACKEND, host=host, signature=signature
            )
        self._issued = revision
        self._same.clear()
        self._counters.full_listings += 1
        is_command = request.listing is Listing.COMMAND
        return Section(
            kind=request.kind,
            backend=BACKEND,
            host=host,
            signature=signature,
            source=request.listing,
            exit_status=0 if is_command else None,
            records=model.records(now),
            lines=model.listing(now) if is_command else b"",
        )


def _numberless(section: Section, scope: Scope, done: bytes) -> tuple[bytes, ...]:
    """Return the answer of one section in pieces; between each two belongs the number of the request."""
    frames = [*_split(encode_section(section, scope, 0)), done]
    pieces = [frames[0][:1]]
    for frame, following in zip(frames, [*frames[1:], b""], strict=True):
        pieces.append(frame[9:] + following[:1])
    return tuple(pieces)


def _split(stream: bytes) -> list[bytes]:
    frames: list[bytes] = []
    while stream:
        end = HEADER_BYTES + int(stream[9:HEADER_BYTES], 16)
        frames.append(stream[:end])
        stream = stream[end:]
    return frames
