"""hints: their texts, the commands that tell them, and the worker's thread that sends these."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from x2gofleet_workers import hints as telling
from x2gofleet_workers.hints import HintTeller

from tests.waiting import HANG_SECONDS, wait_until
from x2gofleet.errors import CacheUnavailable
from x2gofleet.hints import DROPPED, Hint, decode_field, hint_commands, hint_field
from x2gofleet.keys import Keys, target_id
from x2gofleet.kinds import Kind

DIGEST = "0123456789abcdef0123456789abcdef"
TIMES = st.integers(min_value=0, max_value=2**53)


@given(TIMES, TIMES, TIMES, st.text("0123456789abcdef", min_size=32, max_size=32))
def test_a_hint_is_read_as_it_was_written(polled_at: int, listed_at: int, expires_at: int, digest: str) -> None:
    hint = Hint(polled_at, listed_at, expires_at, digest)
    assert Hint.decode(hint.encode().encode()) == hint


def test_the_text_of_a_hint() -> None:
    assert Hint(1, 2, 3, DIGEST).encode() == f"1 2 3 {DIGEST}"


@pytest.mark.parametrize(
    "text", [b"", b"1 2 3", b"1 2 x digest", b"1 2 3 4 5", b"\xff", b"1  2 3", b"1 2 -3 d", b"1 2 %d d" % 10**400]
)
def test_what_is_no_hint(text: bytes) -> None:
    assert Hint.decode(text) is None


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("username", [None, "alice", "alice@example.org"])
def test_a_field_tells_target_and_kind(kind: Kind, username: str | None) -> None:
    target = target_id("ts01", username)
    assert decode_field(hint_field(target, kind).encode()) == (target, kind)


@pytest.mark.parametrize("name", [b"", b"ts01", b":load", b"ts01:events"])
def test_what_is_no_field(name: bytes) -> None:
    assert decode_field(name) is None


def test_what_is_told() -> None:
    hints = {"ts01:sessions": "1 1 16 a", "ts02:sessions": "1 1 16 b", "ts03:mounts": DROPPED}
    assert hint_commands(Keys("ns"), hints, ["ts02:sessions", "ts03:mounts"]) == [
        ("HSET", "ns:fresh", "ts01:sessions", "1 1 16 a", "ts02:sessions", "1 1 16 b"),
        ("HDEL", "ns:fresh", "ts03:mounts"),
        ("PEXPIRE", "ns:fresh", 86_400_000),
        ("XADD", "ns:changes", "MAXLEN", "~", 1000, "*", "ts02:sessions", "1 1 16 b", "ts03:mounts", ""),
        ("PEXPIRE", "ns:changes", 86_400_000),
    ]


def test_nothing_is_told_of_nothing() -> None:
    assert hint_commands(Keys("ns"), {}, ()) == []


class RecordingLink:
    """Takes what is sent; fails while ``failing``."""

    def __init__(self) -> None:
        self.sent: list[Sequence[tuple[Any, ...]]] = []
        self.failing = False
        self.before: Callable[[], None] = lambda: None
        self.closed = False

    def exchange(self, commands: Sequence[tuple[Any, ...]], **_: Any) -> list[Any]:
        self.before()
        if self.failing:
            raise redis.exceptions.ConnectionError("gone")
        self.sent.append(commands)
        return [7] * len(commands)

    def close(self) -> None:
        self.closed = True

    def texts(self) -> dict[str, str]:
        """Return the texts of the last HSET by field."""
        found = next(command for command in self.sent[-1] if command[0] == "HSET")[2:]
        return dict(zip(found[::2], found[1::2], strict=True))

    def news(self) -> list[str]:
        """Return the fields that the last exchange told of in the stream."""
        return [name for command in self.sent[-1] if command[0] == "XADD" for name in command[6::2]]


@pytest.fixture
def link() -> RecordingLink:
    return RecordingLink()


@pytest.fixture
def teller(link: RecordingLink) -> HintTeller:
    return HintTeller(link, Keys("ns"))  # type: ignore[arg-type]


def hint(polled_at: int, digest: str = "a") -> Hint:
    return Hint(polled_at, polled_at, polled_at + 15_000, digest)


def test_a_listing_is_news_and_its_confirmation_is_none(teller: HintTeller, link: RecordingLink) -> None:
    teller.stored("ts01", Kind.SESSIONS, hint(1))
    teller.tell()
    assert (link.texts(), link.news()) == ({"ts01:sessions": hint(1).encode()}, ["ts01:sessions"])
    teller.stored("ts01", Kind.SESSIONS, hint(2))
    teller.tell()
    assert (link.texts(), link.news()) == ({"ts01:sessions": hint(2).encode()}, [])
    teller.stored("ts01", Kind.SESSIONS, hint(3, "b"))
    teller.tell()
    assert link.news() == ["ts01:sessions"]


def test_load_is_never_news(teller: HintTeller, link: RecordingLink) -> None:
    teller.stored("ts01", Kind.LOAD, hint(1))
    teller.tell()
    assert (link.texts(), link.news()) == ({"ts01:load": hint(1).encode()}, [])


def test_after_another_worker_wrote_the_first_listing_is_news_again(teller: HintTeller, link: RecordingLink) -> None:
    teller.stored("ts01", Kind.SESSIONS, hint(1))
    teller.tell()
    teller.forget("ts01")
    teller.stored("ts01", Kind.SESSIONS, hint(2))
    teller.tell()
    assert link.news() == ["ts01:sessions"]


def test_what_was_dropped_is_news(teller: HintTeller, link: RecordingLink) -> None:
    teller.stored("ts01", Kind.SESSIONS, hint(1))
    teller.dropped("ts01", [Kind.SESSIONS])
    teller.tell()
    assert [command[0] for command in link.sent[-1]] == ["HDEL", "PEXPIRE", "XADD", "PEXPIRE"]


def test_what_could_not_be_told_is_kept_and_the_newest_is_told(teller: HintTeller, link: RecordingLink) -> None:
    link.failing = True
    teller.stored("ts01", Kind.SESSIONS, hint(1))
    teller.stored("ts02", Kind.SESSIONS, hint(1))
    # Told of while the exchange fails: newer than what comes back.
    link.before = lambda: teller.stored("ts01", Kind.SESSIONS, hint(2))
    with pytest.raises(CacheUnavailable, match="gone"):
        teller.tell()
    link.failing, link.before = False, lambda: None
    teller.tell()
    assert link.texts() == {"ts01:sessions": hint(2).encode(), "ts02:sessions": hint(1).encode()}
    assert set(link.news()) == {"ts01:sessions", "ts02:sessions"}


def test_what_is_kept_is_bounded(teller: HintTeller, link: RecordingLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "MOST_KEPT", 3)
    for number in range(5):
        teller.stored(f"ts{number}", Kind.SESSIONS, hint(1))
    teller.tell()
    assert set(link.texts()) == {"ts2:sessions", "ts3:sessions", "ts4:sessions"}


def test_many_are_told_in_pieces(teller: HintTeller, link: RecordingLink) -> None:
    for number in range(2500):
        teller.stored(f"ts{number}", Kind.SESSIONS, hint(1))
    teller.tell()
    assert [len(commands[0]) for commands in link.sent] == [2002, 2002, 1002]


def test_its_thread_tells_news_at_once_and_the_last_ones_as_it_ends(
    teller: HintTeller, link: RecordingLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "BATCH_SECONDS", 3600.0)
    teller.start()
    teller.stored("ts01", Kind.SESSIONS, hint(1))
    wait_until(lambda: link.sent, "it is told")
    teller.stored("ts01", Kind.SESSIONS, hint(2))
    teller.stop()
    assert link.texts() == {"ts01:sessions": hint(2).encode()}
    assert link.closed


def test_its_thread_outlives_failures(teller: HintTeller, link: RecordingLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "BATCH_SECONDS", 0.01)
    failed = threading.Event()
    link.failing, link.before = True, failed.set
    teller.start()
    teller.stored("ts01", Kind.SESSIONS, hint(1))
    assert failed.wait(HANG_SECONDS)
    link.failing = False
    wait_until(lambda: link.sent, "it is told")
    teller.stop()


def test_leaving_word_never_waits_for_redis(teller: HintTeller, link: RecordingLink) -> None:
    stuck, let_go = threading.Event(), threading.Event()

    def hang() -> None:
        stuck.set()
        assert let_go.wait(HANG_SECONDS)

    link.before = hang
    teller.start()
    teller.stored("ts01", Kind.SESSIONS, hint(1))
    assert stuck.wait(HANG_SECONDS)
    done = threading.Thread(target=lambda: teller.stored("ts02", Kind.SESSIONS, hint(1)))
    done.start()
    done.join(HANG_SECONDS)
    assert not done.is_alive()
    let_go.set()
    teller.stop()
