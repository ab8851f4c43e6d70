"""Broken content of Redis, decoder by decoder: what is documented comes back, or what is documented is raised."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.fuzz.decoder import Tally
from tests.fuzz.mutations import mutate
from tests.support.odd_replies import ODD_BYTES
from x2gofleet.errors import FleetError, SchemaMismatch, SnapshotCorrupt
from x2gofleet.events import advance, decode_cursor, decode_entry, encode_cursor
from x2gofleet.fleet import PublishedFleet, PublishedServer, PublishedTarget
from x2gofleet.hints import Hint, decode_field
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind
from x2gofleet.lookup import Lookups, is_down
from x2gofleet.redis_values import LARGEST, checked
from x2gofleet.requests import Answer, AnswerCode, AnswerRefused, Operation, Request, RequestRefused
from x2gofleet.snapshot import Snapshot

NOW = b"1763800000000"
_ODD = tuple(value for value in ODD_BYTES.values() if len(value) <= 6000)
_LONG = tuple(value for value in ODD_BYTES.values() if len(value) > 6000)


@dataclass(frozen=True, slots=True)
class Case:
    """One decoder: what is broken, what reads it, and what that may raise."""

    bases: tuple[bytes, ...]
    read: Callable[[bytes], None]
    refuses: tuple[type[Exception], ...]


FLEET = PublishedFleet(
    {"ts01": PublishedServer("ts01", "ts01.example.org", ("mate",)), "ts02": PublishedServer("ts02", "b\u00fcro")},
    {
        "ts01": PublishedTarget("ts01", "ts01", "server", None, frozenset(Kind)),
        "alice@ts02": PublishedTarget("alice@ts02", "ts02", "user", "alice", frozenset({Kind.SESSIONS})),
    },
    {"mate": ("ts01", "alice@ts02"), "one": ("ts01",)},
    "1",
    frozenset({"kde"}),
)


def _read_fleet(data: bytes) -> None:
    version, _, document = data.partition(b"\n")
    fleet = PublishedFleet.from_hash(version, document)
    assert PublishedFleet.from_json(fleet.to_json(), fleet.version) == fleet
    # What was accepted can be asked for.
    lookups = Lookups(Keys())
    lookups._fleet = fleet
    for query in (lookups.servers(), lookups.fleet_view(Kind.SESSIONS, "alice"), lookups.events(None, None, 10)):
        for command in next(query):
            assert all(len(str(part).encode()) >= 0 for part in command)


def _flat(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    return parts[: len(parts) // 2 * 2]


def _pairs(data: bytes) -> dict[bytes, bytes]:
    items = iter(_flat(data))
    return dict(zip(items, items, strict=True))


def _read_snapshot(data: bytes) -> None:
    fields = {name: value.replace(b"\r", b"\n") for name, value in _pairs(data).items()}
    for kind in Kind:
        found = Snapshot.from_hash("ts01", kind, fields, now_ms=int(NOW))
        numbers = (found.polled_at_ms, found.listed_at_ms, found.fence, found.seq, found.changed_at_ms)
        assert all(abs(number) <= LARGEST for number in numbers)
        match kind:
            case Kind.SESSIONS:
                found.sessions()
            case Kind.DESKTOPS:
                found.desktops()
            case Kind.MOUNTS:
                found.mounts()
            case Kind.LOAD:
                found.load()


def _read_event(data: bytes) -> None:
    name, _, rest = data.partition(b"\n")
    event = decode_entry("ts01", [name, _flat(rest)])
    assert 0 <= abs(event.at_ms) <= LARGEST
    assert len(event.order) == 2
    assert event.missed_since(None) == event.left_out
    assert decode_cursor(advance(None, [event])) == {"ts01": event.id}


def _read_hint(data: bytes) -> None:
    hint = Hint.decode(data)
    assert hint is None or Hint.decode(hint.encode().encode()) == hint
    field = decode_field(data)
    assert field is None or Keys().snapshot(*field).encode()


def _read_request(data: bytes) -> None:
    request = Request.decode(data)
    assert Request.decode(request.encode()) == request


def _read_answer(data: bytes) -> None:
    answer = Answer.decode(data)
    again = Answer.decode(answer.encode())
    assert (again.target, again.code, again.stored) == (answer.target, answer.code, answer.stored)


def _read_cursor(data: bytes) -> None:
    positions = decode_cursor(data.decode("utf-8", "surrogateescape"))
    assert decode_cursor(encode_cursor(positions)) == positions


def _answered(replies: Mapping[str, Any]) -> None:
    """Drive the query of all servers by replies to its commands, by the last part of a key, the rest empty."""
    lookups = Lookups(Keys())
    lookups._fleet = FLEET
    query = lookups.servers()
    commands = next(query)
    made = []
    for command in commands:
        if command == ("HGET", Keys().fleet(), "version"):
            made.append(b"1")
        elif command == ("TIME",):
            made.append([NOW[:10], b"0"])
        else:
            made.append(replies.get(str(command[1]).rpartition(":")[2], [] if command[0] == "HGETALL" else None))
    try:
        query.send(checked(commands, made))
    except StopIteration as stop:
        statuses = stop.value
    assert [status.id for status in statuses] == ["ts01", "ts02"]
    # A state that can't be read costs its own server alone, and says so.
    for status in statuses:
        assert status.up in (None, True, False)
        assert status.since_ms is None or abs(status.since_ms) <= LARGEST


def _read_state(data: bytes) -> None:
    fields = _pairs(data)
    _answered({"state": [part for item in fields.items() for part in item]})
    values = [fields.get(name) for name in (b"sessions.good_at", b"sessions.failed_at")]
    is_down([*values, *values])


def _read_lease(data: bytes) -> None:
    _answered({"lease": data, "sessions": data.partition(b"\n")[0]})


def _hash(fields: Mapping[str, bytes]) -> bytes:
    return b"\n".join(part for name, value in fields.items() for part in (name.encode(), value))


_ROW = b"1368|alice-50-1_stDMATE_dp24|50|ts01|R|2026-11-22T20:24:30|5ec4e7|192.0.2.17|1|2||alice|2728|3|-1|-1\r"
_SNAPSHOT = {
    "stdout": _ROW,
    "exit_status": b"0",
    "polled_at": NOW,
    "listed_at": NOW,
    "duration_ms": b"12",
    "digest": b"ab",
    "changed_at": NOW,
    "fence": NOW,
    "seq": b"7",
    "worker": b"w1",
    "schema": b"1",
    "rejected_rows": b"0",
}
_LOAD = b"loadavg 0.05 0.10 0.20\rmemtotal_kb 2\rmemavailable_kb 2\rcpus 2\rcpu_mhz 2450.0\r"
_STATE = {
    "sessions.good_at": NOW,
    "sessions.failed_at": b"1763800000001",
    "sessions.failures": b"2",
    "sessions.since": NOW,
    "sessions.error_class": b"Unreachable",
    "sessions.error_text": b"no TCP",
}
CASES: dict[str, Case] = {
    "fleet": Case((b"1\n" + FLEET.to_json().encode(),), _read_fleet, (SnapshotCorrupt,)),
    "snapshot": Case(
        (_hash(_SNAPSHOT), _hash({**_SNAPSHOT, "stdout": _LOAD})), _read_snapshot, (SnapshotCorrupt, SchemaMismatch)
    ),
    "events": Case(
        (
            b"1763800000000-0\nkind\nstarted\nat\n1763800000000\nsession\nalice-50-1_stDMATE_dp24\nusername\nalice",
            b"1-1\nkind\nserver_down\nat\n1\ntext\nUnreachable: x\nleft_out\n3\nleft_out_to\n1-0",
        ),
        _read_event,
        (SnapshotCorrupt, ValueError, KeyError),
    ),
    "hints": Case((b"1763800000000 1763800000000 1763800015000 00ff", b"ts01:sessions"), _read_hint, ()),
    "requests": Case(
        (
            Request("a1", Operation.REFRESH, "ts01", (Kind.SESSIONS,), "alice").encode(),
            Request("a1", Operation.CHECK).encode(),
        ),
        _read_request,
        (RequestRefused,),
    ),
    "answers": Case(
        (
            Answer("ts01", AnswerCode.DONE, "", (("ts01", Kind.SESSIONS),), 2).encode(),
            Answer("ts01", AnswerCode.FAILED, "no TCP").encode(),
        ),
        _read_answer,
        (AnswerRefused,),
    ),
    "cursors": Case(
        (encode_cursor({"ts01": "1763800000000-0", "ts02": "1-1"}).encode(), b'{"ts01": "1-1"}'),
        _read_cursor,
        (ValueError,),
    ),
    "states": Case((_hash(_STATE),), _read_state, (SnapshotCorrupt,)),
    "leases": Case((b"w1\n" + NOW,), _read_lease, ()),
}


def _broken(base: bytes, draw: random.Random, bases: Sequence[bytes]) -> bytes:
    kind = draw.random()
    if kind < 0.15:
        # A value as a whole is another one.
        parts = base.split(b"\n")
        parts[draw.randrange(len(parts))] = draw.choice(_ODD)
        return b"\n".join(parts)
    if kind < 0.2:
        # A part of a JSON document is another one.
        words = base.split(b'"')
        words[draw.randrange(len(words))] = draw.choice((*_ODD, b"\\ud800", b"\\u0000"))
        return b'"'.join(words)
    if kind < 0.201:
        return draw.choice(_LONG)
    return mutate(base, draw, (*bases, *_ODD))


def fuzz_case(name: str, runs: int, seed: int) -> Tally:
    """Give ``runs`` broken contents to one decoder."""
    tally, draw, case = Tally(), random.Random(seed), CASES[name]
    for run in range(runs):
        tally.runs += 1
        data = _broken(draw.choice(case.bases), draw, case.bases)
        if name == "cursors" and draw.random() < 0.5:
            data = base64.urlsafe_b64encode(data)
        try:
            case.read(data)
        except case.refuses as exc:
            # UnicodeDecodeError and JSONDecodeError are ValueErrors: no decoder of a FleetError lets them pass.
            tally.outcomes["refused"] += 1
            tally.refusals[f"{type(exc).__name__} {str(exc)[-20:]}"] += 1
            if isinstance(exc, FleetError) and len(str(exc)) > 1000:
                tally.fail(f"seed {seed}, run {run}: a message of {len(str(exc))} characters; {data[:200]!r}")
        except Exception as exc:
            tally.fail(f"seed {seed}, run {run}: {type(exc).__name__}: {exc}; {data[:300]!r}")
        else:
            tally.outcomes["read"] += 1
    return tally
