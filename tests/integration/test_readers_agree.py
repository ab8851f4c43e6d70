"""All readers give the same answers, whatever happened to the fleet: random histories, random questions."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from x2gofleet import FleetError, SessionList
from x2gofleet.kinds import Kind

from ..conftest import FleetBuilder  # noqa: TID252
from .conftest import IMPLEMENTATIONS, PATIENT_SECONDS
from .reader import LOAD, row, session_name

USERS = ("alice", "al", "alice-50", "bob", "alice@corp", "a.b")
TARGETS = ("ts01", "ts02", "ts1", "alice@ts01", "alice@corp@ts01", "alice@ts03", "alice@corp@ts03")
PROFILES = ("mate", "kde", "one")
ROUNDS, QUESTIONS = 15, 12


class History:
    """What happens to a fleet, drawn by chance; ``told`` has what is needed to understand a failure."""

    def __init__(self, fleet: FleetBuilder, chance: random.Random) -> None:
        self.fleet, self.chance = fleet, chance
        self.told: list[Any] = []
        self.publish()

    def stdout(self, kind: Kind) -> bytes:
        chance = self.chance
        some = chance.sample(USERS, chance.randint(0, 4))
        if kind is Kind.LOAD:
            return LOAD if chance.random() < 0.9 else b"load nonsense"
        if kind is Kind.DESKTOPS:
            return b"".join(f"{user}@:{chance.randint(50, 53)}\n".encode() for user in some)
        if kind is Kind.MOUNTS:
            return b"".join(f"{session_name(user)}|192.0.2.1|/home/{user}\n".encode() for user in some)
        rows = b"".join(row(user, chance.randint(50, 53), chance.choice("RSFT")) for user in some)
        return rows + (b"garbage|alice|line\n" if chance.random() < 0.2 else b"")

    def publish(self) -> None:
        chance = self.chance
        profiles = {name: chance.sample(TARGETS, chance.randint(1, 3)) for name in PROFILES if chance.random() < 0.8}
        self.told.append(profiles)
        self.fleet.publish(profiles)

    def step(self) -> None:
        chance, fleet = self.chance, self.fleet
        target, kind = chance.choice(TARGETS), chance.choice(tuple(Kind))
        what = chance.choices(("publish", "store", "confirm", "fail", "discard"), (0.5, 12, 2, 4, 1))[0]
        self.told.append((what, target, kind))
        if what == "publish":
            self.publish()
        elif what == "store":
            fleet.listing(target, kind, self.stdout(kind), age_seconds=chance.choice((0.0, 1.0, 5.0)))
        elif what == "confirm" and (stored := fleet.store.stored(target, kind)) is not None:
            fleet.confirmation(target, kind, stored[1])
        elif what == "fail":
            fleet.failure(target, kinds=[chance.choice((kind, Kind.SESSIONS))])
        elif what == "discard":
            fleet.store.discard(fleet.lease(target), [kind])
            fleet.tell(target, kind, None)

    def question(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        chance = self.chance
        profile, username = chance.choice((*PROFILES, "nowhere")), chance.choice((None, *USERS))
        method = chance.choice(("is_cached", "list_sessions", "list_desktops", "list_mounts", "load", "find_sessions"))
        if method == "load":
            return method, (profile,), {}
        if method == "find_sessions":
            return method, (), {"username": username or "alice"}
        if method == "is_cached":
            return method, (profile, None, chance.choice((None, *Kind))), {"username": username}
        return method, (), {"profile_name": profile, "username": username}


def asked(cache: Any, question: tuple[str, tuple[Any, ...], dict[str, Any]]) -> Any:
    method, arguments, named = question
    try:
        answer = getattr(cache, method)(*arguments, **named)
    except FleetError as exc:
        return type(exc)
    if isinstance(answer, SessionList):
        return answer.rows, answer.rejected, answer.missing_servers
    return answer


@pytest.mark.parametrize("seed", range(10))
def test_all_readers_agree(seed: int, valkey_url: str, namespace: str, fleet: FleetBuilder) -> None:
    chance = random.Random(seed)
    history = History(fleet, chance)
    readers = {
        name: made(valkey_url, namespace, lookup_seconds=PATIENT_SECONDS) for name, made in IMPLEMENTATIONS.items()
    }
    kinds: Counter[bool] = Counter()
    try:
        for _ in range(ROUNDS):
            for _ in range(chance.randint(1, 12)):
                history.step()
            for _ in range(QUESTIONS):
                question = history.question()
                answers = {name: asked(cache, question) for name, cache in readers.items()}
                assert len({repr(answer) for answer in answers.values()}) == 1, (question, answers, history.told[-12:])
                kinds[answers["FleetCache"] in (None, False)] += 1
    finally:
        for cache in readers.values():
            cache.close()
    assert min(kinds.values()) > QUESTIONS, f"cached and not cached: {kinds}"
