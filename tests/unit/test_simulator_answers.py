"""A simulated probe without SSH: answers that the worker believes, garbage that it refuses, and what starts it."""

from __future__ import annotations

import random

import pytest
from x2gofleet_workers.probe.delivery import start_command
from x2gofleet_workers.probe.proof import prove_desktops, prove_mounts, prove_sessions
from x2gofleet_workers.probe.protocol import (
    AnswerDecoder,
    ErrorCode,
    Listing,
    Request,
    Scope,
    Section,
    SectionKind,
    SectionRequest,
)
from x2gofleet_workers.probe.reference import Agreement, compare_with_reference
from x2gofleet_workers.simulator.answers import ProbeAnswers
from x2gofleet_workers.simulator.commands import Output, ProbeStart, probe_start
from x2gofleet_workers.simulator.counters import Counters
from x2gofleet_workers.simulator.faults import Fault, FaultKind, garbage
from x2gofleet_workers.simulator.fleet import ServerModel
from x2gofleet_workers.simulator.users import ROOT, Login

from tests.support.user_names import NAMES, UserName, label
from x2gofleet.errors import NotProven

START = 1_763_800_000.0


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def model(clock: Clock) -> ServerModel:
    return ServerModel(server_id="ts01", users=("alice", "bob"), desktops=("DMATE",), seed=1, clock=clock)


LISTED = SectionRequest(SectionKind.SESSIONS)


class Asked:
    """A probe without SSH, and the worker's end of its conversation."""

    def __init__(self, model: ServerModel, clock: Clock, login: Login = ROOT) -> None:
        self.counters = Counters()
        self.answers = ProbeAnswers(
            model=model, login=login, counters=self.counters, clock=clock, draw=random.Random(0)
        )
        self.decoder: AnswerDecoder | None = None

    def raw(self, request: Request, fault: Fault | None = None) -> bytes:
        self.decoder = AnswerDecoder(request, after=self.decoder)
        return self.answers.answer(self.decoder.number, request.encode(), fault)

    def poll(
        self, *sections: SectionRequest, scope: Scope = Scope.SERVER, fault: Fault | None = None
    ) -> tuple[Section, ...]:
        raw = self.raw(Request(scope, sections, 5), fault)
        assert self.decoder is not None
        found = tuple(self.decoder.feed(raw))
        assert self.decoder.done
        return found

    def listing(self, signature: str = "-", fault: Fault | None = None) -> Section:
        (section,) = self.poll(SectionRequest(SectionKind.SESSIONS, signature), fault=fault)
        return section


@pytest.fixture
def probe(model: ServerModel, clock: Clock) -> Asked:
    return Asked(model, clock)


def test_an_old_signature_is_never_confirmed_after_a_newer_one_was_given(model: ServerModel, probe: Asked) -> None:
    old = probe.listing().signature
    assert probe.listing(old).same
    model.start_session("alice", ready=True)
    new = probe.listing()
    assert not new.same
    assert not probe.listing(old).same
    assert probe.listing(new.signature).same


def test_the_short_answer_and_the_long_way_to_it_are_the_same(probe: Asked) -> None:
    unchanged = SectionRequest(SectionKind.SESSIONS, probe.listing().signature)
    first = probe.poll(unchanged)
    for _ in range(3):
        assert probe.poll(unchanged) == first
    assert first[0].same
    assert (probe.counters.full_listings, probe.counters.same_answers) == (1, 4)
    long_way, _ = probe.poll(unchanged, SectionRequest(SectionKind.LOAD))
    assert long_way == first[0]


def test_the_short_answer_is_not_given_where_the_server_lists_nothing(probe: Asked) -> None:
    signature = probe.listing().signature
    assert probe.listing(signature).same
    section = probe.listing(signature, Fault(FaultKind.EMPTY))
    assert section.error is not None
    assert section.error.code is ErrorCode.NOT_ROOT
    assert probe.decoder is not None
    assert probe.decoder.uid == 65534


def test_a_request_for_a_notice_is_known_after_long_and_short_answers(probe: Asked) -> None:
    wanted = Request(Scope.SERVER, (SectionRequest(SectionKind.SESSIONS, probe.listing().signature),), 5, watch=True)
    for _ in range(3):
        raw = probe.raw(wanted)
        assert probe.decoder is not None
        list(probe.decoder.feed(raw))
        assert probe.answers.watching
    probe.listing()
    assert not probe.answers.watching


def test_the_reference_agrees_with_the_records(model: ServerModel, probe: Asked) -> None:
    for user in ("alice", "bob"):
        model.suspend(model.start_session(user, ready=True))
        model.start_session(user, "RPUBLISHED", ready=True)
    model.start_session("alice")
    model.end(model.start_session("bob", ready=True))
    model.start_shadow("bob", model.start_session("alice", ready=True), ready=True)
    (section,) = probe.poll(SectionRequest(SectionKind.REFERENCE))
    assert len(section.records) == 8
    assert compare_with_reference(section).agreement is Agreement.EQUAL


@pytest.mark.parametrize("listing", Listing)
def test_records_and_the_command_prove_the_same_rows(
    model: ServerModel, probe: Asked, clock: Clock, listing: Listing
) -> None:
    for user in ("alice", "bob"):
        model.suspend(model.start_session(user, ready=True))
        model.start_session(user)
    (section,) = probe.poll(SectionRequest(SectionKind.SESSIONS, listing=listing))
    proven = prove_sessions(section, scope="server", login="root", hostname="ts01")
    assert proven.stdout == model.listing(clock.now)
    assert (proven.rejected, proven.source) == ((), listing)


def test_mounts_are_proven(model: ServerModel, probe: Asked) -> None:
    name = model.start_session("alice", ready=True, mounts=[("127.0.0.1", "/tmp/a b")])
    (section,) = probe.poll(SectionRequest(SectionKind.MOUNTS))
    assert prove_mounts(section, scope="server", login="root").stdout == f"{name}|127.0.0.1|/tmp/a b\n".encode()


def test_a_bad_request_is_refused_by_its_number(probe: Asked) -> None:
    decoder = AnswerDecoder(Request(Scope.SERVER, (LISTED,), 5))
    with pytest.raises(NotProven, match=r"refusal of the request .request.: unknown section"):
        list(decoder.feed(probe.answers.answer(1, b"scope=server seconds=5\nsection=frobnicate", None)))
    assert probe.counters.error_answers == 1


@pytest.mark.parametrize("turn", range(5))
@pytest.mark.parametrize("kind", SectionKind)
def test_garbage_is_never_an_answer(turn: int, kind: SectionKind) -> None:
    for number in (1, 2, 0xFFFFFFFF):
        first = AnswerDecoder(Request(Scope.SERVER, (SectionRequest(kind),), 5))
        first.number = number
        with pytest.raises(NotProven):
            list(first.feed(garbage(number, turn, random.Random(turn))))


def test_watchers_are_called_at_each_change_until_they_leave(model: ServerModel) -> None:
    calls: list[int] = []

    def changed() -> None:
        calls.append(model.revision)

    model.watch(changed)
    name = model.start_session("alice", ready=True)
    assert calls
    assert calls == sorted(calls)
    seen = len(calls)
    model.unwatch(changed)
    model.suspend(name)
    assert len(calls) == seen


@pytest.mark.parametrize(
    ("command", "username", "found"),
    [
        (start_command("auto", as_root=False), "root", ProbeStart(ROOT, True)),
        (start_command("auto", as_root=True), "x2gofleet", ProbeStart(ROOT, True)),
        (start_command("auto", as_root=False), "alice", ProbeStart(Login.named("alice"), True)),
        (start_command("wrapper", as_root=True), "x2gofleet", ProbeStart(ROOT, False)),
        (start_command("wrapper", as_root=True), "alice", ProbeStart(Login.named("alice"), False)),
        ("sudo -n x2gofleet-probe", "x2gofleet", ProbeStart(ROOT, False)),
        ("x2golistsessions_root", "root", None),
        ("perl -e 'print 1'; x2golistsessions", "root", None),
        ("echo x2gofleet-probe", "root", None),
    ],
)
def test_what_starts_a_probe(command: str, username: str, found: ProbeStart | None) -> None:
    assert probe_start(command, Login.named(username)) == found


def test_a_probe_that_may_not_become_root_is_refused_by_sudo() -> None:
    refused = probe_start(start_command("auto", as_root=True), Login.named("alice"))
    assert isinstance(refused, Output)
    assert (refused.stderr, refused.exit_status) == (b"sudo: a password is required\n", 1)


@pytest.mark.parametrize("user", NAMES, ids=label)
def test_users_of_any_name_are_listed_by_it(clock: Clock, user: UserName) -> None:
    model = ServerModel(server_id="ts01", users=(user.text,), desktops=("DMATE",), seed=1, clock=clock)
    name = model.start_session(user.text, "DMATE", ready=True)
    probe = Asked(model, clock)
    sessions, desktops = probe.poll(LISTED, SectionRequest(SectionKind.DESKTOPS, user=user.text))
    whole = prove_sessions(sessions, scope="server", login="root")
    assert (whole.stdout.count(f"|{user.text}|".encode()), whole.rejected) == (1, ())
    assert prove_desktops(desktops, login="root").stdout.startswith(f"{user.text}@:".encode())

    own = Asked(model, clock, Login.named(user.text))
    (listed,) = own.poll(LISTED, scope=Scope.USER)
    found = prove_sessions(listed, scope="user", login=user.text, user=user.text)
    assert name.encode() in found.stdout
