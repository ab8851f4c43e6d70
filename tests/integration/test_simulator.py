"""The simulator over real SSH, asked by paramiko: the probe protocol, the plain commands, each fault, the command."""

from __future__ import annotations

import contextlib
import errno
import secrets
import signal
import socket
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import paramiko
import pytest
from x2gofleet_workers.simulator import RunningSimulation, ServerHandle, running_simulation

from tests.waiting import HANG_SECONDS, wait_until
from x2gofleet.extras import how_to_install

SHORT_SECONDS = 0.3
PLAIN = "exec sh -c 'the text of the probe' x2gofleet-probe"
SUDO = "exec sudo -n sh -c 'the text of the probe' x2gofleet-probe"
WRAPPER = "x2gofleet-probe"
RECORD_ORDER = (1, 11, 3, 4, 2, 5, 10, 6, 7, 0, 8, 9, 13, 14, 15)

Login = Callable[..., paramiko.SSHClient]


class Section:
    def __init__(self, name: str, attributes: dict[str, str], body: bytes, status: int | None) -> None:
        self.name, self.attributes, self.body, self.status = name, attributes, body, status

    @property
    def is_same(self) -> bool:
        return self.status is None

    @property
    def lines(self) -> list[str]:
        return self.body.decode().splitlines()


class Answer:
    """A whole, well-formed answer; ValueError for any other bytes."""

    def __init__(self, boundary: str, raw: bytes) -> None:
        self.sections: dict[str, Section] = {}
        mark, rest = boundary.encode() + b" ", raw
        while True:
            line, newline, rest = rest.partition(b"\n")
            if not line.startswith(mark) or not newline:
                raise ValueError(f"no mark: {line[:80]!r}")
            words = line[len(mark) :].decode().split(" ")
            if words[0] == "done":
                if rest:
                    raise ValueError("bytes after the end")
                self.done = dict(word.split("=", 1) for word in words[1:])
                self.done["uid"] = str(int(self.done["uid"]))
                return
            if len(words) < 2:
                raise ValueError(f"no section: {line!r}")
            attributes = dict(word.split("=", 1) for word in words[2:])
            if words[0] == "same":
                self.sections[words[1]] = Section(words[1], attributes, b"", None)
                continue
            body, end, rest = rest.partition(b"\n" + mark + b"end " + words[1].encode() + b" ")
            status, newline, rest = rest.partition(b"\n")
            if words[0] != "begin" or not end or not newline:
                raise ValueError(f"no frame: {line!r}")
            self.sections[words[1]] = Section(words[1], attributes, body, int(status))

    @property
    def sessions(self) -> Section:
        return self.sections["sessions"]


class Listing:
    """The parts of a full sessions section in server scope."""

    def __init__(self, boundary: str, body: bytes) -> None:
        mark = boundary.encode()
        opening = mark + b" records before\n"
        assert body.startswith(opening)
        before, _, rest = body[len(opening) :].partition(mark + b" listing\n")
        self.stdout, _, rest = rest.partition(b"\n" + mark + b" listed ")
        status, _, after = rest.partition(b"\n" + mark + b" records after\n")
        self.status = int(status)
        self.rows = [row.split("|") for row in self.stdout.decode().splitlines()]
        self.records, self.records_after = self._records(mark, before), self._records(mark, after)

    @staticmethod
    def _records(mark: bytes, block: bytes) -> list[list[str]]:
        records = []
        for line in block.splitlines():
            assert line.startswith(mark + b" rec ")
            records.append([bytes.fromhex(column).decode() for column in line.decode().split(" ")[2].split("|")])
        return records


class Probe:
    """The worker's end of one probe channel."""

    def __init__(self, client: paramiko.SSHClient, command: str = PLAIN) -> None:
        transport = client.get_transport()
        assert transport is not None
        self.channel = transport.open_session(timeout=HANG_SECONDS)
        self.channel.settimeout(HANG_SECONDS)
        self.channel.exec_command(command)
        self.reader = self.channel.makefile("rb")
        self.hello = self.reader.readline().decode()
        self.boundary = ""

    def send(self, sections: str, *, scope: str = "server") -> None:
        self.boundary = secrets.token_hex(16)
        self.channel.sendall(f"poll {self.boundary} {scope} 5 {sections}\n".encode())

    def receive(self) -> Answer:
        raw, line, last = b"", b"", f"{self.boundary} done ".encode()
        while not line.startswith(last):
            line = self.reader.readline()
            assert line, f"the channel ended after {raw!r}"
            raw += line
        return Answer(self.boundary, raw)

    def poll(self, sections: str, *, scope: str = "server") -> Answer:
        self.send(sections, scope=scope)
        return self.receive()

    def listing(self) -> Listing:
        answer = self.poll("sessions=-")
        return Listing(self.boundary, answer.sessions.body)

    def stays_silent(self) -> bool:
        self.channel.settimeout(SHORT_SECONDS)
        try:
            return self.channel.recv(1) is None
        except TimeoutError:
            return True
        finally:
            self.channel.settimeout(HANG_SECONDS)


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[RunningSimulation]:
    with running_simulation(servers=2, sessions=30, directory=tmp_path) as running:
        yield running


@pytest.fixture
def server(simulation: RunningSimulation) -> ServerHandle:
    return simulation.server("ts01")


@pytest.fixture
def login(simulation: RunningSimulation) -> Iterator[Login]:
    """Log in as the worker does: the inventory's key and known_hosts, nothing else."""
    known_hosts = tomllib.loads(simulation.inventory.read_text())["defaults"]["known_hosts"]
    key = paramiko.Ed25519Key.from_private_key(StringIO(simulation.client_key.decode()))
    with contextlib.ExitStack() as opened:

        def connect(server: ServerHandle, username: str = "root", **options: object) -> paramiko.SSHClient:
            client = paramiko.SSHClient()
            opened.callback(client.close)
            client.load_host_keys(known_hosts)
            client.set_missing_host_key_policy(paramiko.RejectPolicy())
            client.connect(
                server.address,
                server.port,
                username=username,
                pkey=key,
                allow_agent=False,
                look_for_keys=False,
                **{
                    "timeout": HANG_SECONDS,
                    "banner_timeout": HANG_SECONDS,
                    "auth_timeout": HANG_SECONDS,
                    **options,
                },
            )
            return client

        yield connect


def run(client: paramiko.SSHClient, command: str) -> tuple[bytes, bytes, int]:
    stdin, stdout, stderr = client.exec_command(command, timeout=HANG_SECONDS)
    with stdin, stdout, stderr:
        return stdout.read(), stderr.read(), stdout.channel.recv_exit_status()


def without_age(listing: bytes) -> list[list[str]]:
    rows = [row.split("|") for row in listing.decode().splitlines()]
    return [row[:12] + row[13:] for row in rows]


# The probe protocol


@pytest.mark.parametrize(
    ("username", "command", "uid", "user"),
    [
        ("root", PLAIN, 0, "root"),
        ("root", SUDO, 0, "root"),
        ("x2gofleet", SUDO, 0, "root"),
        ("x2gofleet", WRAPPER, 0, "root"),
        ("x2gofleet", PLAIN, 990, "x2gofleet"),
        ("alice", PLAIN, 1000, "alice"),
        ("john_doe", WRAPPER, 1002, "john_doe"),
    ],
)
def test_the_hello_says_as_whom_the_probe_runs(
    server: ServerHandle, login: Login, username: str, command: str, uid: int, user: str
) -> None:
    probe = Probe(login(server, username), command)
    assert probe.hello == f"x2gofleet-probe 1 uid={uid} user={user} host=ts01\n"
    assert probe.poll("load").done == {"uid": str(uid), "host": "ts01"}


def test_sudo_is_refused_to_others(server: ServerHandle, login: Login) -> None:
    assert run(login(server, "alice"), SUDO) == (b"", b"sudo: a password is required\n", 1)


def test_a_full_listing_has_rows_and_the_same_records_before_and_after(server: ServerHandle, login: Login) -> None:
    starting = server.start_session("john_doe", "DKDE")
    probe = Probe(login(server))
    answer = probe.poll("sessions=-")
    listing = Listing(probe.boundary, answer.sessions.body)
    assert answer.sessions.attributes["backend"] == "sqlite"
    assert answer.sessions.attributes["sig"].isdigit()
    assert [answer.sessions.status, listing.status] == [0, 0]
    assert {row[1] for row in listing.rows} == {session.name for session in server.sessions}
    assert starting in {row[1] for row in listing.rows}
    assert {len(row) for row in listing.rows} == {16}
    assert listing.records == [[row[index] for index in RECORD_ORDER] for row in listing.rows]
    assert listing.records_after == listing.records


def test_the_listing_is_what_x2golistsessions_root_prints(server: ServerHandle, login: Login) -> None:
    client = login(server)
    stdout, stderr, status = run(client, "x2golistsessions_root")
    assert (stderr, status) == (b"", 0)
    assert without_age(stdout) == without_age(Probe(client).listing().stdout)


def test_an_unchanged_poll_is_answered_same_until_something_changes(server: ServerHandle, login: Login) -> None:
    probe = Probe(login(server))
    unchanged = f"sessions={probe.poll('sessions=-').sessions.attributes['sig']}"
    for _ in range(3):
        answer = probe.poll(unchanged)
        assert answer.sessions.is_same
        assert f"sessions={answer.sessions.attributes['sig']}" == unchanged
        assert answer.done == {"uid": "0", "host": "ts01"}
    name = server.start_session("alice", ready=True)
    answer = probe.poll(unchanged)
    assert not answer.sessions.is_same
    assert name in {row[1] for row in Listing(probe.boundary, answer.sessions.body).rows}
    assert f"sessions={answer.sessions.attributes['sig']}" != unchanged
    assert not probe.poll(unchanged).sessions.is_same


def test_a_signature_of_another_channel_is_not_believed(server: ServerHandle, login: Login) -> None:
    client = login(server)
    signature = Probe(client).poll("sessions=-").sessions.attributes["sig"]
    assert not Probe(client).poll(f"sessions={signature}").sessions.is_same


def test_every_step_of_a_life_is_seen(server: ServerHandle, login: Login) -> None:
    probe = Probe(login(server))

    def status(name: str) -> str | None:
        return next((row[4] for row in probe.listing().rows if row[1] == name), None)

    def pid(name: str) -> str:
        return next(row[0] for row in probe.listing().rows if row[1] == name)

    name = server.start_session("alice")
    assert status(name) == "R"
    assert pid(name) == ""
    wait_until(lambda: pid(name) != "", "the agent has a pid")
    server.suspend(name)
    assert status(name) == "S"
    server.resume(name)
    assert status(name) == "R"
    server.end(name)
    assert status(name) == "F"
    wait_until(lambda: status(name) is None, "the finished session is gone")
    seen = [change.event for change in server.changes if change.session_name == name]
    assert seen == ["started", "running", "suspended", "resumed", "finished", "gone"]


def test_all_sections_come_in_the_order_asked(server: ServerHandle, login: Login) -> None:
    server.start_session("alice", ready=True, mounts=[("127.0.0.1", "/tmp/a b")])
    answer = Probe(login(server)).poll("mounts desktops=alice sessions=- load")
    assert list(answer.sections) == ["mounts", "desktops", "sessions", "load"]
    assert {section.status for section in answer.sections.values()} == {0}


def test_load_has_five_figures(server: ServerHandle, login: Login) -> None:
    lines = Probe(login(server)).poll("load").sections["load"].lines
    assert [line.split()[0] for line in lines] == ["loadavg", "memtotal_kb", "memavailable_kb", "cpus", "cpu_mhz"]
    assert [len(line.split()) for line in lines] == [4, 2, 2, 2, 2]
    assert all(float(word) >= 0 for line in lines for word in line.split()[1:])


def test_mounts_of_all_users_come_in_hex_and_agree_with_x2golistmounts(server: ServerHandle, login: Login) -> None:
    mounts = [("127.0.0.1", "/tmp/with|bar"), ("10.0.0.1", "/tmp/b")]
    name = server.start_session("alice", ready=True, mounts=mounts)
    other = server.start_session("bob", ready=True)
    client = login(server)
    probe = Probe(client)
    lines = probe.poll("mounts").sections["mounts"].lines
    prefix = f"{probe.boundary} mnt "
    found = [
        tuple(bytes.fromhex(column).decode() for column in line.removeprefix(prefix).split("|"))
        for line in lines
        if line
    ]
    assert [mount for mount in found if mount[0] == name] == [(name, *mount) for mount in mounts]
    assert run(client, f"x2golistmounts {name}")[0] == b"127.0.0.1|/tmp/with|bar\n10.0.0.1|/tmp/b\n"
    assert run(client, f"x2golistmounts {other}")[0] == b"\n"


def test_a_user_sees_her_own_sessions_mounts_and_desktops_alone(server: ServerHandle, login: Login) -> None:
    bobs = server.start_session("bob", ready=True, mounts=[("127.0.0.1", "/tmp/bob")], shared_with=["alice"])
    name = server.start_session("alice", ready=True, mounts=[("127.0.0.1", "/tmp/a")])
    shadow = server.start_shadow("alice", bobs, ready=True)
    ended = server.start_session("alice", ready=True)
    server.end(ended)
    client = login(server, "alice")
    answer = Probe(client).poll("sessions=1 mounts desktops", scope="user")
    assert answer.sessions.attributes == {"backend": "sqlite", "sig": "-"}
    rows = [line.split("|") for line in answer.sessions.lines]
    assert {row[11] for row in rows} == {"alice"}
    assert {name, shadow} <= {row[1] for row in rows}
    assert ended not in {row[1] for row in rows}
    assert [len(row) for row in rows if row[1] == shadow] == [14]
    assert f"{name}|127.0.0.1|/tmp/a" in answer.sections["mounts"].lines
    assert all("alice-" in line.partition("|")[0] for line in answer.sections["mounts"].lines)
    displays = {session.name: session.display for session in server.sessions}
    assert {f"alice@:{displays[name]}", f"bob@:{displays[bobs]}"} <= set(answer.sections["desktops"].lines)
    listed = run(client, "x2golistsessions")[0] + run(client, "x2golistshadowsessions")[0]
    assert without_age(listed) == without_age(answer.sessions.body)
    assert run(client, "x2golistdesktops")[0] == answer.sections["desktops"].body


def test_a_login_without_the_right_lists_nothing_and_can_not_prove_it(server: ServerHandle, login: Login) -> None:
    client = login(server, "x2gofleet")
    assert run(client, "x2golistsessions_root") == (b"", b"", 0)
    probe = Probe(client)
    answer = probe.poll("sessions=- mounts")
    assert answer.done["uid"] == "990"
    assert answer.sessions.attributes["sig"] == "-"
    for name in ("sessions", "mounts"):
        assert f"{probe.boundary} recerr unable to open database file" in answer.sections[name].lines
    assert run(client, "sudo -n x2golistsessions_root")[0] != b""


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("hello", "- error expected: poll"),
        ("poll xyz server 5 load", "- error expected: poll"),
        ("poll {boundary} everyone 5 load", "{boundary} error expected: poll"),
        ("poll {boundary} server x load", "{boundary} error expected: poll"),
        ("poll {boundary} server 5", "{boundary} error expected: poll"),
        ("poll {boundary} server 5 load frobnicate", "{boundary} error unknown section frobnicate"),
        ("poll {boundary} server 5 sessions=x", "{boundary} error unknown section sessions=x"),
        ("poll {boundary} user 5 desktops=bob", "{boundary} error desktops of another user"),
    ],
)
def test_a_bad_request_is_answered_with_its_fault_and_the_probe_goes_on(
    server: ServerHandle, login: Login, line: str, error: str
) -> None:
    probe = Probe(login(server))
    boundary = secrets.token_hex(16)
    probe.channel.sendall((line.format(boundary=boundary) + "\n").encode())
    assert probe.reader.readline().decode().startswith(error.format(boundary=boundary))
    assert probe.poll("load").sections["load"].status == 0


def test_a_request_may_come_in_pieces_and_two_at_once(server: ServerHandle, login: Login) -> None:
    probe = Probe(login(server))
    probe.boundary = secrets.token_hex(16)
    line = f"poll {probe.boundary} server 5 load\n".encode()
    for piece in (line[:10], line[10:40], line[40:] + line):
        probe.channel.sendall(piece)
    assert list(probe.receive().sections) == ["load"]
    assert list(probe.receive().sections) == ["load"]


def test_the_probe_ends_with_its_input(server: ServerHandle, login: Login) -> None:
    probe = Probe(login(server))
    probe.channel.shutdown_write()
    assert probe.reader.read() == b""
    assert probe.channel.recv_exit_status() == 0


def test_plain_commands(server: ServerHandle, login: Login) -> None:
    client = login(server, "alice")
    assert run(client, "hostname") == (b"ts01\n", b"", 0)
    assert run(client, "x2gofeature X2GO_LIST_SHADOWSESSIONS") == (b"ok\n", b"", 0)
    assert run(client, "x2golistsessions_root") == (b"", b"", 0)
    assert run(client, "nosuch") == (b"", b"sh: 1: nosuch: not found\n", 127)


def test_two_servers_differ_in_name_sessions_and_host_key(simulation: RunningSimulation, login: Login) -> None:
    clients = [login(simulation.server(server_id)) for server_id in ("ts01", "ts02")]
    keys = {client.get_transport().get_remote_server_key().asbytes() for client in clients}
    names = [{row[1] for row in Probe(client).listing().rows} for client in clients]
    assert len(keys) == 2
    assert names[0].isdisjoint(names[1])
    assert [Probe(client).poll("load").done["host"] for client in clients] == ["ts01", "ts02"]


# Faults


def test_hang_takes_polls_and_commands_and_never_answers(server: ServerHandle, login: Login) -> None:
    before = Probe(login(server))
    server.set_fault("hang")
    client = login(server)
    during = Probe(client)
    for probe in (before, during):
        probe.send("sessions=-")
        assert probe.stays_silent()
    with pytest.raises(TimeoutError):
        client.exec_command("x2golistsessions_root", timeout=SHORT_SECONDS)[1].read()
    wait_until(lambda: server.counters.running_polls == 2, "two polls hang")
    server.clear_fault()
    assert Probe(client).poll("load").done["uid"] == "0"
    client.close()
    wait_until(lambda: server.counters.running_polls == 1, "a closed channel gives its poll up")


def test_slow_answers_late_and_in_order(server: ServerHandle, login: Login) -> None:
    probe = Probe(login(server))
    server.set_fault(f"slow={SHORT_SECONDS}")
    started = time.monotonic()
    probe.boundary = secrets.token_hex(16)
    probe.channel.sendall(f"poll {probe.boundary} server 5 load\npoll {probe.boundary} server 5 mounts\n".encode())
    assert list(probe.receive().sections) == ["load"]
    assert list(probe.receive().sections) == ["mounts"]
    assert time.monotonic() - started >= 2 * SHORT_SECONDS


def test_garbage_is_never_a_whole_answer(server: ServerHandle, login: Login) -> None:
    client = login(server)
    server.set_fault("garbage")
    openings = set()
    for _ in range(5):
        probe = Probe(client)
        probe.send("sessions=-")
        raw = probe.channel.recv(65536)
        openings.add(raw[:60].replace(probe.boundary.encode(), b""))
        with pytest.raises((ValueError, KeyError)):
            Answer(probe.boundary, raw)
    assert len(openings) > 3, "a client that connects anew each time meets every sort of garbage"
    assert len(run(client, "x2golistsessions_root")[0]) == 512
    server.clear_fault()
    assert Probe(client).listing().rows


def test_empty_looks_like_a_listing_without_the_right(server: ServerHandle, login: Login) -> None:
    client = login(server)
    probe = Probe(client)
    signature = probe.poll("sessions=-").sessions.attributes["sig"]
    server.set_fault("empty")
    answer = probe.poll(f"sessions={signature} mounts")
    listing = Listing(probe.boundary, answer.sessions.body)
    assert (answer.sessions.status, listing.status) == (0, 0)
    assert (listing.stdout, listing.records, listing.records_after) == (b"", [], [])
    assert answer.sections["mounts"].body == b""
    assert answer.done["uid"] == "65534"
    assert Probe(client).hello == "x2gofleet-probe 1 uid=65534 user=nobody host=ts01\n"
    assert run(client, "x2golistsessions_root") == (b"", b"", 0)


def test_tarpit_accepts_and_says_nothing(server: ServerHandle, login: Login) -> None:
    existing = login(server)
    server.set_fault("tarpit")
    wait_until(lambda: not existing.get_transport().is_active(), "existing connections end")
    with socket.create_connection((server.address, server.port), HANG_SECONDS) as connection:
        connection.settimeout(SHORT_SECONDS)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    server.clear_fault()
    assert Probe(login(server)).listing().rows


def test_tarpit_with_seconds_drips(server: ServerHandle) -> None:
    server.set_fault("tarpit=0.05")
    with socket.create_connection((server.address, server.port), HANG_SECONDS) as connection:
        received = b""
        while len(received) < 4:
            received += connection.recv(1)
    assert received == b"xxxx"


def test_not_ssh_speaks_something_else(server: ServerHandle, login: Login) -> None:
    server.set_fault("not-ssh")
    with socket.create_connection((server.address, server.port), HANG_SECONDS) as connection:
        connection.sendall(b"SSH-2.0-test\r\n")
        with connection.makefile("rb") as answer:
            assert answer.read().startswith(b"HTTP/1.1 400")
    with pytest.raises(paramiko.SSHException):
        login(server)


def test_dead_refuses_connections_and_comes_back_on_its_port(server: ServerHandle, login: Login) -> None:
    existing = login(server)
    server.set_fault("dead")
    wait_until(lambda: not existing.get_transport().is_active(), "existing connections end")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.address, server.port), HANG_SECONDS)
    with socket.socket() as rival:
        # The number is kept for the server, so that nobody else's service is polled in its place.
        with pytest.raises(OSError) as refused:
            rival.bind((server.address, server.port))
        assert refused.value.errno == errno.EADDRINUSE
    server.set_fault("dead")
    server.clear_fault()
    assert Probe(login(server)).listing().rows


def test_auth_refuses_the_key(server: ServerHandle, login: Login) -> None:
    server.set_fault("auth")
    with pytest.raises(paramiko.AuthenticationException):
        login(server)
    server.clear_fault()
    assert Probe(login(server)).listing().rows


def test_another_key_is_refused(server: ServerHandle, simulation: RunningSimulation, tmp_path: Path) -> None:
    with running_simulation(servers=1, sessions=0) as other:
        key = paramiko.Ed25519Key.from_private_key(StringIO(other.client_key.decode()))
    transport = paramiko.Transport((server.address, server.port))
    try:
        transport.start_client(timeout=HANG_SECONDS)
        with pytest.raises(paramiko.BadAuthenticationType) as refused:
            transport.auth_password("root", "root")
        assert refused.value.allowed_types == ["publickey"]
        with pytest.raises(paramiko.AuthenticationException):
            transport.auth_publickey("root", key)
    finally:
        transport.close()


def test_hostkey_shows_another_key_and_then_the_known_one_again(server: ServerHandle, login: Login) -> None:
    existing = login(server)
    server.set_fault("hostkey")
    wait_until(lambda: not existing.get_transport().is_active(), "existing connections end")
    with pytest.raises(paramiko.BadHostKeyException):
        login(server)
    server.clear_fault()
    assert Probe(login(server)).listing().rows


def test_a_fault_of_one_server_leaves_the_others_alone(simulation: RunningSimulation, login: Login) -> None:
    for fault in ("hang", "tarpit", "garbage", "not-ssh", "dead", "auth", "hostkey"):
        simulation.server("ts01").set_fault(fault)
        assert Probe(login(simulation.server("ts02"))).listing().rows


def test_an_unknown_fault_or_server_is_refused(simulation: RunningSimulation, server: ServerHandle) -> None:
    with pytest.raises(ValueError, match="unknown fault 'nope'"):
        server.set_fault("nope")
    with pytest.raises(KeyError, match="no simulated server 'ts99'; there are ts01 to ts02"):
        simulation.server("ts99")


# What tests count


def test_counters_tell_polls_from_listings(server: ServerHandle, login: Login) -> None:
    client = login(server)
    probe = Probe(client)
    signature = probe.poll("sessions=-").sessions.attributes["sig"]
    for _ in range(4):
        probe.poll(f"sessions={signature}")
    run(client, "hostname")
    counters = server.counters
    assert (counters.connections, counters.open_connections, counters.probe_channels) == (1, 1, 1)
    assert (counters.polls, counters.full_listings, counters.same_answers, counters.commands) == (5, 1, 4, 1)
    assert (counters.running_polls, counters.peak_concurrent_polls, counters.error_answers) == (0, 1, 0)
    assert counters.bytes_sent > counters.bytes_received > 0
    assert len(counters.poll_times) == 5
    assert sorted(counters.poll_times) == list(counters.poll_times)
    client.close()
    wait_until(lambda: server.counters.open_connections == 0, "the connection is over")


def test_peak_concurrent_polls_counts_what_waits_at_once(simulation: RunningSimulation, login: Login) -> None:
    probes = [Probe(login(simulation.server(server_id))) for server_id in ("ts01", "ts01", "ts02")]
    for handle in simulation.servers.values():
        handle.set_fault("hang")
    for probe in probes:
        probe.send("load")
    wait_until(lambda: simulation.peak_concurrent_polls == 3, "three polls wait")
    assert [handle.counters.peak_concurrent_polls for handle in simulation.servers.values()] == [2, 1]


# The inventory, the life by itself, and the command


def test_the_inventory_names_what_it_takes_to_poll(simulation: RunningSimulation) -> None:
    inventory = tomllib.loads(simulation.inventory.read_text())
    assert inventory["defaults"]["user"] == "root"
    assert set(inventory["servers"]) == {"ts01", "ts02"}
    for server_id, entry in inventory["servers"].items():
        handle = simulation.server(server_id)
        assert (entry["host"], entry["port"]) == (handle.address, handle.port)
    assert inventory["profiles"]["all"] == {"servers": ["ts01", "ts02"]}
    assert inventory["profiles"]["mate"] == {"labels": ["mate"]}
    assert [server_id for server_id, entry in inventory["servers"].items() if "mate" in entry["labels"]] == ["ts01"]
    key_file = Path(inventory["defaults"]["key_file"])
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert key_file.parent == Path(inventory["defaults"]["known_hosts"]).parent == simulation.inventory.parent


def test_an_inventory_of_somebody_else_is_never_overwritten(simulation: RunningSimulation, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.toml"
    theirs.write_text("[servers.real]\n")
    with pytest.raises(FileExistsError, match="was not written by the simulator"):
        simulation.write_inventory(theirs)
    assert theirs.read_text() == "[servers.real]\n"
    simulation.write_inventory(simulation.inventory)


def test_one_port_for_all_on_addresses_of_their_own(tmp_path: Path) -> None:
    with contextlib.ExitStack() as running:
        simulation = running.enter_context(_on_a_free_port(tmp_path))
        inventory = tomllib.loads(simulation.inventory.read_text())
        places = [(entry["host"], entry["port"]) for entry in inventory["servers"].values()]
        assert [address for address, _ in places] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
        assert len({port for _, port in places}) == 1
        for place in places:
            with socket.create_connection(place, HANG_SECONDS) as connection:
                assert connection.recv(4) == b"SSH-"


@contextlib.contextmanager
def _on_a_free_port(directory: Path) -> Iterator[RunningSimulation]:
    for _ in range(20):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with contextlib.ExitStack() as opened:
            try:
                simulation = opened.enter_context(
                    running_simulation(servers=3, sessions=3, first_port=port, directory=directory)
                )
            except OSError:
                continue
            yield simulation
            return
    pytest.fail("no port was free on three addresses")


def test_a_taken_port_is_an_error_and_leaves_nothing_behind() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError), running_simulation(servers=2, sessions=0, first_port=port):
            pass
        with socket.socket() as again:
            again.bind(("127.0.0.1", port))


def test_sessions_live_by_themselves_with_a_pace() -> None:
    with running_simulation(servers=1, sessions=10, pace=0.05) as simulation:
        wait_until(lambda: len(simulation.server("ts01").changes) >= 10, "ten changes")


def test_ending_a_simulation_ends_its_connections(login: Login, tmp_path: Path) -> None:
    with running_simulation(servers=1, sessions=5, directory=tmp_path / "other") as simulation:
        handle = simulation.server("ts01")
        key = paramiko.Ed25519Key.from_private_key(StringIO(simulation.client_key.decode()))
        transport = paramiko.Transport((handle.address, handle.port))
        transport.connect(username="root", pkey=key)
    wait_until(lambda: not transport.is_active(), "the connection is over")
    transport.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((handle.address, handle.port), HANG_SECONDS)


COMMAND = """
import argparse, sys
from x2gofleet_workers.simulator.command import add_parser
parser = argparse.ArgumentParser(prog="x2gofleet-worker")
add_parser(parser.add_subparsers(required=True))
args = parser.parse_args()
sys.exit(args.run(args))
"""


def command(*arguments: str, before: str = "") -> list[str]:
    return [sys.executable, "-W", "error", "-c", before + COMMAND, "simulate", *arguments]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_runs_until_a_signal_and_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    inventory = tmp_path / "fleet.toml"
    arguments = ("--servers", "3", "--write-inventory", str(inventory), "--fault", "ts02=not-ssh")
    with subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            printed = ""
            while "Ctrl-C" not in printed:
                line = process.stdout.readline()
                assert line, process.communicate()
                printed += line
            assert f"x2gofleet-worker run --inventory {inventory}" in printed
            assert "3 X2Go servers with 24 sessions" in printed
            assert "broken: ts02 not-ssh" in printed
            servers = tomllib.loads(inventory.read_text())["servers"]
            starts = []
            for server_id in ("ts01", "ts02"):
                place = (servers[server_id]["host"], servers[server_id]["port"])
                with socket.create_connection(place, HANG_SECONDS) as connection:
                    starts.append(connection.recv(4))
            assert starts == [b"SSH-", b"HTTP"]
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=HANG_SECONDS)
        finally:
            process.kill()
    assert (process.returncode, stderr) == (0, "")
    assert stdout.startswith("stopped: 0 polls")


def test_the_command_stops_by_itself_after_its_duration(tmp_path: Path) -> None:
    arguments = ("--servers", "1", "--write-inventory", str(tmp_path / "fleet.toml"), "--duration", "0.1")
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=HANG_SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    assert "stopped:" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--fault", "ts09=hang"], "no server 'ts09'; there are ts01, ts02"),
        (["--fault", "ts01=broken"], "unknown fault 'broken'"),
        (["--fault", "hang"], "expected SERVER=FAULT"),
        (["--servers", "0"], "expected a number of servers"),
        (["--port", "70000"], "expected a TCP port"),
        (["--duration", "-1"], "expected seconds"),
    ],
)
def test_the_command_refuses_what_it_can_not_do(tmp_path: Path, arguments: list[str], reason: str) -> None:
    inventory = tmp_path / "fleet.toml"
    line = command("--servers", "2", "--write-inventory", str(inventory), *arguments)
    done = subprocess.run(line, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert not inventory.exists()


def test_without_asyncssh_the_message_names_what_to_install(tmp_path: Path) -> None:
    without = "import sys; sys.modules['asyncssh'] = None\n"
    wanted = how_to_install("demo")
    line = command("--servers", "1", "--write-inventory", str(tmp_path / "fleet.toml"), before=without)
    done = subprocess.run(line, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 1
    assert wanted in done.stderr
    assert "Traceback" not in done.stderr
    imported = [sys.executable, "-c", without + "from x2gofleet_workers.simulator import Simulation"]
    done = subprocess.run(imported, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 1
    assert f"ImportError: the simulator needs asyncssh: {wanted}" in done.stderr


def test_the_simulator_does_not_import_paramiko() -> None:
    script = (
        "import sys; from x2gofleet_workers.simulator import Simulation, command; sys.exit('paramiko' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=HANG_SECONDS).returncode == 0
