"""probe.sh run here by every shell there is, against made-up X2Go commands and a session database of the test's own."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from x2gofleet_workers.proof import prove_load, prove_mounts, prove_sessions
from x2gofleet_workers.shell_probe import Answer, Request, Section, parse_hello, probe_text

from tests.waiting import HANG_SECONDS
from x2gofleet.errors import CommandMissing, ListingFailed, NotProven
from x2gofleet.kinds import Kind

SHELLS = {
    name: [path, *rest]
    for name, rest in (("dash", []), ("bash", ["--posix"]), ("busybox", ["sh"]), ("ksh", []), ("mksh", []))
    if (path := shutil.which(name))
} or {"sh": ["/bin/sh"]}
NO_DBI = not shutil.which("perl") or subprocess.run(["perl", "-MDBD::SQLite", "-e1"], capture_output=True).returncode
needs_dbi = pytest.mark.skipif(bool(NO_DBI), reason="perl has no DBD::SQLite, which x2goserver depends on")
HOST = Path("/proc/sys/kernel/hostname").read_text().strip()

SCHEMA = """
create table sessions(session_id varchar(500) primary key, display integer, uname varchar(100), server varchar(100),
  client varchar(100), status char(1), init_time timestamp, last_time timestamp, cookie char(33), agent_pid integer,
  gr_port integer, sound_port integer, fs_port integer, tekictrl_port integer, tekidata_port integer);
create table mounts(session_id varchar(500), path varchar(500), client varchar(100));
"""
LIST_ROOT = f"""\
echo run >>"$FAKE/count"
sqlite3 -separator '|' "$FAKE/x2go_sessions" "select agent_pid, session_id, display, server, status,
  strftime('%Y-%m-%dT%H:%M:%S', init_time), cookie, client, gr_port, sound_port,
  strftime('%Y-%m-%dT%H:%M:%S', last_time), uname, 17, fs_port, tekictrl_port, tekidata_port
  from sessions where server = '{HOST}' order by status desc"
"""


class Machine:
    """A folder that the script takes for the machine: its commands, its session database, its agents' state files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.database = folder / "x2go_sessions"
        self.command("getent", f"echo x2gouser:x:1:1::{folder}:/bin/false")
        self.command("x2gopath", f"echo {folder}/libexec")
        self.prefix = ""
        self.configure("sqlite")

    def command(self, name: str, text: str) -> None:
        path = self.bin / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\nFAKE={self.folder}\n{text}\n")
        path.chmod(0o755)

    def configure(self, backend: str) -> None:
        (self.folder / "sql").write_text(f"# a comment\n backend = {backend} \n")

    def sql(self, text: str, *values: object) -> None:
        with sqlite3.connect(self.database) as connection:
            connection.execute(text, values)
        connection.close()

    def add(self, session: str, username: str = "alice", **columns: object) -> None:
        row: dict[str, object] = {
            "session_id": session,
            "uname": username,
            "display": 50,
            "server": HOST,
            "client": "10.0.0.7",
            "status": "R",
            "init_time": "2026-11-22 20:24:30",
            "last_time": "2026-11-22 20:30:00",
            "cookie": "c0ffee",
            "agent_pid": 4711,
            "gr_port": 30001,
            "sound_port": 30002,
            "fs_port": 30003,
            "tekictrl_port": -1,
            "tekidata_port": -1,
            **columns,
        }
        self.sql(f"insert into sessions({', '.join(row)}) values({', '.join('?' * len(row))})", *row.values())

    def with_database(self) -> None:
        with sqlite3.connect(self.database) as connection:
            connection.executescript(SCHEMA)
        connection.close()
        self.command("x2golistsessions_root", LIST_ROOT)

    @property
    def listings(self) -> int:
        """How often x2golistsessions_root ran."""
        count = self.folder / "count"
        return len(count.read_text().splitlines()) if count.exists() else 0

    @property
    def script(self) -> str:
        text = probe_text()
        for old, new in (
            ("PATH=/usr/local/sbin:", f"PATH={self.bin}:/usr/local/sbin:"),
            ("sqlconfig=/etc/x2go/x2gosql/sql", f"sqlconfig={self.folder}/sql"),
            ("/tmp/.x2go-*", f"{self.folder}/agents-*"),
            ("/tmp-inst/*", f"{self.folder}/instances-*"),
        ):
            assert text.count(old) == 1, f"{old!r} is not once in probe.sh"
            text = text.replace(old, new)
        return text.replace("x2golist", f"{self.prefix}x2golist")


class Probe:
    """A running probe, and its answers taken apart and judged as a worker does."""

    def __init__(self, machine: Machine, shell: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*shell, "-c", machine.script, "x2gofleet-probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd="/",
        )
        assert self.process.stdin
        assert self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        assert self.stdout.readline() == b"\n"
        hello = parse_hello(self.stdout.readline().rstrip(b"\n"))
        assert hello is not None
        self.hello = hello

    def send(self, line: bytes) -> None:
        self.stdin.write(line)
        self.stdin.flush()

    def ask(self, *sections: str, scope: str = "server", seconds: int = 10) -> tuple[Answer, list[Section]]:
        request = Request(scope, sections, seconds)
        answer, found = Answer(request), []
        self.send(request.line())
        while not answer.done:
            line = self.stdout.readline()
            assert line, "the probe ended"
            found += list(answer.feed(line))
        assert (answer.uid, answer.host) == (self.hello.uid, HOST)
        return answer, found

    def one(self, section: str, **how: Any) -> Section:
        _, (found,) = self.ask(section, **how)
        return found

    def sessions(self, signature: str = "-") -> tuple[Section, bytes]:
        """Ask for sessions in server scope; return the section and what of it is believed."""
        answer, (section,) = self.ask(f"sessions={signature}")
        if section.same:
            return section, b""
        judged = prove_sessions(
            section, scope="server", uid=0, login="root", host=answer.host, mark=answer.mark, stderr=b""
        )
        return section, judged.stdout

    def close(self) -> tuple[int, bytes]:
        """End its input; return its exit status and what it said on stderr."""
        _, stderr = self.process.communicate(timeout=HANG_SECONDS)
        return self.process.returncode, stderr


Start = Callable[..., Probe]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture(params=SHELLS)
def start(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Start]:
    """Starts the probe in one shell; whatever is left of it is ended with the test."""
    probes: list[Probe] = []

    def run(**how: Any) -> Probe:
        probes.append(Probe(machine, SHELLS[request.param], **how))
        return probes[-1]

    yield run
    for probe in probes:
        if probe.process.poll() is None:
            for child in psutil.Process(probe.process.pid).children(recursive=True):
                child.kill()
            probe.process.kill()
        probe.process.communicate(timeout=HANG_SECONDS)


def test_it_greets_answers_and_ends_with_its_input(start: Start) -> None:
    probe = start()
    assert (probe.hello.uid, probe.hello.host) == (os.getuid(), os.uname().nodename)
    section = probe.one("load")
    report = prove_load(section, stderr=b"")
    assert report.stdout == section.body
    assert probe.close() == (0, b"")


MARK = "ab" * 16


MALFORMED = [
    ("", "- error no boundary"),
    ("poll", "- error no boundary"),
    ("poll XYZ server 9 load", "- error no boundary"),
    ("poll ../../etc server 9 load", "- error no boundary"),
    (f"pull {MARK} server 9 load", f"{MARK} error unknown verb"),
    (f"poll {MARK} root 9 load", f"{MARK} error unknown scope"),
    (f"poll {MARK} server", f"{MARK} error no timeout"),
    (f"poll {MARK} server x load", f"{MARK} error no timeout"),
    (f"poll {MARK} server -1 load", f"{MARK} error no timeout"),
    (f"poll {MARK} server 0 load", f"{MARK} error no timeout"),
    (f"poll {MARK} server 9 printers", f"{MARK} error unknown section"),
    (f"poll {MARK} server 9 $(id)", f"{MARK} error unknown section"),
    (f"poll {MARK} server 9 *", f"{MARK} error unknown section"),
    (f"poll {MARK} server 9 desktops=", f"{MARK} error no user name"),
    (f"poll {MARK} server 9 desktops=-c", f"{MARK} error no user name"),
    (f"poll {MARK} server 9 desktops=a;id", f"{MARK} error no user name"),
    (f"poll {MARK} server 9 desktops=$(id)", f"{MARK} error no user name"),
    (f"poll {MARK} user 9 desktops=alice", f"{MARK} error desktops of another user in user scope"),
]


def test_malformed_requests_are_refused_and_the_next_is_answered(start: Start) -> None:
    probe = start()
    for line, answer in MALFORMED:
        probe.send(line.encode() + b"\n")
        assert probe.stdout.readline().decode().rstrip("\n") == answer, line
        assert probe.one("load").status == 0
    assert probe.close() == (0, b"")


def test_a_request_without_its_newline_is_not_carried_out(start: Start, machine: Machine) -> None:
    machine.command("x2golistsessions", f"touch {machine.folder}/ran")
    probe = start()
    probe.send(f"poll {MARK} user 9 sessions=-".encode())
    assert probe.close()[0] == 0
    assert not (machine.folder / "ran").exists()


def test_raw_bytes_come_through(start: Start, machine: Machine) -> None:
    machine.command("x2golistsessions", r"printf 'a\\b \001\377 %%s\n\n  two \n\ncut'")
    machine.command("x2gofeature", "echo ok")
    machine.command("x2golistshadowsessions", "echo shadow")
    section = start().one("sessions=-", scope="user")
    assert section.body == b"a\\b \x01\xff %s\n\n  two \n\ncutshadow\n"
    assert (section.status, section.signature) == (0, "-")


def test_shadow_sessions_are_left_out_where_the_server_has_no_such_feature(start: Start, machine: Machine) -> None:
    machine.command("x2golistsessions", "echo row")
    machine.command("x2gofeature", "echo not available; exit 255")
    machine.command("x2golistshadowsessions", "echo shadow")
    section = start().one("sessions=-", scope="user")
    assert (section.body, section.status) == (b"row\n", 0)


def test_a_failed_listing_has_its_exit_status(start: Start, machine: Machine) -> None:
    machine.command("x2golistsessions", "echo sorry; exit 3")
    section = start().one("sessions=-", scope="user")
    assert (section.body, section.status) == (b"sorry\n", 3)


def test_commands_that_are_not_there(start: Start, machine: Machine) -> None:
    machine.prefix = "not-installed-"
    probe = start()
    _, (sessions, desktops) = probe.ask("sessions=-", "desktops", scope="user")
    assert (sessions.status, desktops.status) == (127, 127)
    with pytest.raises(CommandMissing):
        prove_sessions(
            sessions, scope="user", uid=1, login="alice", host=HOST, mark=b"", stderr=b"x2golistsessions: not found"
        )


def test_a_command_that_reads_its_input_takes_no_request(start: Start, machine: Machine) -> None:
    machine.command("x2golistsessions", "cat; echo row")
    machine.command("x2gofeature", "cat; exit 1")
    probe = start()
    first, second = Request("user", ("sessions=-",), 9), Request("user", ("sessions=-",), 9)
    probe.send(first.line() + second.line())
    for request in (first, second):
        answer = Answer(request)
        sections: list[Section] = []
        while not answer.done:
            sections += list(answer.feed(probe.stdout.readline()))
        assert [section.body for section in sections] == [b"row\n"]


def test_a_command_that_hangs_is_ended_and_the_next_poll_is_answered(start: Start, machine: Machine) -> None:
    machine.command("x2golistdesktops", "exec sleep 1000")
    probe = start()
    began = time.monotonic()
    section = probe.one("desktops", seconds=1)
    assert section.status == 124
    assert time.monotonic() - began < 10
    assert probe.one("load").status == 0
    assert psutil.Process(probe.process.pid).children(recursive=True) == []


def test_one_that_ignores_sigterm_is_killed(start: Start, machine: Machine) -> None:
    machine.command("x2golistdesktops", "trap '' TERM; echo deaf; while :; do sleep 0.1; done")
    probe = start()
    section = probe.one("desktops", seconds=1)
    assert (section.body, section.status) == (b"deaf\n", 137)


def test_no_zombie_is_left_by_many_polls(start: Start, machine: Machine) -> None:
    machine.command("x2golistdesktops", "echo alice@:50; exec >&-; exit 1")
    probe = start()
    for _ in range(10):
        assert probe.one("desktops").status == 1
    children = psutil.Process(probe.process.pid).children(recursive=True)
    assert [child.status() for child in children] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_at_once_also_in_the_middle_of_a_command(
    start: Start, machine: Machine, number: signal.Signals
) -> None:
    machine.command("x2golistdesktops", f"touch {machine.folder}/began; exec sleep 1")
    idle, busy = start(), start()
    busy.send(Request("user", ("desktops",), 1).line())
    deadline = time.monotonic() + HANG_SECONDS
    while not (machine.folder / "began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for probe in (idle, busy):
        probe.process.send_signal(number)
        assert probe.process.wait(HANG_SECONDS) == -number


def test_the_environment_does_not_choose_its_commands(start: Start, machine: Machine, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    for name in ("id", "stat", "timeout", "uname", "sed", "x2golistdesktops"):
        (evil / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
        (evil / name).chmod(0o755)
    (evil / "env").write_text(f"touch {tmp_path}/was-run\n")
    machine.command("x2golistdesktops", 'echo "$DISPLAY$XAUTHORITY$LC_ALL@:1"')
    probe = start(
        env={"PATH": f"{evil}:{os.environ['PATH']}", "ENV": f"{evil}/env", "DISPLAY": ":9", "LC_ALL": "de_DE"}
    )
    assert probe.one("desktops").body == b"C@:1\n"
    assert not (tmp_path / "was-run").exists()


def test_desktops_of_a_user_are_asked_for_as_that_user(start: Start, machine: Machine) -> None:
    machine.command("su", 'echo "su $*" >&2; printf "%s@:50\\n" "$1"')
    machine.command("x2golistdesktops", "echo root@:1")
    probe = start()
    _, found = probe.ask("desktops=john_doe", "desktops=a.b-c@d", "desktops")
    assert [section.body for section in found] == [b"john_doe@:50\n", b"a.b-c@d@:50\n", b"root@:1\n"]


# Server scope on SQLite


@pytest.fixture
def database(machine: Machine) -> Machine:
    if not shutil.which("sqlite3"):
        pytest.skip("the made-up x2golistsessions_root needs the command sqlite3")
    machine.with_database()
    machine.add("alice-50-1700000001_stDMATE_dp24")
    return machine


@needs_dbi
def test_a_listing_is_proven_by_the_records_around_it(start: Start, database: Machine) -> None:
    database.add("carla-52-3_stRPUBLISHED_dp24", "carla", cookie=None, client="", agent_pid=None, gr_port=None)
    database.add("bob-51-2_stDXFCE_dp24", "bob", server="elsewhere")
    section, stdout = start().sessions()
    assert section.attributes == {"backend": "sqlite", "sig": "1", "host": HOST}
    assert [line.split(b"|")[1][:5] for line in stdout.splitlines()] == [b"alice", b"carla"]


@needs_dbi
def test_a_forged_row_is_dropped_and_the_others_stand(start: Start, database: Machine) -> None:
    forged = f"1|bob-99-9_stDMATE_dp24|99|{HOST}|R|2026-11-22T20:24:30|x|6.6.6.6|1|2|2026-11-22T20:24:30|bob|17|3|-1|-1"
    database.add("mallory-60-5_stDMATE_dp24", "mallory", client=f"x\n{forged}\ny")
    answer, (section,) = start().ask("sessions=-")
    judged = prove_sessions(section, scope="server", uid=0, login="root", host=HOST, mark=answer.mark, stderr=b"")
    assert [line.split(b"|")[11] for line in judged.stdout.splitlines()] == [b"alice"]
    assert len(judged.rejected) == 3


@needs_dbi
def test_unchanged_it_says_same_and_runs_nothing(start: Start, database: Machine) -> None:
    probe = start()
    section, _ = probe.sessions()
    for _ in range(5):
        again, _ = probe.sessions(section.signature)
        assert again.same
        assert again.signature == section.signature
    assert database.listings == 1


def stolen_time(path: Path) -> None:
    """Change a file, keeping its size and mtime: only its ctime tells."""
    found = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def written(path: Path, text: str) -> None:
    path.write_text(text)


def agent(machine: Machine) -> Path:
    return next(machine.folder.glob("agents-*/C-*/state"))


def replaced(path: Path) -> None:
    found = path.stat()
    shutil.copy(path, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


CHANGES: dict[str, Callable[[Machine], None]] = {
    "a new session": lambda machine: machine.add("bob-51-2_stDXFCE_dp24", "bob"),
    "a status": lambda machine: machine.sql("update sessions set status = 'S'"),
    "an agent's state": lambda machine: written(agent(machine), "SUSPENDED\n"),
    "an agent's state, its size and mtime kept": lambda machine: stolen_time(agent(machine)),
    "another agent": lambda machine: new_agent(machine, "agents-bob", "C-bob-51"),
    "an agent in a private /tmp": lambda machine: new_agent(machine, "instances-bob/.x2go-bob", "C-bob-51"),
    "the SQL configuration": lambda machine: machine.configure("sqlite  "),
    "the database replaced by a copy": lambda machine: replaced(machine.database),
    "the database written over, mtime kept": lambda machine: stolen_time(machine.database),
}


def new_agent(machine: Machine, folder: str, session: str) -> None:
    state = machine.folder / folder / session / "state"
    state.parent.mkdir(parents=True)
    state.write_text("RUNNING\n")


@needs_dbi
@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_seen_at_the_next_poll_and_once(start: Start, database: Machine, change: str) -> None:
    new_agent(database, "agents-alice", "C-alice-50")
    probe = start()
    first, _ = probe.sessions()
    assert probe.sessions(first.signature)[0].same
    CHANGES[change](database)
    second, stdout = probe.sessions(first.signature)
    assert not second.same
    assert stdout
    assert probe.sessions(second.signature)[0].same
    assert database.listings == 2


@needs_dbi
def test_a_change_in_wal_mode_is_seen(start: Start, database: Machine) -> None:
    connection = sqlite3.connect(database.database, isolation_level=None)
    try:
        connection.execute("pragma journal_mode = wal")
        connection.execute("update sessions set client = 'x'")
        probe = start()
        first, _ = probe.sessions()
        assert probe.sessions(first.signature)[0].same
        connection.execute("update sessions set status = 'S'")
        second, stdout = probe.sessions(first.signature)
        assert not second.same
        assert stdout.split(b"|")[4] == b"S"
    finally:
        connection.close()


@needs_dbi
def test_a_listing_that_was_not_stored_is_listed_again(start: Start, database: Machine) -> None:
    """The worker hands a signature back only once Redis took its listing: until then the older one counts."""
    probe = start()
    first, _ = probe.sessions()
    assert probe.sessions(first.signature)[0].same
    database.sql("update sessions set status = 'S'")
    lost, _ = probe.sessions(first.signature)
    assert not lost.same
    again, stdout = probe.sessions(first.signature)
    assert not again.same
    assert stdout.split(b"|")[4] == b"S"
    assert probe.sessions(again.signature)[0].same
    assert not probe.sessions(lost.signature)[0].same


@needs_dbi
def test_a_signature_of_another_probe_means_nothing(start: Start, database: Machine) -> None:
    first, _ = start().sessions()
    other, _ = start().sessions(first.signature)
    assert not other.same


@needs_dbi
def test_a_change_during_the_listing_is_seen_at_the_next_poll(start: Start, database: Machine) -> None:
    database.command(
        "x2golistsessions_root",
        LIST_ROOT + "sqlite3 \"$FAKE/x2go_sessions\" \"update sessions set status = 'S' where status = 'R'\"\n",
    )
    probe = start()
    section, stdout = probe.sessions()
    assert stdout.split(b"|")[4] == b"R"
    again, stdout = probe.sessions(section.signature)
    assert not again.same
    assert stdout.split(b"|")[4] == b"S"


@needs_dbi
@pytest.mark.parametrize("wrong", ["absent", "no database", "no table"])
def test_a_database_that_can_not_be_read_is_an_error(start: Start, database: Machine, wrong: str) -> None:
    database.database.unlink()
    if wrong == "no database":
        database.database.write_bytes(b"this is no database, whatever its name says" * 100)
    elif wrong == "no table":
        sqlite3.connect(database.database).close()
        database.sql("create table other(x)")
    probe = start()
    with pytest.raises(ListingFailed, match="can't be read"):
        probe.sessions()
    answer, (section,) = probe.ask("mounts")
    with pytest.raises(ListingFailed, match="can't be read"):
        prove_mounts(section, scope="server", uid=0, login="root", mark=answer.mark, stderr=b"")
    if wrong == "absent":
        assert not database.database.exists(), "the probe made a database"


@needs_dbi
def test_a_listing_that_hangs_is_ended_with_its_proof(start: Start, database: Machine) -> None:
    database.command("x2golistsessions_root", "exec sleep 1000")
    probe = start()
    answer, (section,) = probe.ask("sessions=-", seconds=1)
    with pytest.raises(ListingFailed, match="did not end in time"):
        prove_sessions(section, scope="server", uid=0, login="root", host=HOST, mark=answer.mark, stderr=b"")
    assert probe.one("load").status == 0


@needs_dbi
def test_a_listing_that_prints_nothing_is_not_proven(start: Start, database: Machine) -> None:
    database.command("x2golistsessions_root", "exit 0")
    with pytest.raises(NotProven, match="lacks 1 of 1"):
        start().sessions()


@needs_dbi
def test_it_only_reads(start: Start, database: Machine) -> None:
    before = database.database.read_bytes()
    mode = stat.S_IMODE(database.database.stat().st_mode)
    probe = start()
    probe.sessions()
    probe.one("mounts")
    assert database.database.read_bytes() == before
    assert stat.S_IMODE(database.database.stat().st_mode) == mode
    assert not list(database.folder.glob("x2go_sessions-*"))


@needs_dbi
def test_mounts_by_records(start: Start, database: Machine) -> None:
    database.sql("insert into mounts values('s1', '/tmp/a b', '127.0.0.1'), ('s0', '/x|y', '10.0.0.1')")
    answer, (section,) = start().ask("mounts")
    judged = prove_mounts(section, scope="server", uid=0, login="root", mark=answer.mark, stderr=b"")
    assert judged.stdout == b"s0|10.0.0.1|/x|y\ns1|127.0.0.1|/tmp/a b\n"


# Without a database of records


def test_mounts_in_user_scope_ask_for_each_session(start: Start, machine: Machine) -> None:
    machine.command("x2golistsessions", "printf '1|a-50-1_stD|x\\n2|-evil|x\\n3|$(id)|x\\n4|b-51-2_stD|x\\n'")
    machine.command("x2golistmounts", 'case $1 in a-*) echo "10.0.0.1|/a"; echo "10.0.0.1|/b" ;; *) echo ;; esac')
    section = start().one("mounts", scope="user")
    assert (section.kind, section.status) == (Kind.MOUNTS, 0)
    assert section.body == b"a-50-1_stD|10.0.0.1|/a\na-50-1_stD|10.0.0.1|/b\n"


def test_mounts_fail_where_one_session_fails(start: Start, machine: Machine) -> None:
    machine.command("x2golistsessions", "printf '1|a-50-1_stD|x\\n'")
    machine.command("x2golistmounts", "exit 7")
    assert start().one("mounts", scope="user").status == 7


def test_postgresql_lists_in_full_each_time_and_an_empty_list_needs_a_working_query(
    start: Start, machine: Machine
) -> None:
    machine.configure("postgres")
    machine.command("x2golistsessions_root", 'cat "$FAKE/rows" 2>/dev/null; exit 0')
    machine.command("../libexec/x2golistsessions_sql", 'cat "$FAKE/status" >&2; exit "$(cat "$FAKE/status")"')
    (machine.folder / "status").write_text("2")
    probe = start()
    section = probe.one("sessions=-")
    assert section.attributes == {"backend": "postgres", "sig": "-", "host": HOST}
    assert section.status == 2
    (machine.folder / "status").write_text("0")
    assert probe.one("sessions=-").status == 0
    (machine.folder / "status").write_text("2")
    (machine.folder / "rows").write_text("a|b|c\n")
    section = probe.one("sessions=-")
    assert (section.status, section.body) == (0, b"a|b|c\n")


def test_without_an_sql_configuration_the_backend_is_unknown(start: Start, machine: Machine) -> None:
    (machine.folder / "sql").unlink()
    machine.command("x2golistsessions_root", "echo row")
    assert start().one("sessions=-").attributes["backend"] == "unknown"


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    checked = subprocess.run(
        ["shellcheck", "--shell=sh", "-"], input=probe_text(), capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert checked.stdout == ""
    assert checked.returncode == 0
