"""A probe's channel over fake bytes: the hello, requests and answers, and every way in which they can end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from x2gofleet_workers.probe.delivery import first_input
from x2gofleet_workers.probe.encoding import encode_done, encode_notice, encode_section
from x2gofleet_workers.probe.hello import MAX_NOISE_BYTES, Hello
from x2gofleet_workers.probe.protocol import AnswerDecoder, Request, Scope, Section, SectionKind, SectionRequest
from x2gofleet_workers.ssh import Deadline, ProbeChannel

from x2gofleet.errors import CommandMissing, ConnectionLost, LoginEnded, NotProven

HELLO = Hello(0, "root", "ts01")
REQUEST = Request(Scope.SERVER, (SectionRequest(SectionKind.LOAD),), 9)
LOAD = Section(kind=SectionKind.LOAD, stdout=b"loadavg 0 0 0\n")


class FakeBytes:
    """A command whose output is given: each piece is received by itself, then comes the end."""

    def __init__(self, pieces: Sequence[bytes], *, status: int = 0, stderr: bytes = b"", over: bool = False) -> None:
        self._pieces, self._status, self.stderr, self._over = list(pieces), status, stderr, over
        self.sent = b""
        self.closed = False

    @contextmanager
    def within(self, deadline: Deadline) -> Iterator[None]:
        yield

    def send(self, data: bytes, deadline: Deadline) -> None:
        if self._over:
            raise OSError("Socket is closed")
        self.sent += data

    def receive(self, deadline: Deadline) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def on_input(self, call: Callable[[], None]) -> None:
        self.arrives = call

    def has_input(self) -> bool:
        return bool(self._pieces)

    def exit_status(self, deadline: Deadline) -> int:
        return self._status

    def forget_stderr(self) -> None:
        self.stderr = b""

    def close(self) -> None:
        self.closed = True


def greeted(*pieces: bytes, **more: object) -> tuple[ProbeChannel, FakeBytes]:
    fake = FakeBytes(pieces, **more)  # type: ignore[arg-type]
    return ProbeChannel.greet(fake, "root", Deadline(9)), fake


def answer(number: int = 1, uid: int = 0) -> bytes:
    return encode_section(LOAD, Scope.SERVER, number) + encode_done(uid, "ts01", number)


def asked(probe: ProbeChannel) -> list[Section]:
    decoder = AnswerDecoder(REQUEST, after=probe.decoder)
    return list(probe.exchange(decoder, Deadline(9)))


def test_the_probes_text_is_sent_before_the_hello_is_read() -> None:
    fake = FakeBytes([HELLO.encode()])
    probe = ProbeChannel.greet(fake, "root", Deadline(9), first_input=first_input("auto"))
    assert (fake.sent[:1], probe.hello) == (b"S", HELLO)
    assert fake.sent == first_input("auto")
    assert first_input("wrapper") == b""


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_noise_before_the_hello_is_passed_over_and_what_follows_is_kept(size: int) -> None:
    stream = b"Welcome!\nx2gofleet-probe is here\n" + b"\xff" * 1000 + HELLO.encode() + answer()
    probe, fake = greeted(*(stream[at : at + size] for at in range(0, len(stream), size)))
    assert probe.hello == HELLO
    assert asked(probe) == [LOAD]
    assert fake.sent == AnswerDecoder(REQUEST).request_frame()


def test_endless_noise_is_cut_off() -> None:
    with pytest.raises(NotProven):
        greeted(*[b"noise\n" * 1000] * (MAX_NOISE_BYTES // 5000))


def test_a_login_that_ends_is_told_by_what_it_said_though_it_takes_no_input() -> None:
    fake = FakeBytes([], status=127, stderr=b"zsh:1: command not found: perl\n", over=True)
    with pytest.raises(CommandMissing, match="perl"):
        ProbeChannel.greet(fake, "root", Deadline(9), first_input=b"S")
    with pytest.raises(LoginEnded, match="no more processes"):
        greeted(b"no more processes\n", status=1)


def test_one_request_after_the_other() -> None:
    probe, fake = greeted(HELLO.encode(), answer(1), answer(2))
    assert probe.idle
    assert asked(probe) == [LOAD]
    assert asked(probe) == [LOAD]
    assert probe.idle
    assert fake.sent.count(b"scope=server") == 2


def test_sections_come_as_they_arrive_and_an_unfinished_answer_is_not_idle() -> None:
    stream = answer()
    probe, _ = greeted(HELLO.encode(), stream[:-1], stream[-1:])
    decoder = AnswerDecoder(REQUEST)
    sections = probe.exchange(decoder, Deadline(9))
    assert next(sections) == LOAD
    assert (decoder.done, probe.idle) == (False, False)
    assert list(sections) == []
    assert (decoder.done, probe.idle) == (True, True)


def test_an_answer_that_breaks_off_says_what_came_on_stderr() -> None:
    probe, fake = greeted(HELLO.encode(), answer()[:20])
    decoder = AnswerDecoder(REQUEST)
    sections = probe.exchange(decoder, Deadline(9))
    fake.stderr = b"gone before the request"
    with pytest.raises(ConnectionLost, match="the probe ended in the middle of an answer: nothing was said"):
        next(sections)
    assert not probe.idle


def test_an_answer_as_somebody_else_is_not_believed() -> None:
    probe, _ = greeted(HELLO.encode(), answer(uid=1000))
    with pytest.raises(NotProven, match="greeted as uid 0 and answered as uid 1000"):
        asked(probe)
    assert not probe.idle


def test_what_a_decoder_did_not_expect_is_an_error_of_the_answer() -> None:
    class Broken(AnswerDecoder):
        def feed(self, data: bytes) -> Iterator[Section]:
            raise KeyError("x")

    probe, _ = greeted(HELLO.encode(), answer())
    with pytest.raises(NotProven, match="could not be decoded: KeyError"):
        list(probe.exchange(Broken(REQUEST), Deadline(9)))


def test_closing_closes_the_command() -> None:
    probe, fake = greeted(HELLO.encode())
    probe.close()
    assert fake.closed


WATCHED = Request(Scope.SERVER, REQUEST.sections, REQUEST.seconds, watch=True)


def watched(probe: ProbeChannel) -> list[Section]:
    decoder = AnswerDecoder(WATCHED, after=probe.decoder)
    return list(probe.exchange(decoder, Deadline(9)))


def test_what_comes_between_answers_calls_and_what_belongs_to_an_answer_does_not() -> None:
    probe, fake = greeted(HELLO.encode(), answer(1), answer(2))
    calls: list[str] = []
    probe.on_unasked(lambda: calls.append("called"))
    fake.arrives()
    assert calls == ["called"]
    decoder = AnswerDecoder(WATCHED, after=probe.decoder)
    sections = probe.exchange(decoder, Deadline(9))
    next(sections)
    fake.arrives()
    assert calls == ["called"]
    assert list(sections) == []


def test_a_notice_that_comes_with_the_end_of_an_answer_calls_after_it() -> None:
    probe, _ = greeted(HELLO.encode(), answer(1) + encode_notice())
    calls: list[bool] = []
    probe.on_unasked(lambda: calls.append(probe.idle))
    assert watched(probe) == [LOAD]
    assert calls == [True]


def test_what_came_while_an_answer_was_read_calls_after_it() -> None:
    probe, _ = greeted(HELLO.encode(), answer(1), encode_notice())
    calls: list[bool] = []
    probe.on_unasked(lambda: calls.append(probe.idle))
    assert watched(probe) == [LOAD]
    assert calls == [True]


def test_an_answer_alone_calls_nobody() -> None:
    probe, _ = greeted(HELLO.encode(), answer(1))
    calls: list[bool] = []
    probe.on_unasked(lambda: calls.append(probe.idle))
    watched(probe)
    assert calls == []


def test_a_closed_probe_calls_nobody() -> None:
    probe, fake = greeted(HELLO.encode())
    calls: list[bool] = []
    probe.on_unasked(lambda: calls.append(True))
    probe.close()
    fake.arrives()
    assert calls == []
