"""Requests: what can be asked, and how it is sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from x2gofleet_workers.probe.frames import MAX_WORDS_BYTES
from x2gofleet_workers.probe.requests import Listing, Request, Scope, SectionKind, SectionRequest

from tests.support.probe_streams import EVERYTHING, Conversation, conversations
from x2gofleet.errors import NotProven
from x2gofleet.kinds import Kind

LOAD = SectionRequest(SectionKind.LOAD)


@settings(deadline=None)
@given(conversations())
def test_every_request_comes_back_as_it_was_sent(talk: Conversation) -> None:
    assert Request.decode(talk.request.encode()) == talk.request


def test_a_request_as_it_is_sent() -> None:
    assert EVERYTHING.request.encode().split(b"\n") == [
        b"scope=server seconds=9 watch=1",
        b"section=load",
        b"section=sessions signature=2f.1 listing=command",
        b"section=mounts",
        b"section=desktops user=DOMAIN%5Calice%2Bx",
        b"section=reference",
        b"section=desktops",
    ]
    assert Request(Scope.USER, (LOAD,), 600).encode() == b"scope=user seconds=600\nsection=load"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Request(Scope.SERVER, (LOAD,), 0), "seconds from 1 to 600, got 0"),
        (lambda: Request(Scope.SERVER, (LOAD,), 601), "seconds from 1 to 600, got 601"),
        (lambda: Request(Scope.SERVER, (), 5), "at least one section"),
        (lambda: Request(Scope.USER, (SectionRequest(SectionKind.REFERENCE),), 5), "no reference"),
        (lambda: Request(Scope.USER, (SectionRequest(SectionKind.DESKTOPS, user="bob"),), 5), "no desktops of another"),
        (lambda: Request(Scope.SERVER, (LOAD,) * 6000, 5), f"at most {MAX_WORDS_BYTES} bytes"),
        (lambda: SectionRequest(SectionKind.SESSIONS, ""), "a signature of 1 to 64"),
        (lambda: SectionRequest(SectionKind.SESSIONS, "a" * 65), "a signature of 1 to 64"),
        (lambda: SectionRequest(SectionKind.SESSIONS, "a b"), "a signature of 1 to 64"),
        (lambda: SectionRequest(SectionKind.LOAD, "a"), "load has no signature"),
        (lambda: SectionRequest(SectionKind.MOUNTS, listing=Listing.COMMAND), "mounts has no signature and no listing"),
        (lambda: SectionRequest(SectionKind.LOAD, user="bob"), "load has no user"),
        (lambda: SectionRequest(SectionKind.DESKTOPS, user="b\0b"), "control character"),
        (lambda: Request(Scope.SERVER, (SectionRequest(SectionKind.DESKTOPS, user="\ud800"),), 5), "cannot be printed"),
    ],
)
def test_what_cannot_be_asked_is_refused(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", "expected key=value"),
        (b"scope=server seconds=5", "at least one section"),
        (b"scope=server\nsection=load", "seconds as a number .*none"),
        (b"seconds=5\nsection=load", "a request"),
        (b"scope=everyone seconds=5\nsection=load", "a request"),
        (b"scope=server seconds=0\nsection=load", "seconds from 1 to 600"),
        (b"scope=server seconds=601\nsection=load", "seconds as a number from 0 to 600"),
        (b"scope=server seconds=5 watch=2\nsection=load", "watch as a number from 0 to 1"),
        (b"scope=server seconds=5 shell=sh\nsection=load", "got 'shell'"),
        (b"scope=server seconds=5\n", "expected key=value"),
        (b"scope=server seconds=5\nsection=load\n", "expected key=value"),
        (b"scope=server seconds=5\nsection=frobnicate", "unknown section; known: sessions, desktops"),
        (b"scope=server seconds=5\nsignature=a", "unknown section"),
        (b"scope=server seconds=5\nsection=load user=bob", "section load: expected words of section, got 'user'"),
        (b"scope=server seconds=5\nsection=sessions signature=%20 listing=records", "a signature of 1 to 64"),
        (b"scope=server seconds=5\nsection=sessions listing=shell", "section sessions"),
        (b"scope=server seconds=5\nsection=desktops user=%FF", "section desktops"),
        (b"scope=user seconds=5\nsection=desktops user=bob", "no desktops of another user"),
        (b"scope=user seconds=5\nsection=reference", "no reference"),
    ],
)
def test_what_is_not_a_request_is_not_proven(payload: bytes, text: str) -> None:
    with pytest.raises(NotProven, match=text):
        Request.decode(payload)


def test_sections_give_the_kinds_of_snapshots_and_the_reference_none() -> None:
    assert {kind.kind for kind in SectionKind} == {*Kind, None}
    assert SectionKind.REFERENCE.kind is None
