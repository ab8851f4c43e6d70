"""The worker's end of the probe conversation: requests, framed answers fed in any pieces, what is not believed."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from x2gofleet_workers.shell_probe import (
    MAX_ANSWER_BYTES,
    MAX_NOISE_BYTES,
    Answer,
    Hello,
    Request,
    Section,
    parse_hello,
    probe_text,
    start_command,
)

from x2gofleet.errors import NotProven
from x2gofleet.kinds import Kind

MARK = "0123456789abcdef" * 2
OTHER = "f" * 32
DONE = f"{MARK} done uid=0 host=ts01\n".encode()


def request(*sections: str) -> Request:
    return Request("server", sections, 9, mark=MARK)


def frame(kind: str, body: bytes, *, status: int | str = 0, attributes: str = "") -> bytes:
    return f"{MARK} begin {kind}{attributes}\n".encode() + body + f"\n{MARK} end {kind} {status}\n".encode()


def fed(answer: Answer, pieces: Iterable[bytes]) -> list[Section]:
    return [section for piece in pieces for section in answer.feed(piece)]


def taken_apart(raw: bytes, *sections: str) -> tuple[Answer, list[Section]]:
    answer = Answer(request(*sections))
    return answer, fed(answer, [raw])


BODY = b"one\n\xff\x00 two\n\nbegin load\n" + OTHER.encode() + b" end sessions 0\n"
RAW = (
    frame("sessions", BODY, attributes=" backend=sqlite sig=7 host=ts01")
    + frame("load", b"")
    + frame("mounts", b"\n", status=124)
    + frame("desktops", f"{MARK} end mounts 0\n{MARK}".encode())
    + DONE
)
ASKED = ("sessions=-", "load", "mounts", "desktops=alice")


def test_a_whole_answer() -> None:
    answer, (sessions, load, mounts, desktops) = taken_apart(RAW, *ASKED)
    assert (sessions.kind, sessions.body, sessions.status, sessions.signature) == (Kind.SESSIONS, BODY, 0, "7")
    assert sessions.attributes == {"backend": "sqlite", "sig": "7", "host": "ts01"}
    assert (load.kind, load.body, load.signature) == (Kind.LOAD, b"", "-")
    assert (mounts.kind, mounts.body, mounts.status) == (Kind.MOUNTS, b"\n", 124)
    assert (desktops.kind, desktops.body) == (Kind.DESKTOPS, f"{MARK} end mounts 0\n{MARK}".encode())
    assert (answer.done, answer.uid, answer.host) == (True, 0, "ts01")


def test_byte_by_byte_it_is_the_same() -> None:
    answer = Answer(request(*ASKED))
    sections = fed(answer, (RAW[at : at + 1] for at in range(len(RAW))))
    assert answer.done
    assert sections == taken_apart(RAW, *ASKED)[1]


@given(st.lists(st.integers(0, len(RAW)), max_size=30))
def test_in_any_pieces_it_is_the_same(cuts: list[int]) -> None:
    edges = sorted({0, *cuts, len(RAW)})
    answer = Answer(request(*ASKED))
    sections = fed(answer, (RAW[start:end] for start, end in itertools.pairwise(edges)))
    assert answer.done
    assert sections == taken_apart(RAW, *ASKED)[1]


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_bytes_of_a_command_come_through_whole(body: bytes, step: int) -> None:
    raw = frame("sessions", body) + DONE
    answer = Answer(request("sessions=-"))
    (section,) = fed(answer, (raw[at : at + step] for at in range(0, len(raw), step)))
    assert section.body == body


def test_a_section_comes_as_soon_as_it_is_complete() -> None:
    answer = Answer(request("load", "mounts"))
    first, second = frame("load", b"x"), frame("mounts", b"y")
    assert [section.kind for section in answer.feed(first)] == [Kind.LOAD]
    assert list(answer.feed(second[:-1])) == []
    assert [section.kind for section in answer.feed(second[-1:])] == [Kind.MOUNTS]
    assert not answer.done


def test_sessions_that_are_the_same() -> None:
    answer, (section,) = taken_apart(f"{MARK} same sessions sig=12\n".encode() + DONE, "sessions=12")
    assert (section.kind, section.same, section.signature, section.body) == (Kind.SESSIONS, True, "12", b"")
    assert answer.done


def test_a_body_is_in_no_repr() -> None:
    _, (section,) = taken_apart(frame("sessions", b"0123cookie4567") + DONE, "sessions=-")
    assert "cookie" not in repr(section)


BROKEN = {
    "no mark": b"hello\n",
    "empty line": b"\n",
    "another mark": f"{OTHER} begin sessions\n".encode(),
    "the mark alone": f"{MARK}\n".encode(),
    "mark within a line": f"x{MARK} begin sessions\n".encode(),
    "unknown frame": f"{MARK} start sessions\n".encode(),
    "unknown kind": f"{MARK} begin printers\n".encode(),
    "no kind": f"{MARK} begin \n".encode(),
    "same of an unknown kind": f"{MARK} same printers sig=1\n".encode(),
    "same load": f"{MARK} same load sig=1\n".encode(),
    "error": f"{MARK} error unknown verb\n".encode(),
    "status a word": frame("sessions", b"", status="zero"),
    "status empty": frame("sessions", b"", status=""),
    "status negative": frame("sessions", b"", status="-1"),
    "status of 5000 digits": frame("sessions", b"", status="9" * 5000),
    "end before begin": f"\n{MARK} end sessions 0\n".encode(),
    "done without uid": frame("sessions", b"") + f"{MARK} done host=ts01\n".encode(),
    "done without host": frame("sessions", b"") + f"{MARK} done uid=0\n".encode(),
    "uid empty": frame("sessions", b"") + f"{MARK} done uid= host=a\n".encode(),
    "uid of another alphabet": frame("sessions", b"") + f"{MARK} done uid=\u00b2 host=a\n".encode(),
    "uid of 5000 digits": frame("sessions", b"") + f"{MARK} done uid={'1' * 5000} host=a\n".encode(),
    "done at once": DONE,
    "asked for one, got another": frame("load", b""),
    "one section twice": frame("sessions", b"") * 2,
    "one section more": frame("sessions", b"") + frame("load", b""),
    "undecodable": b"\xff\xfe\xfd\n",
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("step", [1, 10_000])
def test_broken_frames_are_not_proven(name: str, step: int) -> None:
    raw = BROKEN[name]
    answer = Answer(request("sessions=-"))
    with pytest.raises(NotProven):
        fed(answer, (raw[at : at + step] for at in range(0, len(raw), step)))
    assert not answer.done


@given(st.binary(max_size=200), st.binary(max_size=60))
def test_any_bytes_give_sections_or_are_not_proven(raw: bytes, tail: bytes) -> None:
    pieces = [raw, MARK.encode() + b" " + tail, b"\n" + MARK.encode() + b" end load " + tail + b"\n"]
    answer = Answer(request("load"))
    for piece in pieces:
        try:
            list(answer.feed(piece))
        except NotProven:
            return
    assert not answer.done or answer.host


def test_an_answer_that_does_not_end_is_cut_off() -> None:
    answer = Answer(request("sessions=-"))
    fed(answer, [f"{MARK} begin sessions\n".encode()])
    piece = b"x" * 1_000_000
    with pytest.raises(NotProven, match="longer than"):
        fed(answer, (piece for _ in range(MAX_ANSWER_BYTES // len(piece) + 1)))


def test_a_line_that_does_not_end_is_cut_off() -> None:
    answer = Answer(request("sessions=-"))
    with pytest.raises(NotProven, match="no frame"):
        fed(answer, (b"x" * 1000 for _ in range(MAX_NOISE_BYTES // 1000 + 2)))


def test_requests_are_one_line_each_and_never_have_the_same_mark() -> None:
    first, second = (Request("server", ("load", "sessions=-"), 9) for _ in range(2))
    assert first.mark != second.mark
    assert len(first.mark) == 32
    assert first.line() == f"poll {first.mark} server 9 load sessions=-\n".encode()


@pytest.mark.parametrize(
    ("line", "hello"),
    [
        (b"x2gofleet-probe 1 uid=0 user=root host=ts01", Hello(0, "root", "ts01")),
        (b"x2gofleet-probe 1 uid=1000 user=alice host=ts01.example.org\r", Hello(1000, "alice", "ts01.example.org")),
        (b"", None),
        (b"Welcome to ts01!", None),
        (b"x2gofleet-probe is installed", None),
        (b"\xff\xfe", None),
        (b" you run x2gofleet-probe 1", None),
    ],
)
def test_greetings_and_noise(line: bytes, hello: Hello | None) -> None:
    assert parse_hello(line) == hello


@pytest.mark.parametrize(
    "line",
    [
        b"x2gofleet-probe 2 uid=0 user=root host=ts01",
        b"x2gofleet-probe 1 uid=root user=root host=ts01",
        b"x2gofleet-probe 1 uid=0 name=root host=ts01",
        b"x2gofleet-probe 1 uid= user=root host=ts01",
    ],
)
def test_greetings_of_another_protocol(line: bytes) -> None:
    with pytest.raises(NotProven):
        parse_hello(line)


def test_start_commands() -> None:
    assert start_command("wrapper", as_root=False) == "x2gofleet-probe"
    assert start_command("wrapper", as_root=True) == "x2gofleet-probe"
    words = shlex.split(start_command("auto", as_root=False))
    assert words == ["exec", "timeout", "-k", "5", "7200", "sh", "-c", probe_text(), "x2gofleet-probe"]
    assert shlex.split(start_command("auto", as_root=True)) == ["exec", "sudo", "-n", *words[1:]]
