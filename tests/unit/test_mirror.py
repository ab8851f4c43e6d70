"""The mirror with a clock and a Redis of the test's own: when an answer holds, and until when."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis

from x2gofleet.connection import Command
from x2gofleet.errors import CacheUnavailable
from x2gofleet.held import ANSWERS_KEPT, RememberingQuestions
from x2gofleet.hints import Hint
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.lookup import Lookups
from x2gofleet.mirror import ALIVE_SECONDS, BRIDGE_SECONDS, Mirror, NoMirror, mirror_from_url
from x2gofleet.model import SessionList
from x2gofleet.questions import Questions
from x2gofleet.snapshot import Snapshot, digest_of

KEYS = Keys("ns")
TTL_MS = 15_000
ROW = b"1368|%s-50-1_stDMATE_dp24|50|ts01|R|2026-11-22T20:24:30|5ec4e7|192.0.2.17|1|2||%s|2728|3|-1|-1\n"
DOCUMENT = {
    "servers": {name: {"hostname": name, "labels": [], "weight": 1.0, "drain": False} for name in ("ts01", "ts02")},
    "targets": {
        name: {"server": name, "scope": "server", "username": None, "kinds": ["sessions"]} for name in ("ts01", "ts02")
    },
    "profiles": {"one": ["ts01"], "mate": ["ts01", "ts02"]},
}


class Clock:
    """A monotonic clock and the one of Redis, moved by the test."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.redis_ms = 1_763_800_000_000

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        self.redis_ms += int(seconds * 1000)


class FakeRedis:
    """A link to hashes that the test fills; counts what was fetched."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.fresh: dict[str, str] = {}
        self.snapshots: dict[str, dict[str, Any]] = {}
        self.states: dict[str, dict[str, str]] = {}
        self.fetched: list[str] = []
        self.failing = False
        self.slow_seconds = 0.0

    def exchange(self, commands: Sequence[Command], **_: Any) -> list[Any]:
        if self.failing:
            raise redis.exceptions.TimeoutError("gone")
        replies = [self._reply(command) for command in commands]
        self.clock.pass_by(self.slow_seconds)
        return replies

    def _reply(self, command: Command) -> Any:
        name, key = command[0], str(command[1]) if len(command) > 1 else ""
        match name:
            case "TIME":
                return [b"%d" % (self.clock.redis_ms // 1000), b"%d" % (self.clock.redis_ms % 1000 * 1000)]
            case "HGET":
                return b"1"
            case "HMGET" if key == KEYS.fleet():
                return [b"1", json.dumps(DOCUMENT).encode()]
            case "HMGET":
                state = self.states.get(key, {})
                return [state[field].encode() if field in state else None for field in command[2:]]
            case "XREVRANGE":
                return []
            case "HGETALL" if key == KEYS.fresh():
                return [part.encode() for item in self.fresh.items() for part in item]
            case "PTTL":
                left = self._left_ms(key)
                return left if left > 0 else -2
            case "HGETALL":
                self.fetched.append(key)
                fields = self.snapshots[key] if self._left_ms(key) > 0 else {}
                return [
                    part if isinstance(part, bytes) else str(part).encode() for item in fields.items() for part in item
                ]
        raise AssertionError(command)

    def _left_ms(self, key: str) -> int:
        found = self.snapshots.get(key)
        return 0 if found is None else int(found["polled_at"]) + TTL_MS - self.clock.redis_ms

    def close(self) -> None:
        pass

    def listing(self, user: str, server: str = "ts01", *, age_ms: int = 0, told: bool = True) -> None:
        """Store a listing with one session of a user, polled ``age_ms`` ago."""
        stdout, at = ROW % (user.encode(), user.encode()), self.clock.redis_ms - age_ms
        digest = digest_of(Kind.SESSIONS, stdout)
        self.snapshots[KEYS.snapshot(server, Kind.SESSIONS)] = {
            "stdout": stdout,
            "exit_status": 0,
            "polled_at": at,
            "listed_at": at,
            "duration_ms": 1,
            "digest": digest,
            "changed_at": at,
            "fence": 1,
            "seq": 1,
            "worker": "w1",
            "schema": 1,
            "rejected_rows": 0,
        }
        if told:
            self.fresh[f"{server}:sessions"] = Hint(at, at, at + TTL_MS, digest).encode()

    def confirm(self, server: str = "ts01", *, age_ms: int = 0) -> None:
        """Confirm what is stored, as of ``age_ms`` ago."""
        stored = self.snapshots[KEYS.snapshot(server, Kind.SESSIONS)]
        stored["polled_at"] = at = self.clock.redis_ms - age_ms
        self.fresh[f"{server}:sessions"] = Hint(at, stored["listed_at"], at + TTL_MS, stored["digest"]).encode()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> FakeRedis:
    return FakeRedis(clock)


@pytest.fixture
def mirror(server: FakeRedis, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    monkeypatch.setattr(Mirror, "_start", lambda self: None)
    return Mirror(server, KEYS, monotonic=clock)  # type: ignore[arg-type]


def ask(mirror: Mirror, profile: str = "one", *, bridging: bool = False) -> SessionList | None:
    """Ask for alice's sessions."""
    question: Callable[[Questions], Any] = lambda asked: asked.list_sessions(profile_name=profile, username="alice")  # noqa: E731
    found: SessionList | None = mirror.answer("sessions", profile, question, bridging=bridging)
    return found


def test_an_empty_mirror_knows_nothing(mirror: Mirror) -> None:
    assert ask(mirror) is None


def test_an_answer_holds_while_the_feed_is_alive(mirror: Mirror, server: FakeRedis, clock: Clock) -> None:
    server.listing("alice")
    mirror.resync()
    assert ask(mirror)
    assert mirror.now.sessions["one"][0] == clock.now + ALIVE_SECONDS
    clock.pass_by(ALIVE_SECONDS - 0.001)
    assert ask(mirror)
    clock.pass_by(0.001)
    assert ask(mirror) is None
    mirror.resync()
    assert ask(mirror)


def test_an_answer_holds_no_longer_than_what_it_is_made_of(mirror: Mirror, server: FakeRedis, clock: Clock) -> None:
    server.listing("alice", age_ms=14_000)
    mirror.resync()
    assert ask(mirror)
    assert mirror.now.sessions["one"][0] == pytest.approx(clock.now + 1.0)
    clock.pass_by(1.0)
    assert ask(mirror) is None
    assert ask(mirror, bridging=True) is None


def test_while_redis_is_away_an_answer_holds_for_moments_up_to_the_ttl(
    mirror: Mirror, server: FakeRedis, clock: Clock
) -> None:
    server.listing("alice")
    mirror.resync()
    clock.pass_by(10.0)
    assert ask(mirror) is None
    found = ask(mirror, bridging=True)
    assert found is not None
    assert mirror.now.sessions["one"][0] == pytest.approx(clock.now + BRIDGE_SECONDS)
    clock.pass_by(4.9)
    assert ask(mirror, bridging=True)
    clock.pass_by(0.1)
    assert ask(mirror, bridging=True) is None


def test_time_is_counted_from_before_a_question_that_took_long(mirror: Mirror, server: FakeRedis, clock: Clock) -> None:
    server.listing("alice", age_ms=12_000)
    server.slow_seconds = 0.4
    began = clock.now
    mirror.resync()
    held = mirror.now.held[KEYS.snapshot("ts01", Kind.SESSIONS)]
    # Redis's time to live when it was asked, counted from the sending of that very question.
    assert held.expires <= began + 3.0
    assert held.polled <= began - 12.0
    assert mirror.now.alive_until == began + ALIVE_SECONDS


def test_a_confirmation_is_taken_from_the_hint_alone(mirror: Mirror, server: FakeRedis, clock: Clock) -> None:
    server.listing("alice")
    mirror.resync()
    assert server.fetched.count(KEYS.snapshot("ts01", Kind.SESSIONS)) == 1
    for _ in range(10):
        clock.pass_by(2.0)
        server.confirm()
        mirror.resync()
    assert ask(mirror)
    assert server.fetched.count(KEYS.snapshot("ts01", Kind.SESSIONS)) == 1
    assert mirror.now.held[KEYS.snapshot("ts01", Kind.SESSIONS)].expires == pytest.approx(clock.now + 15.0)


def test_what_was_listed_long_ago_is_fetched_anew_once_it_is_listed_again(
    mirror: Mirror, server: FakeRedis, clock: Clock
) -> None:
    server.listing("alice")
    mirror.resync()
    for _ in range(29):
        clock.pass_by(2.0)
        server.confirm()
        mirror.resync()
    server.listing("alice")
    mirror.resync()
    assert server.fetched.count(KEYS.snapshot("ts01", Kind.SESSIONS)) == 2


def test_a_hint_from_the_past_takes_nothing_back(mirror: Mirror, server: FakeRedis, clock: Clock) -> None:
    server.listing("alice")
    mirror.resync()
    before = mirror.now.held[KEYS.snapshot("ts01", Kind.SESSIONS)]
    clock.pass_by(1.0)
    server.confirm(age_ms=5_000)
    mirror.resync()
    after = mirror.now.held[KEYS.snapshot("ts01", Kind.SESSIONS)]
    assert (after.polled, after.expires) == (before.polled, before.expires)


def test_times_beyond_all_times_are_left_to_redis(mirror: Mirror, server: FakeRedis) -> None:
    server.listing("alice")
    server.fresh["ts01:sessions"] = f"1 2 {'9' * 400} digest"
    server.snapshots[KEYS.snapshot("ts01", Kind.SESSIONS)]["polled_at"] = "-" + "9" * 400
    mirror.resync()
    assert ask(mirror) is None


def test_what_redis_polled_in_its_future_is_left_to_redis(mirror: Mirror, server: FakeRedis, clock: Clock) -> None:
    server.listing("alice")
    clock.redis_ms -= 3_600_000
    mirror.resync()
    assert ask(mirror) is None
    server.listing("alice")
    mirror.resync()
    assert ask(mirror)


def test_a_step_forward_of_redis_makes_nothing_last_longer(mirror: Mirror, server: FakeRedis, clock: Clock) -> None:
    server.listing("alice")
    mirror.resync()
    expires = mirror.now.held[KEYS.snapshot("ts01", Kind.SESSIONS)].expires
    clock.redis_ms += 3_600_000
    mirror.resync()
    held = mirror.now.held.get(KEYS.snapshot("ts01", Kind.SESSIONS))
    assert held is None or held.expires <= expires


def test_a_hint_of_which_the_snapshot_is_gone_is_no_answer(mirror: Mirror, server: FakeRedis) -> None:
    server.listing("alice")
    mirror.resync()
    server.fresh.clear()
    server.snapshots.clear()
    mirror.resync()
    assert ask(mirror) is None


def test_a_server_without_snapshot_is_missing_only_while_its_state_says_down(
    mirror: Mirror, server: FakeRedis, clock: Clock
) -> None:
    server.listing("alice")
    mirror.resync()
    assert ask(mirror, "mate") is None
    server.states[KEYS.state("ts02")] = {"sessions.failed_at": "2"}
    mirror.resync()
    found = ask(mirror, "mate")
    assert found is not None
    assert found.missing_servers == ("ts02",)
    server.states[KEYS.state("ts02")] = {"sessions.failed_at": "2", "sessions.good_at": "3"}
    mirror.resync()
    assert ask(mirror, "mate") is None


def test_a_failed_resync_leaves_what_is_held_and_the_breaker_is_told(
    mirror: Mirror, server: FakeRedis, clock: Clock
) -> None:
    server.listing("alice")
    mirror.resync()
    server.failing = True
    with pytest.raises(CacheUnavailable) as failure:
        mirror.resync()
    mirror.failed(failure.value)
    assert ask(mirror)
    with pytest.raises(CacheUnavailable):
        mirror.breaker.check()
    server.failing = False
    mirror.resync()
    mirror.breaker.check()


def test_a_change_in_the_stream_is_fetched_and_a_repeated_one_is_not(mirror: Mirror, server: FakeRedis) -> None:
    server.listing("bob")
    mirror.resync()
    assert not ask(mirror)
    server.listing("alice")
    reply = [[b"ns:changes", [[b"1-0", [b"ts01:sessions", server.fresh["ts01:sessions"].encode()]]]]]
    mirror.fed(reply)
    assert ask(mirror)
    fetched = len(server.fetched)
    mirror.fed(reply)
    assert len(server.fetched) == fetched


def test_what_the_stream_tells_to_be_dropped_is_dropped(mirror: Mirror, server: FakeRedis) -> None:
    server.listing("alice")
    mirror.resync()
    mirror.fed([[b"ns:changes", [[b"1-0", [b"ts01:sessions", b""]]]]])
    assert ask(mirror) is None


def test_what_was_fetched_before_a_caller_had_it_changed_is_not_taken_over(
    mirror: Mirror, server: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.listing("alice")
    taken_over = Mirror._take_over

    def forgotten_meanwhile(self: Mirror, generation: Any) -> None:
        self.forget("one")
        taken_over(self, generation)

    monkeypatch.setattr(Mirror, "_take_over", forgotten_meanwhile)
    mirror.resync()
    assert ask(mirror) is None
    monkeypatch.setattr(Mirror, "_take_over", taken_over)
    mirror.resync()
    assert ask(mirror)


def test_answers_are_bounded(mirror: Mirror, server: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("x2gofleet.mirror.ANSWERS_KEPT", 3)
    server.listing("alice")
    mirror.resync()
    for number in range(10):
        found = mirror.answer(
            "sessions", number, lambda asked: asked.list_sessions(profile_name="one", username="alice")
        )
        assert found
    assert len(mirror.now.sessions) <= 3


def ask_by_uuid(mirror: Mirror, reply: list[Any]) -> None:
    """Ask Redis, as a cache does, which replies ``reply`` to the question what a session UUID stands for."""
    query = mirror.watched(Questions(Lookups(KEYS)).is_cached(None, "6c3f", "sessions"))
    next(query)
    with contextlib.suppress(StopIteration):
        query.send([reply])


def test_an_unknown_uuid_takes_no_answers_from_others(mirror: Mirror, server: FakeRedis) -> None:
    server.listing("alice")
    mirror.resync()
    assert ask(mirror)
    ask_by_uuid(mirror, [None, None])
    assert mirror.now.sessions
    ask_by_uuid(mirror, [b"one", b""])
    ask_by_uuid(mirror, [None, None])
    assert not mirror.now.sessions


def test_a_registration_that_was_read_before_it_was_forgotten_is_not_remembered(
    mirror: Mirror, server: FakeRedis, clock: Clock
) -> None:
    server.listing("alice")
    mirror.resync()
    question: Callable[[Questions], Any] = lambda asked: asked.is_cached(None, "6c3f", "sessions")  # noqa: E731
    reading = mirror.watched(Questions(Lookups(KEYS)).is_cached(None, "6c3f", "sessions"))
    next(reading)
    clock.pass_by(0.01)
    forgetting = mirror.watched(Questions(Lookups(KEYS)).forget_session("6c3f"))
    next(forgetting)
    with contextlib.suppress(StopIteration):
        forgetting.send([1])
    reading.send([[b"one", b""]])
    assert mirror.answer("cached", "6c3f", question) is None
    clock.pass_by(0.01)
    ask_by_uuid(mirror, [b"one", b""])
    assert mirror.answer("cached", "6c3f", question) is True


def test_what_is_to_be_forgotten_is_bounded(mirror: Mirror, server: FakeRedis) -> None:
    server.listing("alice")
    mirror.resync()
    for _ in range(100):
        mirror.forget("one")
        mirror.forget()
    assert len(mirror._forgotten) == 2


def test_memory_does_not_grow_with_who_is_asked_for(mirror: Mirror, server: FakeRedis) -> None:
    server.listing("alice")
    mirror.resync()
    questions = mirror.now.questions
    assert isinstance(questions, RememberingQuestions)
    for number in range(2 * ANSWERS_KEPT):
        user = f"user{number}"
        mirror.answer("sessions", user, lambda asked, user=user: asked.list_sessions(profile_name="one", username=user))  # type: ignore[misc]
    (parsed,) = questions._known.values()
    assert set(parsed.by_user) == {None, "alice"}
    assert len(mirror.now.sessions) <= ANSWERS_KEPT


@pytest.mark.parametrize("rejected", [b"", b"no|alice|row\n"])
def test_what_is_remembered_of_users_is_what_the_listing_says(rejected: bytes) -> None:
    users = ["alice", "bob", "al", "alice@example.org"]
    stdout = b"".join(ROW % (user.encode(), user.encode()) for user in users) + rejected
    snapshot = Snapshot("ts01", Kind.SESSIONS, stdout, 0, 1, 1, 1, "d", 1, 1, 1, "w1")
    plain, remembering = Questions(Lookups(KEYS)), RememberingQuestions(Lookups(KEYS))
    for user in [*users, "ali", "", "|", None, "bo", *users, None, "ali"]:
        assert remembering.listed(snapshot, user) == plain.listed(snapshot, user)


def test_without_a_thread_lookups_ask_redis(
    server: FakeRedis, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    mirror = Mirror(server, KEYS, monotonic=clock)  # type: ignore[arg-type]
    assert ask(mirror) is None
    assert ask(mirror) is None
    assert [record.getMessage() for record in caplog.records] == [
        "the mirror can't follow the fleet, lookups ask Redis: no thread can be had: can't start new thread"
    ]
    server.listing("alice")
    mirror.resync()
    assert ask(mirror)
    mirror.close()
    assert ask(mirror) is None


@pytest.mark.parametrize("profiles", ["mate", b"mate", 1, [1], object(), [["mate"]]])
def test_what_are_no_names_of_profiles(profiles: Any) -> None:
    with pytest.raises(ValueError, match="True, False or a collection of profile names"):
        mirror_from_url("redis://127.0.0.1:1/0", KEYS, profiles)


@pytest.mark.parametrize("wanted", [None, False])
def test_no_mirror_is_wanted(wanted: bool | None) -> None:
    assert isinstance(mirror_from_url("redis://127.0.0.1:1/0", KEYS, wanted), NoMirror)


def test_profiles_that_the_inventory_has_not_are_told_once(
    server: FakeRedis, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = Mirror(server, KEYS, profiles=["mte", "one"], monotonic=clock)  # type: ignore[arg-type]
    mirror.resync()
    mirror.resync()
    assert [record.getMessage() for record in caplog.records] == [
        "the mirror is to follow 'mte', which the published inventory does not have; known profiles: 'one', 'mate'"
    ]
