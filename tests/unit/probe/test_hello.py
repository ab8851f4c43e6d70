"""The hello among what login shells print, and the versions that do not fit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x2gofleet_workers.probe.hello import MAX_NOISE_BYTES, Hello, HelloDecoder, parse_hello

from tests.support.probe_streams import HOSTILE, cut_at
from x2gofleet.errors import NotProven

HELLO = Hello(0, "root", "ts01")
LINE = b"x2gofleet-probe 2 uid=0 user=root host=ts01"


def found_in(pieces: list[bytes]) -> tuple[Hello | None, bytes]:
    """Return the hello and what came behind it, as a channel reads it."""
    decoder = HelloDecoder()
    for index, piece in enumerate(pieces):
        hello = decoder.feed(piece)
        if hello is not None:
            return hello, decoder.rest + b"".join(pieces[index + 1 :])
    return None, b""


def test_a_hello_as_it_is_sent() -> None:
    assert HELLO.encode() == b"\n" + LINE + b"\n"
    assert Hello(1000, "DOM\\é", "ts01.example.org").encode() == (
        b"\nx2gofleet-probe 2 uid=1000 user=DOM%5C%C3%A9 host=ts01.example.org\n"
    )


@settings(deadline=None)
@given(
    st.builds(Hello, st.integers(0, 2**32 - 1), st.text(max_size=9), st.text(min_size=1, max_size=9)),
    st.one_of(st.binary(max_size=60), st.sampled_from((b"Last login: today", b"x2gofleet-probe: not found\n"))),
    st.binary(max_size=40),
    st.lists(st.integers(0, 200), max_size=12),
)
def test_the_hello_is_found_behind_any_noise_in_any_pieces(
    hello: Hello, noise: bytes, behind: bytes, cuts: list[int]
) -> None:
    stream = noise + hello.encode() + behind
    assert found_in(cut_at(stream, [cut for cut in cuts if cut < len(stream)])) == (hello, behind)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Welcome to ts01!",
        b"x2gofleet-probe",
        b"x2gofleet-probe 2",
        b"x2gofleet-probe is installed",
        b"x2gofleet-probe 3 is installed since version=7",
        b"x2gofleet-probe: command not found",
        b"sh: 1: x2gofleet-probe 2 uid=0 user=root host=ts01",
        b" " + LINE,
        b"x2gofleet-probe -2 uid=0 user=root host=ts01",
        b"x2gofleet-probe 2  uid=0 user=root host=ts01",
        b"\xff\xfe",
        HOSTILE[1],
    ],
)
def test_noise_is_not_a_hello(line: bytes) -> None:
    assert parse_hello(line) is None
    assert found_in([line + b"\n" + HELLO.encode()]) == (HELLO, b"")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (b"uid=0 user=root", "host as a name"),
        (b"uid=0 user=root host=", "host as a name"),
        (b"uid=0 user=root host=%FF", "host as a name"),
        (b"uid=0 host=ts01", "got no user"),
        (b"uid=root user=root host=ts01", "uid as a number"),
        (b"uid= user=root host=ts01", "uid as a number"),
        (b"uid=99999999999 user=root host=ts01", "uid as a number"),
        (b"uid=0 user=root host=ts01 more=1", "got 'more'"),
        (b"uid=0 user=root host=ts01\r", "expected key=value"),
        (b"uid=0 uid=0 host=ts01", "got 'uid' twice"),
    ],
)
def test_a_malformed_hello_is_not_proven(words: bytes, text: str) -> None:
    with pytest.raises(NotProven, match=f"the probe's hello: expected.*{text}|the probe's hello: .*{text}"):
        parse_hello(b"x2gofleet-probe 2 " + words)


@pytest.mark.parametrize("words", [b"uid=0 anything=else", b"release=7 host=ts01", b"key="])
@pytest.mark.parametrize("version", [3, 10, 999_999_999])
def test_a_newer_probe_names_the_worker_as_the_side_to_upgrade(version: int, words: bytes) -> None:
    with pytest.raises(NotProven) as caught:
        parse_hello(b"x2gofleet-probe %d %b" % (version, words))
    assert f"speaks protocol {version}, this worker speaks protocol 2" in str(caught.value)
    assert caught.value.mend.startswith("the probe is newer: upgrade x2gofleet on this worker's machine, or install")


@pytest.mark.parametrize("version", [0, 1])
def test_an_older_probe_is_the_side_to_upgrade(version: int) -> None:
    with pytest.raises(NotProven) as caught:
        parse_hello(b"x2gofleet-probe %d uid=0 user=root host=ts01" % version)
    assert f"speaks protocol {version}, this worker speaks protocol 2" in str(caught.value)
    assert caught.value.mend.startswith("the probe is older: install the probe of this version on the server")


@pytest.mark.parametrize("line", [b"x" * 1023 + b"\n", b"x" * 1024, b"\n" * 1024])
def test_noise_has_a_cap(line: bytes) -> None:
    decoder = HelloDecoder()
    for _ in range(MAX_NOISE_BYTES // 1024):
        assert decoder.feed(line) is None
    with pytest.raises(NotProven, match=f"hello within {MAX_NOISE_BYTES} bytes"):
        decoder.feed(b"x")


def test_a_hello_behind_the_longest_noise_is_found() -> None:
    noise = b"x" * (MAX_NOISE_BYTES - 1)
    assert found_in([noise, HELLO.encode()]) == (HELLO, b"")


def test_the_beginning_of_the_noise_is_kept_for_a_message() -> None:
    decoder = HelloDecoder()
    decoder.feed(b"sudo: a password ")
    decoder.feed(b"is required\n")
    assert decoder.noise == b"sudo: a password is required\n"
    for _ in range(10):
        decoder.feed(b"x" * 1000)
    assert len(decoder.noise) == 4096
