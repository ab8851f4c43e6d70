"""Answers found in background threads: calls wait for a first one only, the newest knowledge wins."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from tests.waiting import HANG_SECONDS, wait_until
from x2gofleet.connection import discovery as discovery_module
from x2gofleet.connection.discovery import Discovery, ask_all, text_of

WAIT_SECONDS = discovery_module.WAIT_SECONDS


def soon() -> float:
    return time.monotonic() + HANG_SECONDS


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of tests that are not about time may take as long as they take."""
    for name in ("WAIT_SECONDS", "_HUNG_SECONDS"):
        monkeypatch.setattr(discovery_module, name, HANG_SECONDS)


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """What keeps a search from ending; it ends with the test."""
    event = threading.Event()
    yield event
    event.set()


def counted(answers: list[Callable[[], str]]) -> tuple[Callable[[], str], list[int]]:
    """Return a search that gives one answer after the other, the last one again and again, and a list that grows."""
    asked: list[int] = []

    def find() -> str:
        asked.append(len(asked))
        return answers[min(len(asked), len(answers)) - 1]()

    return find, asked


def refused() -> str:
    raise ConnectionRefusedError("nobody there")


def test_addresses_as_people_write_them() -> None:
    assert text_of(("10.0.0.1", 7000)) == "10.0.0.1:7000"
    assert text_of(("fe80::1", 7000)) == "[fe80::1]:7000"


def test_all_are_asked_at_once() -> None:
    together = threading.Barrier(3)

    def ask(name: str) -> str:
        together.wait(HANG_SECONDS)
        return name.upper()

    answers, failures = ask_all("abc", ask, seconds=HANG_SECONDS, grace_seconds=HANG_SECONDS)
    assert sorted(answers) == ["A", "B", "C"]
    assert failures == {}


def test_who_is_silent_costs_a_grace_after_the_first_answer(held: threading.Event) -> None:
    def ask(name: str) -> str:
        if name == "silent":
            held.wait(60)
        if name == "broken":
            refused()
        return name

    # The silent one would answer within that time.
    answers, failures = ask_all(["silent", "broken", "good"], ask, seconds=HANG_SECONDS, grace_seconds=0.05)
    assert answers == ["good"]
    assert {name: str(exc) for name, exc in failures.items()} in ({"broken": "nobody there"}, {})


def test_nobody_answers(held: threading.Event) -> None:
    answers, failures = ask_all(["silent"], lambda name: held.wait(60), seconds=0.05)
    assert (answers, failures) == ([], {})


def test_a_first_answer_is_waited_for_and_kept() -> None:
    find, asked = counted([lambda: "one"])
    discovery = Discovery(find, refresh_seconds=60)
    assert discovery.known is None
    assert [discovery.get(soon()) for _ in range(3)] == ["one"] * 3
    assert asked == [0]


@pytest.mark.parametrize(("seconds", "waited"), [(0.05, 0.05), (30.0, WAIT_SECONDS), (-1.0, None)])
def test_a_first_answer_that_does_not_come(
    held: threading.Event, monkeypatch: pytest.MonkeyPatch, seconds: float, waited: float | None
) -> None:
    waits: list[float | None] = []
    monkeypatch.setattr(discovery_module._Search, "wait", lambda _, seconds: waits.append(seconds))
    monkeypatch.setattr(discovery_module, "WAIT_SECONDS", WAIT_SECONDS)
    monkeypatch.setattr(discovery_module, "time", SimpleNamespace(monotonic=lambda: 100.0))
    discovery = Discovery(lambda: str(held.wait(60)), refresh_seconds=60, nothing_yet=lambda: LookupError("in time"))
    with pytest.raises(LookupError, match="in time"):
        discovery.get(100.0 + seconds)
    assert waits == ([] if waited is None else [pytest.approx(waited)])


def no_thread(*_: object) -> None:
    raise RuntimeError("can't start new thread")


def test_a_search_for_which_no_thread_can_be_started_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    find, _ = counted([lambda: "one"])
    discovery = Discovery(find, refresh_seconds=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(OSError, match="can't start new thread"):
            discovery.get(soon())
    wait_until(lambda: discovery.renewed(soon()) == "one", "a later one finds it")
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert discovery.renewed(soon()) == "one", "what is known is kept"


def test_who_can_not_be_asked_for_lack_of_a_thread_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    answers, failures = ask_all("ab", str.upper, seconds=HANG_SECONDS)
    assert answers == []
    assert {name: str(exc) for name, exc in failures.items()} == dict.fromkeys("ab", "can't start new thread")
    assert all(isinstance(exc, OSError) for exc in failures.values())


def test_a_first_search_that_fails_says_why() -> None:
    discovery = Discovery(refused, refresh_seconds=60)
    with pytest.raises(ConnectionRefusedError, match="nobody there"):
        discovery.get(soon())


def test_an_old_answer_is_given_while_a_newer_one_is_searched(held: threading.Event) -> None:
    def newer() -> str:
        held.wait(60)
        return "two"

    find, asked = counted([lambda: "one", newer])
    discovery = Discovery(find, refresh_seconds=0.0)
    assert discovery.get(soon()) == "one"
    wait_until(lambda: discovery.get(soon()) and len(asked) == 2, "a second search began")
    assert discovery.get(soon()) == "one"
    held.set()
    wait_until(lambda: discovery.get(soon()) == "two", "the newer answer is given")


def test_a_search_in_vain_leaves_the_answer() -> None:
    find, _ = counted([lambda: "one", refused])
    discovery = Discovery(find, refresh_seconds=60)
    assert discovery.get(soon()) == "one"
    assert discovery.renewed(soon()) == "one"


def test_renewed_waits_for_what_a_new_search_says() -> None:
    find, asked = counted([lambda: "one", lambda: "two"])
    discovery = Discovery(find, refresh_seconds=60)
    assert discovery.get(soon()) == "one"
    assert discovery.renewed(soon()) == "two"
    assert asked == [0, 1]


def test_many_callers_begin_one_search(held: threading.Event) -> None:
    def slow() -> str:
        held.wait(60)
        return "one"

    find, asked = counted([slow])
    discovery = Discovery(find, refresh_seconds=60)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(discovery.get(soon()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        discovery.renew()
    held.set()
    for thread in threads:
        thread.join()
    assert found == ["one"] * 8
    assert asked == [0]


def test_of_two_searches_the_later_one_knows_better() -> None:
    discovery: Discovery[str] = Discovery(lambda: "found", refresh_seconds=60)
    assert discovery.get(soon()) == "found"

    class Earlier:
        began = 0.0

    discovery._ended(Earlier(), "stale")  # type: ignore[arg-type]
    assert discovery.known == "found"


def test_asyncio_waits_without_blocking_the_loop(held: threading.Event) -> None:
    def slow() -> str:
        held.wait(60)
        return "one"

    discovery = Discovery(slow, refresh_seconds=60)

    async def ask() -> tuple[str, str]:
        asked = asyncio.create_task(discovery.get_async(soon()))
        # The loop goes on: else nobody would let the search end.
        asyncio.get_running_loop().call_later(0.01, held.set)
        return await asked, await discovery.renewed_async(soon())

    assert asyncio.run(ask()) == ("one", "one")


def test_asyncio_is_told_of_a_search_that_failed() -> None:
    async def ask() -> str:
        return await Discovery(refused, refresh_seconds=60).get_async(soon())

    with pytest.raises(ConnectionRefusedError, match="nobody there"):
        asyncio.run(ask())


def test_a_forked_child_searches_by_itself(held: threading.Event) -> None:
    parent = os.getpid()

    def find() -> str:
        if os.getpid() == parent:
            held.wait(60)
        return "one"

    discovery = Discovery(find, refresh_seconds=60)
    discovery.renew()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads, which is what this is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if discovery.get(soon()) == "one" else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
