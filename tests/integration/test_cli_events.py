"""`x2gofleet events` against a real Valkey: once, by pages, and on and on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.waiting import PATIENT, wait_until
from x2gofleet.cli import main
from x2gofleet.events import Change, EventKind
from x2gofleet.keys import Keys

from .reader import OwnValkey

TIMEOUT_SECONDS = 20.0


def session(user: str) -> str:
    return f"{user}-50-1763800000_stDMATE_dp24"


@pytest.fixture
def tell(fleet: Any) -> Callable[..., None]:
    """``tell("ts01", "started", "alice")`` writes an event as the script that stores a listing does, and no other
    event within the same ms: those of different servers would be in any order."""

    def write(server: str, kind: str, user: str, status: str = "R") -> None:
        now_ms = fleet.store.sync_clock()
        wait_until(lambda: fleet.store.sync_clock() > now_ms, "the next ms")
        change = Change(EventKind(kind), session(user), user, status)
        fleet.listing(server, "sessions", f"{kind} {user}", changes=(change,))

    return write


@pytest.fixture
def some_events(fleet: Any, tell: Callable[..., None]) -> None:
    """Five events of ts01 and ts02, in turn; ts03 has none."""
    fleet.publish({"mate": ["ts01", "ts02", "ts03"]})
    tell("ts01", "started", "alice")
    tell("ts02", "started", "bob")
    tell("ts01", "suspended", "alice", "S")
    now_ms = fleet.store.sync_clock()
    wait_until(lambda: fleet.store.sync_clock() > now_ms, "the next ms")
    fleet.failure("ts02", error_text="no TCP\x1b[31m connection")
    tell("ts01", "ended", "alice", "F")


Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(valkey_url: str, namespace: str, capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*argv: str, status: int = 0) -> tuple[str, str]:
        found = main(["events", *argv, "--redis-url", valkey_url, "--namespace", namespace])
        out, err = capsys.readouterr()
        assert found == status, out + err
        return out, err

    return command


def cells(out: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line) for line in out.splitlines()]


def cursor_in(err: str) -> str:
    found = re.search(r"--since (\S+)$", err)
    assert found, err
    return found[1]


@pytest.mark.usefixtures("some_events")
class TestOnce:
    def test_a_line_for_each(self, run: Run) -> None:
        out, err = run()
        header, *rows = cells(out)
        assert header == ["TIME", "SERVER", "EVENT", "USER", "SESSION OR ERROR"]
        assert [row[1:] for row in rows] == [
            ["ts01", "started", "alice", session("alice")],
            ["ts02", "started", "bob", session("bob")],
            ["ts01", "suspended", "alice", session("alice")],
            ["ts02", "server down", "-", "Unreachable: no TCP\N{REPLACEMENT CHARACTER}[31m connection"],
            ["ts01", "ended", "alice", session("alice")],
        ]
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", row[0]) for row in rows)
        assert run("--since", cursor_in(err))[0] == "no events since then are known\n"

    def test_of_one_server(self, run: Run) -> None:
        assert [row[1] for row in cells(run("--server", "ts02")[0])[1:]] == ["ts02", "ts02"]
        out, err = run("--server", "ts03")
        assert out == "no events of ts03 are known\n"
        assert err.startswith("x2gofleet: the changes on ts03 are unknown: not owned by any worker")

    def test_the_newest_or_the_first_after_a_cursor(self, run: Run) -> None:
        out, err = run("--limit", "2")
        assert [row[2] for row in cells(out)[1:]] == ["server down", "ended"]
        assert run("--since", cursor_in(err))[0] == "no events since then are known\n"
        assert run("--limit", "0")[0] == ""
        whole, cursor, found = json.loads(run("--json")[0])["events"], None, []
        beginning = "e30="
        for _ in range(3):
            document = json.loads(run("--json", "--limit", "2", "--since", cursor or beginning)[0])
            cursor = document["cursor"]
            found += document["events"]
        assert found == whole
        assert len(whole) == 5

    def test_json(self, run: Run) -> None:
        out, err = run("--json", "--server", "ts02")
        document = json.loads(out)
        assert err == ""
        assert document.keys() == {"server", "cached", "missing_servers", "unknown_servers", "events", "cursor"}
        assert (document["missing_servers"], document["unknown_servers"]) == (["ts02"], [])
        assert (document["server"], document["cached"]) == ("ts02", True)
        started, down = document["events"]
        assert started | {"time": "", "id": ""} == {
            "time": "",
            "id": "",
            "server": "ts02",
            "target": "ts02",
            "event": "started",
            "session": session("bob"),
            "user": "bob",
            "status": "running",
            "error": None,
            "left_out": 0,
        }
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", started["time"])
        assert (down["event"], down["session"], down["status"]) == ("server_down", None, None)
        assert down["error"].startswith("Unreachable: ")

    def test_what_is_unknown_is_told(self, run: Run) -> None:
        out, err = run("--server", "ts09", status=2)
        assert (out, err) == ("", "x2gofleet: there is no server 'ts09' in the inventory; known: ts01, ts02, ts03\n")
        assert "that is no cursor" in run("--since", "yesterday", status=2)[1]
        assert "is no number of events" in run("--limit", "-1", status=2)[1]
        assert "is no server id" in run("--server", "a b", status=2)[1]


def test_more_than_one_page(run: Run, fleet: Any, redis_client: redis.Redis, keys: Keys) -> None:
    fleet.publish({"mate": ["ts01"]})
    pipeline = redis_client.pipeline()
    for number in range(2345):
        fields = {"kind": "started", "at": number, "session": f"s{number}", "username": "u", "status": "R"}
        pipeline.xadd(keys.events("ts01"), fields)  # type: ignore[arg-type]
    pipeline.pexpire(keys.events("ts01"), 60_000)
    pipeline.execute()
    assert [each["session"] for each in json.loads(run("--json")[0])["events"]] == [f"s{n}" for n in range(2345)]


def test_what_is_left_out_is_said_to_whom_it_concerns(run: Run, fleet: Any) -> None:
    fleet.publish({"mate": ["ts01"]})

    def toggle(user: str, *numbers: int) -> None:
        changes = tuple(Change(EventKind.CHANGED, f"{user}{number}", user, "R") for number in numbers)
        fleet.listing("ts01", "sessions", f"{user} {numbers}", changes=changes)

    toggle("alice", 0)
    before = cursor_in(run()[1])
    toggle("bob", *range(900))
    middle = cursor_in(run()[1])
    toggle("bob", *range(900, 1600))
    out, err = run()
    shown = [row[-1] for row in cells(out)[1:]]
    left_out = 1601 - len(shown)
    assert shown == ["alice0", *(f"bob{number}" for number in range(left_out, 1600))]
    assert re.search(rf"ts01: up to {left_out} events of bob before \S+ are not kept\n", err)
    behind = cursor_in(err)
    for cursor, missed in ((before, left_out), (middle, 0), (behind, 0)):
        out, err = run("--since", cursor)
        assert ("are not kept" in err) == bool(missed)
        document = json.loads(run("--json", "--since", cursor)[0])
        assert sum(event["left_out"] for event in document["events"]) == missed


def test_without_an_inventory_nothing_is_cached(run: Run) -> None:
    out, err = run(status=1)
    assert (out, "no worker has published an inventory" in err) == ("", True)
    assert json.loads(run("--json", status=1)[0])["cached"] is False


class Following:
    """``x2gofleet events --follow`` in a process of its own."""

    def __init__(self, folder: Path, url: str, namespace: str, *argv: str) -> None:
        self._err = folder / "stderr"
        with self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "x2gofleet.cli", "events", "--follow"),
                    *("--redis-url", url, "--namespace", namespace, *argv),
                ],
                stdout=subprocess.PIPE,
                stderr=err,
            )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._read = b""

    def lines(self) -> list[str]:
        assert self.process.stdout is not None
        self._read += self.process.stdout.read() or b""
        return self._read.decode().splitlines()

    def wait_for(self, count: int) -> list[str]:
        wait_until(lambda: len(self.lines()) >= count, f"{count} lines", TIMEOUT_SECONDS)
        return self.lines()

    @property
    def said(self) -> str:
        return self._err.read_text()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def follow(tmp_path: Path, valkey_url: str, namespace: str) -> Iterator[Callable[..., Following]]:
    started: list[Following] = []

    def start(*argv: str, url: str = valkey_url) -> Following:
        started.append(Following(tmp_path, url, namespace, *argv))
        return started[-1]

    yield start
    for each in started:
        each.close()


Follow = Callable[..., Following]


@pytest.mark.usefixtures("some_events")
def test_it_follows_until_interrupted(follow: Follow, run: Run, tell: Callable[..., None]) -> None:
    following = follow("--limit", "1")
    (ended,) = following.wait_for(1)
    assert re.split(r"\s{2,}", ended)[1:] == ["ts01", "ended", "alice", session("alice")]
    tell("ts01", "started", "bob")
    assert re.split(r"\s{2,}", following.wait_for(2)[1])[1:] == ["ts01", "started", "bob", session("bob")]
    following.process.send_signal(signal.SIGINT)
    assert following.process.wait(TIMEOUT_SECONDS) == 0
    tell("ts01", "started", "carla")
    assert [row[3] for row in cells(run("--since", cursor_in(following.said))[0])[1:]] == ["carla"]
    assert "Traceback" not in following.said


@pytest.mark.usefixtures("some_events")
def test_it_follows_as_json_lines_from_a_cursor(follow: Follow, run: Run, tell: Callable[..., None]) -> None:
    following = follow("--json", "--server", "ts01", "--since", json.loads(run("--json")[0])["cursor"])
    tell("ts02", "ended", "bob")
    tell("ts01", "started", "carla")
    event, behind = (json.loads(line) for line in following.wait_for(2))
    assert (event["event"], event["user"]) == ("started", "carla")
    assert behind.keys() == {"cursor"}
    tell("ts01", "ended", "carla")
    event, behind = (json.loads(line) for line in following.wait_for(4)[2:])
    assert event["event"] == "ended"
    # The cursor is behind those of ts01 alone: ts02 was not asked.
    rest = json.loads(run("--json", "--since", behind["cursor"])[0])["events"]
    assert [(each["event"], each["user"]) for each in rest] == [("server_up", None), ("ended", "bob")]


@pytest.mark.usefixtures("some_events")
def test_it_ends_when_nobody_reads_on_also_where_nothing_happens(follow: Follow) -> None:
    following = follow()
    following.wait_for(5)
    assert following.process.stdout is not None
    following.process.stdout.close()
    assert following.process.wait(TIMEOUT_SECONDS) == 0
    assert [line.split(": ")[1] for line in following.said.splitlines()] == [
        "ts02 is down",
        "the changes on ts03 are unknown",
    ]


def test_it_outlasts_outages_and_says_each_once(follow: Follow, tmp_path: Path, namespace: str) -> None:
    from x2gofleet.connection import client_from_url
    from x2gofleet.store import Store

    from ..conftest import FleetBuilder  # noqa: TID252

    with OwnValkey(tmp_path) as valkey:
        client = client_from_url(valkey.url, **PATIENT)
        following = follow(url=valkey.url)
        wait_until(lambda: "waiting for one" in following.said, "it waits for an inventory", TIMEOUT_SECONDS)

        def tell(fleet: FleetBuilder, kind: str) -> None:
            change = Change(EventKind(kind), session("alice"), "alice", "R")
            fleet.listing("ts01", "sessions", kind, changes=(change,))

        fleet = FleetBuilder(Store(client, Keys(namespace), "w1"))
        fleet.publish({"mate": ["ts01"]})
        tell(fleet, "started")
        assert "started" in following.wait_for(1)[0]
        # Longer than its breaker's second and several of its periods.
        valkey.pause()
        began = time.monotonic()
        wait_until(lambda: "can't be asked" in following.said, "it says so", TIMEOUT_SECONDS)
        wait_until(lambda: time.monotonic() - began > 4, "an outage of some seconds")
        valkey.resume()
        wait_until(lambda: "answers again" in following.said, "it goes on", TIMEOUT_SECONDS)
        tell(fleet, "changed")
        assert "changed" in following.wait_for(2)[1]
        assert following.said.count("can't be asked") == 1
        # Empty after a crash: what is told from then on is shown.
        valkey.kill()
        wait_until(lambda: following.said.count("can't be asked") == 2, "it says so again", TIMEOUT_SECONDS)
        valkey.start()
        fleet = FleetBuilder(Store(client, Keys(namespace), "w1"))
        fleet.publish({"mate": ["ts01"]})
        tell(fleet, "ended")
        assert "ended" in following.wait_for(3)[2]
        assert following.process.poll() is None
        client.close()
