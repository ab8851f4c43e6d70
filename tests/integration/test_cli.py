"""The command `x2gofleet` against a real Valkey: tables, JSON, exit status, and no cookie anywhere."""

from __future__ import annotations

import codecs
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from x2gofleet import FleetCache
from x2gofleet.cli import commands, live, main
from x2gofleet.cli.picture import take_picture
from x2gofleet.cli.rich_output import console_for
from x2gofleet.extras import how_to_install
from x2gofleet.keys import Keys
from x2gofleet.kinds import Kind

COOKIES = ("0123456789abcdef0123456789abcdef", "00112233445566778899aabbccddeeff")
LOAD = "loadavg 0.05 0.10 0.20\nmemtotal_kb 24000000\nmemavailable_kb 23000000\ncpus 2\ncpu_mhz 2450.0\n"
MOUNT = "alice-50-1763800000_stDMATE_dp24|127.0.0.1|/tmp/.x2go-alice/media/disk/_home_alice\n"
REFUSED = "the server refused the key. Put the public key into authorized_keys"


class Command:
    """Runs `x2gofleet` in this process and keeps everything that it ever printed."""

    def __init__(self, url: str, namespace: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._common = ["--redis-url", url, "--namespace", namespace]
        self._capsys = capsys
        self.printed = ""

    def __call__(self, *argv: str, status: int = 0) -> tuple[str, str]:
        found = main([*argv, *self._common])
        out, err = self._capsys.readouterr()
        self.printed += out + err
        assert found == status, out + err
        assert "Traceback" not in err
        return out, err

    def json(self, *argv: str, status: int = 0) -> Any:
        return json.loads(self(*argv, "--json", status=status)[0])


@pytest.fixture
def run(valkey_url: str, namespace: str, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """The command; nothing that it prints may hold a cookie."""
    command = Command(valkey_url, namespace, capsys)
    yield command
    for cookie in COOKIES:
        assert cookie not in command.printed


@pytest.fixture
def some_fleet(fleet: Any, samples: Path) -> Any:
    """ts01 is up, ts02 is up and drained, ts03 is down, ts05 is unknown, alice is polled on ts06."""
    fleet.publish(
        {
            "mate": ["ts01", "ts02"],
            "kde": ["ts02", "ts03"],
            "all": ["ts01", "ts02", "ts03", "ts05"],
            "down": ["ts03"],
            "alice-desktop": ["alice@ts06"],
        },
        labels={"ts01": ["mate", "fast"]},
        drained=["ts02"],
    )
    fleet.listing("ts01", "sessions", samples / "root-sqlite.txt", age_seconds=3)
    fleet.listing("ts01", "load", LOAD)
    fleet.listing("ts01", "mounts", MOUNT)
    fleet.listing("ts02", "sessions", "")
    fleet.listing("ts02", "mounts", "")
    fleet.failure("ts03", error_class="AuthenticationFailed", error_text=REFUSED, age_seconds=110)
    fleet.listing("alice@ts06", "sessions", samples / "user-alice-sqlite.txt")
    fleet.listing("alice@ts06", "desktops", "alice@:50\nbob@:52\n")
    return fleet


def rows(out: str) -> list[list[str]]:
    """Split a table at its columns; the header is the first row."""
    return [re.split(r"\s{2,}", line.strip()) for line in out.splitlines() if line]


@pytest.mark.usefixtures("some_fleet")
class TestStatus:
    def test_every_server_has_a_row(self, run: Command) -> None:
        out, err = run("status")
        assert err == ""
        table = {row[0]: row for row in rows(out) if re.match(r"ts\d+$", row[0])}
        assert list(table) == ["ts01", "ts02", "ts03", "ts05", "ts06"]
        assert table["ts01"][1] == "up"
        assert table["ts01"][3:] == [table["ts01"][3], "3", "1", "1", "939166", "w1", "mate, fast"]
        assert 3.0 <= float(table["ts01"][3].removesuffix(" s")) < 30
        assert table["ts02"][1] == "up, drained"
        assert table["ts02"][4:8] == ["0", "0", "0", "-"]
        assert table["ts03"][1:8] == ["down", "2 min", "-", "-", "-", "-", "-"]
        assert table["ts05"][1:8] == ["unknown", "-", "-", "-", "-", "-", "-"]
        assert table["ts05"][8] == "none"
        assert f"ts03: AuthenticationFailed: {REFUSED}" in out
        assert "ts05: unknown: not owned by any worker" in out
        assert "5 servers: 3 up, 1 down, 1 unknown, 1 drained" in out
        assert "at least 7 sessions: 4 running, 2 suspended, 1 starting; those of 2 servers are unknown; oldest" in out

    def test_json(self, run: Command) -> None:
        document = run.json("status")
        assert document["cached"] is True
        summary = document["summary"]
        assert (summary["servers"], summary["up"], summary["down"], summary["unknown"]) == (5, 3, 1, 1)
        assert summary["sessions"] == {"running": 4, "suspended": 2, "starting": 1, "ending": 0, "total": 7}
        ts01, ts02, ts03, ts05, _ = document["servers"]
        assert ts01["sessions"] == {"running": 3, "suspended": 1, "starting": 1, "ending": 0, "total": 5}
        assert ts01["load_factor"] == 939166
        assert ts01["load"]["cpus"] == 2
        assert 3.0 <= ts01["ages"]["sessions"] < 30
        assert (ts01["worker"], ts01["labels"], ts01["drained"]) == ("w1", ["mate", "fast"], False)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", ts01["since"])
        assert ts02["sessions"]["total"] == 0
        assert ts02["drained"] is True
        assert ts03["sessions"] is None
        assert ts03["error"] == {"class": "AuthenticationFailed", "text": REFUSED}
        assert 110 <= ts03["since_seconds"] < 140
        assert (ts05["state"], ts05["worker"], ts05["error"]) == ("unknown", None, None)

    def test_a_server_that_is_not_up_is_an_answer_unless_that_is_asked(self, run: Command) -> None:
        run("status")
        assert "ts03" in run("status", "--fail-on-down", status=1)[0]

    def test_a_kind_that_fails_on_a_server_that_is_up_is_told(self, run: Command, some_fleet: Any) -> None:
        some_fleet.failure("ts02", kinds=["mounts"], error_class="ListingFailed", error_text="no such table: mounts")
        out, _ = run("status")
        assert next(row for row in rows(out) if row[0] == "ts02")[1] == "up, drained"
        assert "ts02: ListingFailed: no such table: mounts" in out
        found = {server["id"]: server for server in run.json("status")["servers"]}["ts02"]
        assert found["state"] == "up"
        assert found["error"] == {"class": "ListingFailed", "text": "no such table: mounts"}

    def test_all_up_passes_fail_on_down(self, run: Command, publish: Any) -> None:
        publish({"mate": ["ts01", "ts02"]})
        run("status", "--fail-on-down")


@pytest.mark.usefixtures("some_fleet")
class TestSessions:
    def test_of_a_profile(self, run: Command) -> None:
        out, err = run("sessions", "--profile", "mate")
        assert err == ""
        header, *table = rows(out)
        assert header == ["USER", "SESSION", "TYPE", "STATUS", "SERVER", "DISPLAY", "STARTED", "AGE"]
        assert [row[:7] for row in table] == [
            ["alice", "alice-51-1763800000_stRxTerm_dp24", "rootless", "suspended", "ts01", ":51", "2026-11-22 20:24"],
            ["alice", "alice-50-1763800000_stDMATE_dp24", "desktop", "running", "ts01", ":50", "2026-11-22 20:24"],
            ["bob", "bob-60-1763800100_stDKDE_dp24", "desktop", "starting", "ts01", ":60", "2026-11-22 21:09"],
            ["bob", "bob-52-1763800000_stDXFCE_dp24", "desktop", "running", "ts01", ":52", "2026-11-22 20:24"],
            [
                *("john_doe", "john_doe-61-1763800200_stRPUBLISHED_dp24", "published", "running", "ts01"),
                *(":61", "2026-11-22 21:09"),
            ],
        ]

    def test_of_a_user(self, run: Command) -> None:
        out, _ = run("sessions", "--profile", "mate", "--user", "bob")
        assert [row[1] for row in rows(out)[1:]] == [
            "bob-60-1763800100_stDKDE_dp24",
            "bob-52-1763800000_stDXFCE_dp24",
        ]

    def test_an_empty_answer_says_so(self, run: Command) -> None:
        assert run("sessions", "--profile", "mate", "--user", "nobody")[0] == "no sessions of nobody in profile mate\n"
        assert run.json("sessions", "--profile", "mate", "--user", "nobody")["sessions"] == []

    def test_of_the_whole_fleet_one_of_whose_servers_is_unknown(self, run: Command) -> None:
        out, err = run("sessions", status=1)
        assert len(rows(out)) == 8
        assert "not cached: the sessions on ts05 are unknown: not owned by any worker" in err
        assert f"incomplete: ts03 is down: its sessions are unknown: AuthenticationFailed: {REFUSED}" in err
        document = run.json("sessions", status=1)
        assert document["cached"] is False
        assert document["sessions"] is None
        assert len(document["partial"]) == 7
        assert document["unknown_servers"] == ["ts05"]
        assert document["missing_servers"] == ["ts03", "ts05"]

    def test_of_a_user_on_the_whole_fleet_includes_the_own_target(self, run: Command) -> None:
        servers = {row[4] for row in rows(run("sessions", "--user", "alice", status=1)[0])[1:]}
        assert servers == {"ts01", "ts06"}

    def test_one_server_down_is_an_incomplete_answer(self, run: Command) -> None:
        out, err = run("sessions", "--profile", "kde")
        assert out == "no sessions in profile kde on 1 server; those of 1 server are unknown\n"
        assert "incomplete: ts03 is down" in err
        document = run.json("sessions", "--profile", "kde")
        assert (document["cached"], document["sessions"], document["missing_servers"]) == (True, [], ["ts03"])
        assert document["complete"] is False

    def test_all_servers_down_is_no_answer(self, run: Command) -> None:
        out, err = run("sessions", "--profile", "down", status=1)
        assert out == ""
        assert "not cached: ts03 is down: its sessions are unknown: AuthenticationFailed" in err

    def test_a_profile_of_another_user_says_nothing(self, run: Command) -> None:
        out, err = run("sessions", "--profile", "alice-desktop", "--user", "bob", status=1)
        assert out == ""
        assert "not cached: nothing in profile alice-desktop is polled for the sessions of bob" in err

    def test_json_has_every_field_but_the_cookie(self, run: Command) -> None:
        document = run.json("sessions", "--profile", "mate", "--user", "alice")
        assert document["cached"] is True
        assert (document["profile"], document["user"], document["partial"]) == ("mate", "alice", None)
        assert 3.0 <= document["oldest_age"] < 30
        session = document["sessions"][0]
        assert session.pop("age") == pytest.approx(document["oldest_age"], abs=0.01)
        assert session == {
            "name": "alice-51-1763800000_stRxTerm_dp24",
            "user": "alice",
            "type": "rootless",
            "status": "suspended",
            "server": "ts01",
            "hostname": "vm",
            "display": 51,
            "client": "127.0.0.1",
            "agent_pid": 1368,
            "started": "2026-11-22T20:24:30",
            "suspended_at": "2026-11-22T21:09:57",
        }

    def test_finished_sessions_are_hidden_and_those_ending_shown(
        self, run: Command, some_fleet: Any, samples: Path
    ) -> None:
        text = (samples / "root-sqlite.txt").read_text().replace("|R|", "|T|").replace("|S|", "|F|")
        some_fleet.listing("ts02", "sessions", text)
        out, _ = run("sessions", "--profile", "kde")
        assert {row[3] for row in rows(out)[1:]} == {"ending"}
        assert "alice-51-1763800000_stRxTerm_dp24" not in out
        assert run.json("status")["servers"][1]["sessions"]["ending"] == 4

    def test_rows_that_were_rejected_are_told(self, run: Command, some_fleet: Any) -> None:
        some_fleet.listing("ts02", "sessions", "", rejected_rows=2)
        assert "2 row(s) that could not be believed" in run("sessions", "--profile", "kde")[1]

    def test_hostile_names_reach_the_terminal_as_text(self, run: Command, some_fleet: Any, samples: Path) -> None:
        text = (samples / "root-sqlite.txt").read_bytes().replace(b"alice", b"\x1b]0;x\x07\xff[red]\xe2\x80\xae")
        some_fleet.listing("ts01", "sessions", text)
        out, _ = run("sessions", "--profile", "mate")
        assert "�]0;x��[red]�" in out
        assert not set(out) & {"\x1b", "\x07", "\u202e"}
        document = run("sessions", "--profile", "mate", "--json")[0]
        assert document.isascii()
        assert json.loads(document)["sessions"]


@pytest.mark.usefixtures("some_fleet")
class TestDesktopsAndMounts:
    def test_desktops_of_a_user(self, run: Command) -> None:
        out, _ = run("desktops", "--profile", "alice-desktop", "--user", "alice")
        assert [row[:2] for row in rows(out)] == [["DESKTOP", "SERVER"], ["alice@:50", "ts06"], ["bob@:52", "ts06"]]
        found = run.json("desktops", "--profile", "alice-desktop", "--user", "alice")["desktops"]
        assert [(item["desktop"], item["server"]) for item in found] == [("alice@:50", "ts06"), ("bob@:52", "ts06")]

    def test_desktops_that_nobody_asked_for_come_with_the_command_to_ask(self, run: Command) -> None:
        out, err = run("desktops", "--profile", "mate", "--user", "bob", status=1)
        assert out == ""
        assert "not cached: the desktops on ts01, ts02 are unknown: not polled for those of bob yet" in err
        assert "x2gofleet refresh mate --desktops --user bob" in err

    def test_no_desktops(self, run: Command, some_fleet: Any) -> None:
        for server in ("ts01", "ts02"):
            some_fleet.listing(f"bob@{server}", "desktops", "")
        out, _ = run("desktops", "--profile", "mate", "--user", "bob")
        assert out == "no desktops that bob may share in profile mate\n"

    def test_mounts(self, run: Command) -> None:
        out, err = run("mounts", "--profile", "mate")
        assert err == ""
        assert rows(out)[1][:4] == [*MOUNT.strip().split("|"), "ts01"]
        assert run("mounts", "--profile", "mate", "--user", "bob")[0] == "no mounts of bob in profile mate\n"
        item = run.json("mounts", "--profile", "mate", "--user", "alice")["mounts"][0]
        assert [item["session"], item["client"], item["path"], item["server"]] == [*MOUNT.strip().split("|"), "ts01"]

    def test_mounts_that_are_not_polled(self, run: Command) -> None:
        _, err = run("mounts", "--profile", "alice-desktop", status=1)
        assert (
            "not cached: the mounts on ts06 are unknown: not polled for them yet; poll with: x2gofleet refresh alice"
            in err
        )


class TestWithoutAnAnswer:
    @pytest.mark.parametrize(
        "argv", [["status"], ["sessions"], ["desktops", "--user", "a"], ["mounts"], ["refresh", "mate"], ["watch"]]
    )
    def test_no_inventory(self, run: Command, argv: list[str]) -> None:
        out, err = run(*argv, status=1)
        assert out == ""
        assert err.startswith("x2gofleet: not cached: no worker has published an inventory in namespace 'test-")
        assert "x2gofleet-worker run --inventory fleet.toml" in err

    def test_no_inventory_as_json(self, run: Command) -> None:
        assert run.json("status", status=1)["cached"] is False
        document = run.json("sessions", status=1)
        assert (document["cached"], document["sessions"], document["partial"]) == (False, None, [])

    @pytest.mark.usefixtures("some_fleet")
    @pytest.mark.parametrize("argv", [["sessions", "--profile"], ["desktops", "--user", "a", "--profile"], ["refresh"]])
    def test_an_unknown_profile_names_the_known_ones(self, run: Command, argv: list[str]) -> None:
        out, err = run(*argv, "maet", status=2)
        assert out == ""
        assert err == ("x2gofleet: unknown profile 'maet'; known profiles: alice-desktop, all, down, kde, mate\n")

    def test_a_newer_schema_says_to_upgrade(
        self, run: Command, some_fleet: Any, keys: Keys, redis_client: redis.Redis
    ) -> None:
        redis_client.hset(keys.snapshot("ts01", Kind.SESSIONS), "schema", "99")
        assert "upgrade x2gofleet here" in run("status")[0]
        assert "upgrade x2gofleet here" in run("sessions", "--profile", "mate", status=1)[1]

    def test_something_that_is_no_snapshot(
        self, run: Command, some_fleet: Any, keys: Keys, redis_client: redis.Redis
    ) -> None:
        before = {server["id"]: server for server in json.loads(run("status", "--json")[0])["servers"]}
        redis_client.hdel(keys.snapshot("ts01", Kind.SESSIONS), "digest")
        redis_client.hset(keys.snapshot("ts01", Kind.LOAD), "stdout", "loadavg high")
        told = "the sessions snapshot of ts01 can't be read"
        for command in ("status", "watch"):
            out, err = run(command)
            assert (told in out, err) == (True, "")
        after = {server["id"]: server for server in json.loads(run("status", "--json")[0])["servers"]}
        assert after["ts01"]["error"]["class"] == "SnapshotCorrupt"
        assert after["ts01"]["load"] is None
        facts = ("state", "sessions", "load", "error", "worker", "failures")
        others = {name: [server[fact] for fact in facts] for name, server in before.items() if name != "ts01"}
        assert {name: [server[fact] for fact in facts] for name, server in after.items() if name != "ts01"} == others
        assert told in run("sessions", status=1)[1]


class Answering:
    """Answers refresh requests as worker ``w1`` would, in a thread."""

    def __init__(self, fleet: Any, answers: dict[str, dict[str, Any]]) -> None:
        self._fleet, self._answers = fleet, answers
        self.requests: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Answering:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        store = self._fleet.store
        while len(self.requests) < len(self._answers):
            taken = store.take_request(wait_seconds=2)
            if taken is None:
                return
            request = json.loads(taken)
            self.requests.append(request)
            answer = {"target": request["target"], **self._answers[request["target"]]}
            store.answer_all([request["id"]], json.dumps(answer).encode())


class TestRefresh:
    def test_what_came_is_shown(self, run: Command, some_fleet: Any) -> None:
        answers = {
            "ts01": {"stored": [["ts01", "sessions"], ["ts01", "mounts"]]},
            "ts02": {"stored": [["ts02", "sessions"], ["ts02", "mounts"]]},
        }
        with Answering(some_fleet, answers) as worker:
            out, err = run("refresh", "mate", "--mounts")
        assert err == ""
        table = sorted(row[:3] for row in rows(out)[1:])
        assert table == [
            ["ts01", "mounts", "1"],
            ["ts01", "sessions", "5"],
            ["ts02", "mounts", "0"],
            ["ts02", "sessions", "0"],
        ]
        assert [request["kinds"] for request in worker.requests] == [["sessions", "mounts"]] * 2

    def test_a_server_that_failed_is_named(self, run: Command, some_fleet: Any) -> None:
        answers = {"ts01": {"stored": [["ts01", "sessions"]]}, "ts02": {"error": "the connection ended", "stored": []}}
        with Answering(some_fleet, answers):
            out, err = run("refresh", "mate", status=1)
        assert [row[:2] for row in rows(out)[1:]] == [["ts01", "sessions"]]
        assert err == "x2gofleet: refresh failed: ts02: the connection ended\n"

    def test_json(self, run: Command, some_fleet: Any) -> None:
        some_fleet.listing("bob@ts01", "desktops", "bob@:52\n")
        answers = {"ts01": {"stored": [["bob@ts01", "desktops"]]}, "ts02": {"error": "no", "stored": []}}
        with Answering(some_fleet, answers) as worker:
            document = run.json("refresh", "mate", "--desktops", "--user", "bob", status=1)
        assert [request["username"] for request in worker.requests] == ["bob", "bob"]
        assert document["errors"] == {"ts02": "no"}
        (snapshot,) = document["snapshots"]
        assert (snapshot["server"], snapshot["user"], snapshot["kind"], snapshot["entries"]) == (
            *("ts01", "bob", "desktops"),
            1,
        )
        assert snapshot["worker"] == "w1"

    @pytest.mark.usefixtures("some_fleet")
    def test_a_worker_that_does_not_answer(self, run: Command) -> None:
        _, err = run("refresh", "mate", "--timeout", "0.3", status=1)
        assert err.splitlines() == [
            f"x2gofleet: refresh failed: {server}: its worker did not answer within 0.3 s"
            for server in ("ts01", "ts02")
        ]

    def test_no_worker(self, run: Command, publish: Any) -> None:
        publish({"mate": ["ts09"]})
        _, err = run("refresh", "mate", status=1)
        assert "ts09: no worker owns it now; is an x2gofleet-worker running?" in err


class Terminal:
    """Runs `x2gofleet` on a terminal of a given width."""

    def __init__(self, *argv: str, columns: int = 80, lines: int = 24, code: str = "", **environment: str) -> None:
        master, worker = pty.openpty()
        self._master = master
        # Ctrl-C reaches only a process whose controlling terminal this is.
        start = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
        code = f"{start}\n{code}\nfrom x2gofleet.cli import main; sys.exit(main({list(argv)!r}))"
        clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        sizes = {"COLUMNS": str(columns), "LINES": str(lines), "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=worker,
            stdout=worker,
            stderr=worker,
            env=clean | sizes | environment,
            start_new_session=True,
        )
        os.close(worker)
        # A character may come in two pieces.
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.printed = ""

    def read_until(self, pattern: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.printed):
            assert time.monotonic() < deadline, self.printed
            if not self._read():
                raise AssertionError(f"ended without {pattern!r}: {self.printed}")

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:
            return False
        self.printed += self._decoder.decode(data)
        return bool(data)

    def press(self, key: bytes) -> None:
        os.write(self._master, key)

    def end(self, seconds: float = 20.0) -> int:
        deadline = time.monotonic() + seconds
        try:
            while self._read():
                assert time.monotonic() < deadline, self.printed
            return self.process.wait(10)
        finally:
            os.close(self._master)
            self.process.kill()
            self.process.wait()


WITHOUT_RICH = "sys.modules['rich'] = None; sys.modules['rich.console'] = None"


@pytest.mark.usefixtures("some_fleet")
class TestOnATerminal:
    @pytest.fixture
    def common(self, valkey_url: str, namespace: str) -> list[str]:
        return ["--redis-url", valkey_url, "--namespace", namespace]

    @pytest.mark.parametrize("columns", [80, 120])
    @pytest.mark.parametrize("code", ["", WITHOUT_RICH], ids=["rich", "without-rich"])
    @pytest.mark.parametrize("command", ["status", "sessions", "mounts"])
    def test_no_line_is_wider_than_the_terminal(self, common: list[str], command: str, code: str, columns: int) -> None:
        terminal = Terminal(command, *common, columns=columns, code=code)
        assert terminal.end() in (0, 1)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.printed)
        assert "ts01" in plain
        assert max(len(line) for line in plain.splitlines()) <= columns
        assert ("\x1b" in terminal.printed) is (not code)

    def test_no_color(self, common: list[str]) -> None:
        terminal = Terminal("status", *common, NO_COLOR="1")
        assert terminal.end() == 0
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", terminal.printed)

    @pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "ctrl-c"])
    def test_watch_goes_on_until_a_key_ends_it(self, common: list[str], fleet: Any, samples: Path, key: bytes) -> None:
        terminal = Terminal("watch", *common, columns=100)
        terminal.read_until(r"5 servers: 3 up")
        fleet.listing("ts02", "sessions", samples / "root-sqlite.txt")
        terminal.read_until(r"12 sessions: ")
        terminal.press(key)
        assert terminal.end() == 0
        assert terminal.printed.rstrip().endswith("old")
        assert "\x1b[?1049l" in terminal.printed
        for cookie in COOKIES:
            assert cookie not in terminal.printed

    def test_watch_without_rich_shows_once_and_says_why(self, common: list[str]) -> None:
        terminal = Terminal("watch", *common, code=WITHOUT_RICH)
        assert terminal.end() == 0
        assert "5 servers: 3 up" in terminal.printed
        (said,) = re.findall(r"x2gofleet: the live view needs rich: (.*?)\r?\n", terminal.printed)
        assert said == how_to_install("cli"), "in one piece, so that it can be copied"


@pytest.mark.usefixtures("some_fleet")
class TestLive:
    def test_watch_without_a_terminal_prints_one_view(self, run: Command) -> None:
        out, err = run("watch")
        assert err == ""
        assert "5 servers: 3 up, 1 down, 1 unknown, 1 drained; at least 7 sessions" in out
        assert "alice-50-1763800000_stDMATE_dp24" in out
        assert "\x1b" not in out

    def test_watch_as_json_is_status_as_json(self, run: Command) -> None:
        assert run.json("watch")["summary"]["servers"] == 5

    def test_run_live_without_a_terminal_prints_the_summary(self, valkey_url: str, namespace: str) -> None:
        file = io.StringIO()
        with FleetCache.from_url(valkey_url, namespace=namespace) as cache:
            live.run_live(cache, console=console_for(file), title="the title")
        assert file.getvalue().startswith("the title\nSERVER ")
        assert file.getvalue().rstrip().endswith("old")

    @pytest.mark.parametrize("height", [12, 24, 60])
    def test_a_frame_fits_its_terminal(self, valkey_url: str, namespace: str, fleet: Any, height: int) -> None:
        names = [f"ts{number:02}" for number in range(1, 41)]
        fleet.publish({"mate": names})
        row = "|{u}-50-1763800000_stDMATE_dp24|50|vm|R|2026-11-22T20:24:30|||||2026-11-22T20:24:30|{u}|2|||\n"
        for name in names[:20]:
            fleet.listing(name, "sessions", "".join(row.format(u=f"user{number}") for number in range(5)))
        file = io.StringIO()
        console = console_for(file)
        console.width, console.height = 80, height
        with FleetCache.from_url(valkey_url, namespace=namespace) as cache:
            console.print(live.render(cache, title="the title"))
        lines = file.getvalue().splitlines()
        assert len(lines) <= height
        assert max(len(line.rstrip()) for line in lines) <= 80
        assert "more servers: x2gofleet status" in file.getvalue()
        assert ("more sessions: x2gofleet sessions" in file.getvalue()) is (height > 12)
        unknown_first = [line for line in lines if re.match(r"ts\d+ ", line)]
        assert unknown_first[0].split()[1] == "unknown"

    def test_an_outage_is_shown_and_passes(
        self, valkey_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def shown(cache: FleetCache) -> str:
            file = io.StringIO()
            console_for(file).print(live.render(cache, title="the title"))
            return file.getvalue()

        client = redis.Redis(unix_socket_path="/dev/null/socket")
        with FleetCache(client, namespace=namespace) as cache:
            for text in (shown(cache), live.summary(cache)):
                assert "CacheUnavailable: asking Redis" in " ".join(text.split())
                assert "SERVER" not in text
        with FleetCache.from_url(valkey_url, namespace=namespace) as cache:
            healthy, calls = cache.servers, []

            def servers() -> Any:
                calls.append(1)
                if len(calls) == 2:
                    raise live.FleetError("gone for a moment")
                return healthy()

            monkeypatch.setattr(cache, "servers", servers)
            monkeypatch.setattr(live, "PERIOD_SECONDS", 0.01)
            file = io.StringIO()
            console = type(console_for(file))(file=file, force_terminal=True, width=100, height=30)
            live.run_live(cache, console=console, seconds=0.5, title="the title")
        text = file.getvalue()
        assert text.index("3 up") < text.index("gone for a moment") < text.rindex("3 up")


@pytest.mark.usefixtures("some_fleet")
def test_no_repr_of_what_the_command_holds_has_a_cookie(valkey_url: str, namespace: str) -> None:
    with FleetCache.from_url(valkey_url, namespace=namespace) as cache:
        picture, view = take_picture(cache), cache.view("sessions")
        result = commands.sessions(cache, namespace=namespace, profile=None, user=None)
    assert any(seen.session.cookie == COOKIES[0] for seen in picture.sessions)
    for held in (picture, view, result):
        assert "alice-50-1763800000_stDMATE_dp24" in repr(held) or held is view
        assert not any(cookie in repr(held) for cookie in COOKIES)


def test_a_reader_that_goes_away_is_no_error(valkey_url: str, namespace: str, some_fleet: Any) -> None:
    some_fleet.listing("ts02", "mounts", "".join(f"s{number}|c|/p\n" for number in range(20000)))
    argv = ["mounts", "--profile", "mate", "--redis-url", valkey_url, "--namespace", namespace]
    with subprocess.Popen(
        [sys.executable, "-m", "x2gofleet.cli", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"SESSION")
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(10) == 0


def test_an_ascii_terminal_is_no_error(valkey_url: str, namespace: str, some_fleet: Any, samples: Path) -> None:
    text = (samples / "root-sqlite.txt").read_text().replace("alice", "jürgen")
    some_fleet.listing("ts01", "sessions", text)
    argv = ["sessions", "--profile", "mate", "--redis-url", valkey_url, "--namespace", namespace]
    found = subprocess.run(
        [sys.executable, "-m", "x2gofleet.cli", *argv],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert b"j?rgen" in found.stdout
