"""Replies that no Redis gives, to every command of every lookup: an answer or a FleetError, whoever asks."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest

from tests.support.odd_replies import ASKING_CALLS, CALLS, ODD_REPLIES
from x2gofleet import AsyncFleetCache, FleetCache
from x2gofleet.connection import WrongKeyType
from x2gofleet.connection.node import settled
from x2gofleet.errors import CacheUnavailable, FleetError, SnapshotCorrupt
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.mirror import Mirror
from x2gofleet.redis_values import _SHAPES, checked, number

KEYS = Keys()
DOCUMENT = {
    "servers": {name: {"hostname": name, "labels": [], "weight": 1.0, "drain": False} for name in ("ts01", "ts02")},
    "targets": {
        name: {"server": name, "scope": "server", "username": None, "kinds": ["load", "sessions"]}
        for name in ("ts01", "ts02")
    },
    "profiles": {"mate": ["ts01", "ts02"]},
}
ROW = b"1368|alice-50-1_stDMATE_dp24|50|ts01|R|2026-11-22T20:24:30|5ec4e7|192.0.2.17|1|2||alice|2728|3|-1|-1\n"
LOAD = b"loadavg 0.05 0.10 0.20\nmemtotal_kb 24000000\nmemavailable_kb 23000000\ncpus 2\ncpu_mhz 2450.0\n"
NOW = b"1763800000"


def snapshot(stdout: bytes) -> list[bytes]:
    numbers = ("exit_status", "duration_ms", "fence", "seq", "rejected_rows")
    fields = {b"stdout": stdout, b"digest": b"00", b"worker": b"w1", b"schema": b"1"}
    fields |= {name.encode(): b"1" for name in numbers}
    fields |= dict.fromkeys((b"polled_at", b"listed_at", b"changed_at"), NOW + b"000")
    return [part for item in fields.items() for part in item]


class OddLink:
    """Answers as Redis does, but for one command, the replies to which are odd."""

    one_clock = True

    def __init__(self, command: str = "", reply: Any = None) -> None:
        self.command, self.reply = command, reply
        self.sent: set[str] = set()

    def exchange(self, commands: Sequence[Any], *, deadline: float | None = None, near: str | None = None) -> list[Any]:
        self.sent |= {command[0] for command in commands}
        return settled([self.reply if command[0] == self.command else self._right(command) for command in commands])

    def _right(self, command: Sequence[Any]) -> Any:
        name, key = command[0], str(command[1]) if len(command) > 1 else ""
        known: dict[str, Any] = {
            "TIME": [NOW, b"1"],
            "XRANGE": [[b"1-1", [b"kind", b"started", b"at", b"1"]]] if command[3:4] == ("-",) else [],
            "XREVRANGE": [],
            "XREAD": None,
            "ZRANGE": [b"carol", b"9763800000000"],
            "ZREVRANGE": [b"w1"],
            "BLPOP": None,
            "EVAL": [1, b"1763800060000", *(0 for _ in range(int(command[2]) if name == "EVAL" else 0))],
            "PTTL": 15_000,
        }
        if name == "HGETALL":
            kinds = {KEYS.snapshot("ts01", Kind.SESSIONS): ROW, KEYS.snapshot("ts02", Kind.SESSIONS): b""}
            loads = {KEYS.snapshot(each, Kind.LOAD): LOAD for each in ("ts01", "ts02")}
            stdout = {**kinds, **loads}.get(key)
            return [] if stdout is None else snapshot(stdout)
        if name in ("HMGET", "HGET"):
            known_fields = {
                "version": b"1",
                "document": json.dumps(DOCUMENT).encode(),
                "profile": b"mate",
                "username": b"",
                "owner": b"w1",
                "polled_at": NOW + b"000",
                "sessions.good_at": NOW + b"000",
            }
            found = [known_fields.get(field) for field in command[2:]]
            return found if name == "HMGET" else found[0]
        return known.get(name, 1)

    def close(self) -> None:
        pass


class OddAsyncLink(OddLink):
    async def exchange(  # type: ignore[override]
        self, commands: Sequence[Any], *, deadline: float | None = None, near: str | None = None
    ) -> list[Any]:
        return super().exchange(commands, deadline=deadline, near=near)

    async def aclose(self) -> None:
        pass


def called(which: str, name: str, link: Any) -> Any:
    """Return what a call answers, or the error that it raises."""
    try:
        if which == "asyncio":

            async def wait() -> Any:
                return await CALLS[name](AsyncFleetCache(link))

            return asyncio.run(wait())
        if which == "sync":
            return CALLS[name](FleetCache(link))
        with FleetCache(OddLink(), mirror=_mirror(link)) as reader:
            return CALLS[name](reader)
    except FleetError as exc:
        return exc


def _mirror(link: OddLink) -> Mirror:
    """Return a mirror without a feed that was brought up to date over an odd link, as far as it could be."""
    mirror = Mirror(link, KEYS)
    mirror._start = lambda: None  # type: ignore[method-assign]
    for _ in range(2):
        try:
            mirror.resync()
            mirror.fed(checked([("XREAD",)], link.exchange([("XREAD",)]))[0])
        except (FleetError, WrongKeyType):
            pass
    return mirror


@cache
def sent_by(name: str) -> frozenset[str]:
    """Return the commands that a call sends."""
    link = OddLink()
    called("sync", name, link)
    return frozenset(link.sent)


@pytest.mark.parametrize("which", ["sync", "asyncio", "mirror"])
@pytest.mark.parametrize("reply", ODD_REPLIES)
def test_an_odd_reply_is_a_fleet_error_or_an_answer(which: str, reply: str) -> None:
    mirrored = frozenset({"HGET", "HMGET", "TIME", "XREVRANGE", "HGETALL", "PTTL", "XREAD"})
    for name in ASKING_CALLS if which == "mirror" else CALLS:
        for command in mirrored if which == "mirror" else sent_by(name):
            link = (OddAsyncLink if which == "asyncio" else OddLink)(command, ODD_REPLIES[reply])
            began = time.process_time()
            answer = called(which, name, link)
            assert not isinstance(answer, Exception) or isinstance(answer, FleetError)
            # Processor time: what is waited for on a busy machine does not count.
            assert time.process_time() - began < 5.0, (name, command)


@pytest.mark.parametrize("which", ["sync", "asyncio"])
def test_every_command_of_a_lookup_is_in_the_table(which: str) -> None:
    sent = set()
    for name in CALLS:
        link = (OddAsyncLink if which == "asyncio" else OddLink)()
        answer = called(which, name, link)
        assert not isinstance(answer, (CacheUnavailable, SnapshotCorrupt)), name
        sent |= link.sent
    assert sent | {"XREAD", "XREVRANGE", "PTTL"} == set(_SHAPES)


def test_a_reply_that_no_redis_gives_says_so() -> None:
    with pytest.raises(CacheUnavailable, match="what answers there is no Redis: its reply to TIME has another form"):
        FleetCache(OddLink("TIME", [b"now"])).list_sessions(profile_name="mate")


def test_a_key_of_another_type_is_named_and_costs_no_other_server() -> None:
    class Wrong(OddLink):
        def _right(self, command: Sequence[Any]) -> Any:
            if command[:2] == ("HGETALL", KEYS.snapshot("ts02", Kind.SESSIONS)):
                return ODD_REPLIES["an error about the type"]
            return super()._right(command)

    cache = FleetCache(Wrong())
    with pytest.raises(SnapshotCorrupt, match=r"x2gofleet:\{ts02\}:sessions can't be read .WRONGTYPE"):
        cache.list_sessions(profile_name="mate")
    view = cache.view("sessions")
    assert [each.target for each in view.snapshots] == ["ts01"]
    assert (view.missing_servers, view.unknown_servers, view.cached) == (("ts02",), ("ts02",), False)
    assert set(view.errors) == {"ts02"}
    assert [status.id for status in cache.servers()] == ["ts01", "ts02"]


@pytest.mark.parametrize("value", [b"0", b"17", b"-1", b"9007199254740992"])
def test_numbers_are_decimal(value: bytes) -> None:
    assert number(value, "it") == int(value)


@pytest.mark.parametrize(
    "value", [b"", b" 1", b"1 ", b"1\n", b"1_0", b"+1", b"1.0", b"9007199254740993", b"9" * 400, b"\xff", None, 1, "1"]
)
def test_what_is_not_a_number_is_corrupt(value: object) -> None:
    with pytest.raises(SnapshotCorrupt, match=r"^it can't be read") as caught:
        number(value, "it")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["\ud800", "a\udcff"])
@pytest.mark.parametrize("which", ["sync", "asyncio"])
def test_arguments_that_can_not_be_encoded_are_refused(which: str, text: str) -> None:
    calls = {
        "session_uuid": lambda cache: cache.list_sessions(text),
        "is_cached": lambda cache: cache.is_cached(session_uuid=text),
        "register": lambda cache: cache.register_session(text, "mate"),
        "profile": lambda cache: cache.register_session("6c3f", text),
        "username": lambda cache: cache.register_session("6c3f", "mate", text),
        "forget": lambda cache: cache.forget_session(text),
        "place": lambda cache: cache.place("mate", text),
        "reserve": lambda cache: cache.reserve(text, "alice"),
        "since": lambda cache: cache.events(since=text),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=r"valid|is no|user name"):
            _ = CALLS_OF[which](call)
        assert name
    for call in (
        lambda cache: cache.list_sessions(profile_name=text, username=text),
        lambda cache: cache.list_desktops(profile_name="mate", username=text),
        lambda cache: cache.load(text),
    ):
        assert CALLS_OF[which](call) is None


def _sync(call: Any) -> Any:
    return call(FleetCache(OddLink()))


def _asyncio(call: Any) -> Any:
    async def wait() -> Any:
        return await call(AsyncFleetCache(OddAsyncLink()))

    return asyncio.run(wait())


CALLS_OF = {"sync": _sync, "asyncio": _asyncio}


class TestTheMirror:
    def test_what_it_does_not_hold_goes_to_redis(self) -> None:
        mirror = _mirror(OddLink())
        held = mirror.now
        assert held.questions is not None
        known = [("HGETALL", KEYS.snapshot("ts01", Kind.SESSIONS)), ("HGET", KEYS.fleet(), "version"), ("TIME",)]
        assert len(mirror._replies(held, known, [])) == 3
        for command in (
            ("HGETALL", KEYS.state("ts01")),
            ("HGETALL", KEYS.fresh()),
            ("HGET", KEYS.lease("ts01"), "owner"),
            ("HGET", KEYS.snapshot("ts01", Kind.SESSIONS), "polled_at"),
            ("HMGET", KEYS.fleet(), "version", "document"),
            ("HMGET", KEYS.lease("ts01"), "owner"),
            ("XRANGE", KEYS.events("ts01"), "-", "+", "COUNT", 1),
            ("ZRANGE", KEYS.reserved("ts01"), 0, -1, "WITHSCORES"),
            ("DEL", KEYS.uuid("6c3f")),
            ("EXISTS", KEYS.worker("w1")),
        ):
            asked: list[Any] = []

            def question(_: Any, command: Any = command, asked: list[Any] = asked) -> Any:
                asked.append((yield [command]))
                return "an answer"

            assert mirror.answer("loads", command, question) is None, command
            assert asked == []
        mirror.close()

    def test_one_odd_snapshot_costs_it_no_other(self) -> None:
        class Wrong(OddLink):
            def _right(self, command: Sequence[Any]) -> Any:
                if command[:2] == ("HGETALL", KEYS.snapshot("ts02", Kind.SESSIONS)):
                    return ODD_REPLIES["an error about the type"]
                return super()._right(command)

        mirror = _mirror(Wrong())
        assert set(mirror.now.held) == {
            KEYS.snapshot("ts01", Kind.SESSIONS),
            *(KEYS.snapshot(name, Kind.LOAD) for name in ("ts01", "ts02")),
        }
        mirror.close()
