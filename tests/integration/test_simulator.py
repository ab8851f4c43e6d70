"""The simulator over real SSH, asked by paramiko: the probe protocol, the plain commands, each fault, the command."""

from __future__ import annotations

import contextlib
import errno
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
from x2gofleet_workers.probe.delivery import first_input, start_command
from x2gofleet_workers.probe.frames import FROM_PROBE, FrameDecoder, encode_frame
from x2gofleet_workers.probe.proof import prove_sessions
from x2gofleet_workers.probe.protocol import (
    AnswerDecoder,
    Hello,
    HelloDecoder,
    Listing,
    Record,
    Request,
    Scope,
    Section,
    SectionKind,
    SectionRequest,
)
from x2gofleet_workers.probe.reference import Agreement, compare_with_reference
from x2gofleet_workers.simulator import RunningSimulation, ServerHandle, running_simulation

from tests.waiting import HANG_SECONDS, wait_until
from x2gofleet.errors import NotProven
from x2gofleet.extras import how_to_install

SHORT_SECONDS = 0.3
PLAIN = start_command("auto", as_root=False)
SUDO = start_command("auto", as_root=True)
WRAPPER = start_command("wrapper", as_root=True)
TEXT = encode_frame("S", 0, b"the text of the probe")

LOAD = SectionRequest(SectionKind.LOAD)
SESSIONS = SectionRequest(SectionKind.SESSIONS)
MOUNTS = SectionRequest(SectionKind.MOUNTS)

Login = Callable[..., paramiko.SSHClient]


class Probe:
    """The worker's end of one probe channel."""

    def __init__(self, client: paramiko.SSHClient, command: str = PLAIN, *, first_input: bytes = TEXT) -> None:
        transport = client.get_transport()
        assert transport is not None
        self.channel = transport.open_session(timeout=HANG_SECONDS)
        self.channel.settimeout(HANG_SECONDS)
        self.channel.exec_command(command)
        self.channel.sendall(first_input)
        greeting = HelloDecoder()
        hello = None
        while hello is None:
            data = self.channel.recv(65536)
            assert data, "the channel ended before the hello"
            hello = greeting.feed(data)
        assert greeting.rest == b""
        self.hello = hello
        self.decoder: AnswerDecoder | None = None

    def send(self, *sections: SectionRequest, scope: Scope = Scope.SERVER, watch: bool = False) -> AnswerDecoder:
        decoder = self.decoder = AnswerDecoder(Request(scope, sections, 5, watch), after=self.decoder)
        self.channel.sendall(decoder.request_frame())
        return decoder

    def receive(self) -> list[Section]:
        assert self.decoder is not None
        sections: list[Section] = []
        while not self.decoder.done:
            data = self.channel.recv(65536)
            assert data, f"the channel ended after {sections}"
            sections += self.decoder.feed(data)
        return sections

    def poll(self, *sections: SectionRequest, scope: Scope = Scope.SERVER, watch: bool = False) -> list[Section]:
        self.send(*sections, scope=scope, watch=watch)
        return self.receive()

    def notices(self) -> int:
        """Return how many notices have come since the last answer, at once where there is none yet."""
        assert self.decoder is not None
        while self.channel.recv_ready():
            assert list(self.decoder.feed(self.channel.recv(65536))) == []
        return len(self.decoder.notices)

    @property
    def end(self) -> tuple[int, str]:
        """The user id and host name at the end of the last answer."""
        assert self.decoder is not None
        return self.decoder.uid, self.decoder.host

    def listing(self, signature: str = "-") -> Section:
        (section,) = self.poll(SectionRequest(SectionKind.SESSIONS, signature))
        return section

    def records(self) -> dict[str, Record]:
        return {record.session.decode(): record for record in self.listing().records}

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
    assert probe.hello == Hello(uid, user, "ts01")
    (load,) = probe.poll(LOAD)
    assert load.status == "ok"
    assert probe.end == (uid, "ts01")


def test_sudo_is_refused_to_others(server: ServerHandle, login: Login) -> None:
    assert run(login(server, "alice"), SUDO) == (b"", b"sudo: a password is required\n", 1)


def test_the_probe_itself_is_accepted_as_the_worker_sends_it(server: ServerHandle, login: Login) -> None:
    for command, kind in ((PLAIN, "auto"), (WRAPPER, "wrapper")):
        probe = Probe(login(server), command, first_input=first_input(kind))
        assert probe.poll(LOAD)[0].status == "ok"


def test_a_loader_greets_when_it_has_its_text_and_an_installed_probe_at_once(
    server: ServerHandle, login: Login
) -> None:
    client = login(server)
    transport = client.get_transport()
    assert transport is not None
    loader = transport.open_session(timeout=HANG_SECONDS)
    loader.exec_command(PLAIN)
    installed = Probe(client, WRAPPER, first_input=b"")
    assert installed.poll(LOAD)[0].status == "ok"
    assert not loader.recv_ready()
    loader.sendall(TEXT[:-1])
    assert installed.poll(LOAD)[0].status == "ok"
    assert not loader.recv_ready()
    loader.sendall(TEXT[-1:])
    assert loader.recv(64).startswith(b"\nx2gofleet-probe 2 uid=0")


def test_a_loader_takes_what_comes_first_for_its_text(server: ServerHandle, login: Login) -> None:
    transport = login(server).get_transport()
    assert transport is not None
    channel = transport.open_session(timeout=HANG_SECONDS)
    channel.settimeout(HANG_SECONDS)
    channel.exec_command(PLAIN)
    channel.sendall(AnswerDecoder(Request(Scope.SERVER, (LOAD,), 5)).request_frame())
    assert (channel.recv(1), channel.recv_stderr(6)) == (b"", b"syntax")
    assert channel.recv_exit_status() == 255


def test_a_full_listing_has_the_record_of_each_session(server: ServerHandle, login: Login) -> None:
    starting = server.start_session("john_doe", "DKDE")
    section = Probe(login(server)).listing()
    assert (section.backend, section.host, section.source, section.fields) == ("sqlite", "ts01", "records", 16)
    assert section.signature.isdigit()
    assert {record.session.decode() for record in section.records} == {session.name for session in server.sessions}
    (found,) = (record for record in section.records if record.session.decode() == starting)
    assert (found.agent_pid, found.cookie, found.graphics_port) == (b"", b"", b"")
    assert (section.stdout, section.lines, section.exit_status) == (b"", b"", None)


def test_the_rows_of_the_records_are_what_x2golistsessions_root_prints(server: ServerHandle, login: Login) -> None:
    client = login(server)
    stdout, stderr, status = run(client, "x2golistsessions_root")
    assert (stderr, status) == (b"", 0)
    probe = Probe(client)
    proven = prove_sessions(probe.listing(), scope="server", login="root")
    assert without_age(proven.stdout) == without_age(stdout)
    (by_command,) = probe.poll(SectionRequest(SectionKind.SESSIONS, listing=Listing.COMMAND))
    assert (by_command.source, by_command.exit_status) == ("command", 0)
    assert without_age(by_command.lines) == without_age(stdout)
    (reference,) = probe.poll(SectionRequest(SectionKind.REFERENCE))
    assert compare_with_reference(reference).agreement is Agreement.EQUAL


def test_an_unchanged_poll_is_answered_same_until_something_changes(server: ServerHandle, login: Login) -> None:
    probe = Probe(login(server))
    unchanged = probe.listing().signature
    for _ in range(3):
        answer = probe.listing(unchanged)
        assert (answer.same, answer.signature) == (True, unchanged)
        assert probe.end == (0, "ts01")
    name = server.start_session("alice", ready=True)
    answer = probe.listing(unchanged)
    assert not answer.same
    assert name in {record.session.decode() for record in answer.records}
    assert answer.signature != unchanged
    assert not probe.listing(unchanged).same


def test_a_signature_of_another_channel_is_not_believed(server: ServerHandle, login: Login) -> None:
    client = login(server)
    signature = Probe(client).listing().signature
    assert not Probe(client).listing(signature).same


def test_a_notice_comes_once_for_each_request_that_wants_one(server: ServerHandle, login: Login) -> None:
    probe, other = Probe(login(server)), Probe(login(server))
    probe.poll(SESSIONS, watch=True)
    other.poll(SESSIONS)
    assert probe.notices() == 0
    name = server.start_session("alice", ready=True)
    wait_until(lambda: probe.notices() == 1, "a notice")
    server.suspend(name)
    assert (probe.notices(), other.notices()) == (1, 0)
    # What it asks for next replaces what it asked for before.
    unchanged = probe.listing().signature
    server.resume(name)
    (section,) = probe.poll(SectionRequest(SectionKind.SESSIONS, unchanged), watch=True)
    assert not section.same
    assert probe.notices() == 0
    for _ in range(2):
        unchanged = probe.poll(SectionRequest(SectionKind.SESSIONS, section.signature), watch=True)[0].signature
        assert unchanged == section.signature
    server.suspend(name)
    wait_until(lambda: probe.notices() == 1, "a notice after a listing that is the same")
    wait_until(lambda: server.counters.notices == 2, "both are counted")


def test_a_server_that_hangs_sends_no_notice(server: ServerHandle, login: Login) -> None:
    probe = Probe(login(server))
    probe.poll(SESSIONS, watch=True)
    server.set_fault("hang")
    server.start_session("alice", ready=True)
    assert probe.stays_silent()


def test_every_step_of_a_life_is_seen(server: ServerHandle, login: Login) -> None:
    probe = Probe(login(server))

    def status(name: str) -> bytes | None:
        record = probe.records().get(name)
        return record and record.status

    name = server.start_session("alice")
    assert status(name) == b"R"
    assert probe.records()[name].agent_pid == b""
    wait_until(lambda: probe.records()[name].agent_pid != b"", "the agent has a pid")
    server.suspend(name)
    assert status(name) == b"S"
    server.resume(name)
    assert status(name) == b"R"
    server.end(name)
    assert status(name) == b"F"
    wait_until(lambda: status(name) is None, "the finished session is gone")
    seen = [change.event for change in server.changes if change.session_name == name]
    assert seen == ["started", "running", "suspended", "resumed", "finished", "gone"]


def test_all_sections_come_in_the_order_asked(server: ServerHandle, login: Login) -> None:
    server.start_session("alice", ready=True, mounts=[("127.0.0.1", "/tmp/a b")])
    wanted = (MOUNTS, SectionRequest(SectionKind.DESKTOPS, user="alice"), SESSIONS, LOAD)
    sections = Probe(login(server)).poll(*wanted)
    assert [section.kind for section in sections] == [each.kind for each in wanted]
    assert {section.status for section in sections} == {"ok"}


def test_load_has_five_figures(server: ServerHandle, login: Login) -> None:
    lines = Probe(login(server)).poll(LOAD)[0].stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["loadavg", "memtotal_kb", "memavailable_kb", "cpus", "cpu_mhz"]
    assert [len(line.split()) for line in lines] == [4, 2, 2, 2, 2]
    assert all(float(word) >= 0 for line in lines for word in line.split()[1:])


def test_mounts_of_all_users_are_records_and_agree_with_x2golistmounts(server: ServerHandle, login: Login) -> None:
    mounts = [("127.0.0.1", "/tmp/with|bar"), ("10.0.0.1", "/tmp/b")]
    name = server.start_session("alice", ready=True, mounts=mounts)
    other = server.start_session("bob", ready=True)
    client = login(server)
    (section,) = Probe(client).poll(MOUNTS)
    found = [(mount.client.decode(), mount.path.decode()) for mount in section.mounts if mount.session == name.encode()]
    assert found == mounts
    assert run(client, f"x2golistmounts {name}")[0] == b"127.0.0.1|/tmp/with|bar\n10.0.0.1|/tmp/b\n"
    assert run(client, f"x2golistmounts {other}")[0] == b"\n"


def test_a_user_sees_her_own_sessions_mounts_and_desktops_alone(server: ServerHandle, login: Login) -> None:
    bobs = server.start_session("bob", ready=True, mounts=[("127.0.0.1", "/tmp/bob")], shared_with=["alice"])
    name = server.start_session("alice", ready=True, mounts=[("127.0.0.1", "/tmp/a")])
    shadow = server.start_shadow("alice", bobs, ready=True)
    ended = server.start_session("alice", ready=True)
    server.end(ended)
    client = login(server, "alice")
    wanted = (SESSIONS, MOUNTS, SectionRequest(SectionKind.DESKTOPS))
    sessions, mounts, desktops = Probe(client).poll(*wanted, scope=Scope.USER)
    assert (sessions.signature, sessions.records, sessions.exit_status) == ("-", (), 0)
    rows = [line.split("|") for line in sessions.stdout.decode().splitlines()]
    assert {row[11] for row in rows} == {"alice"}
    assert {name, shadow} <= {row[1] for row in rows}
    assert ended not in {row[1] for row in rows}
    assert [len(row) for row in rows if row[1] == shadow] == [14]
    mounted = mounts.stdout.decode().splitlines()
    assert f"{name}|127.0.0.1|/tmp/a" in mounted
    assert all("alice-" in line.partition("|")[0] for line in mounted)
    displays = {session.name: session.display for session in server.sessions}
    assert {f"alice@:{displays[name]}", f"bob@:{displays[bobs]}"} <= set(desktops.stdout.decode().splitlines())
    listed = run(client, "x2golistsessions")[0] + run(client, "x2golistshadowsessions")[0]
    assert without_age(listed) == without_age(sessions.stdout)
    assert run(client, "x2golistdesktops")[0] == desktops.stdout


def test_a_login_without_the_right_gets_errors_where_all_users_sessions_are_wanted(
    server: ServerHandle, login: Login
) -> None:
    client = login(server, "x2gofleet")
    assert run(client, "x2golistsessions_root") == (b"", b"", 0)
    probe = Probe(client)
    load, *refused = probe.poll(LOAD, SESSIONS, MOUNTS, SectionRequest(SectionKind.REFERENCE))
    assert probe.end == (990, "ts01")
    assert load.status == "ok"
    assert [section.error and section.error.code for section in refused] == ["not_root"] * 3
    (desktops,) = probe.poll(SectionRequest(SectionKind.DESKTOPS, user="alice"))
    assert (desktops.exit_status, desktops.stdout) == (1, b"")
    assert run(client, "sudo -n x2golistsessions_root")[0] != b""


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", "key=value"),
        (b"scope=everyone seconds=5\nsection=load", "a request"),
        (b"scope=server seconds=x\nsection=load", "seconds as a number"),
        (b"scope=server seconds=5", "at least one section"),
        (b"scope=server seconds=5\nsection=load\nsection=frobnicate", "unknown section"),
        (b"scope=user seconds=5\nsection=desktops user=bob", "desktops of another user"),
    ],
)
def test_a_bad_request_is_refused_with_its_fault_and_the_probe_goes_on(
    server: ServerHandle, login: Login, payload: bytes, text: str
) -> None:
    probe = Probe(login(server))
    decoder = AnswerDecoder(Request(Scope.SERVER, (LOAD,), 5))
    probe.channel.sendall(encode_frame("Q", 1, payload))
    with pytest.raises(NotProven, match=rf"refusal of the request \(request\): .*{text}"):
        list(decoder.feed(probe.channel.recv(65536)))
    assert probe.poll(LOAD)[0].status == "ok"


@pytest.mark.parametrize("bad", [b"poll 0123 server 5 load\n", b"Q00000001%08x" % 65537, b"D0000000100000000"])
def test_what_is_not_a_frame_is_refused_and_ends_the_probe(server: ServerHandle, login: Login, bad: bytes) -> None:
    probe = Probe(login(server))
    probe.channel.sendall(bad)
    decoder = AnswerDecoder(Request(Scope.SERVER, (LOAD,), 5))
    with pytest.raises(NotProven, match=r"refusal of the request .*not a frame"):
        list(decoder.feed(probe.channel.recv(65536)))
    assert probe.channel.recv(1) == b""
    assert probe.channel.recv_exit_status() == 0


def test_a_request_may_come_in_pieces_and_two_at_once(server: ServerHandle, login: Login) -> None:
    probe = Probe(login(server))
    request = Request(Scope.SERVER, (LOAD,), 5).encode()
    frame = encode_frame("Q", 1, request)
    for piece in (frame[:10], frame[10:30], frame[30:] + encode_frame("Q", 2, request)):
        probe.channel.sendall(piece)
    decoder, found = FrameDecoder(FROM_PROBE), []
    while [each.type for each in found].count("Z") < 2:
        decoder.feed(probe.channel.recv(65536))
        while (each := decoder.next_frame()) is not None:
            found.append(each)
    assert [(each.type, each.request) for each in found] == [(type_, number) for number in (1, 2) for type_ in "BDEZ"]


def test_an_installed_probe_passes_a_text_over(server: ServerHandle, login: Login) -> None:
    probe = Probe(login(server), WRAPPER)
    assert probe.poll(LOAD)[0].status == "ok"


def test_the_probe_ends_with_its_input(server: ServerHandle, login: Login) -> None:
    probe = Probe(login(server))
    probe.channel.shutdown_write()
    assert probe.channel.recv(1) == b""
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
    names = [set(Probe(client).records()) for client in clients]
    assert len(keys) == 2
    assert names[0].isdisjoint(names[1])
    assert [Probe(client).hello.host for client in clients] == ["ts01", "ts02"]


# Faults


def test_hang_takes_polls_and_commands_and_never_answers(server: ServerHandle, login: Login) -> None:
    before = Probe(login(server))
    server.set_fault("hang")
    client = login(server)
    during = Probe(client)
    for probe in (before, during):
        probe.send(SESSIONS)
        assert probe.stays_silent()
    with pytest.raises(TimeoutError):
        client.exec_command("x2golistsessions_root", timeout=SHORT_SECONDS)[1].read()
    wait_until(lambda: server.counters.running_polls == 2, "two polls hang")
    server.clear_fault()
    assert Probe(client).poll(LOAD)[0].status == "ok"
    client.close()
    wait_until(lambda: server.counters.running_polls == 1, "a closed channel gives its poll up")


def test_slow_answers_late_and_in_order(server: ServerHandle, login: Login) -> None:
    probe = Probe(login(server))
    server.set_fault(f"slow={SHORT_SECONDS}")
    started = time.monotonic()
    requests = [Request(Scope.SERVER, (section,), 5) for section in (LOAD, MOUNTS)]
    probe.channel.sendall(b"".join(encode_frame("Q", number, each.encode()) for number, each in enumerate(requests, 1)))
    for request in requests:
        probe.decoder = AnswerDecoder(request, after=probe.decoder)
        assert [section.kind for section in probe.receive()] == [section.kind for section in request.sections]
    assert time.monotonic() - started >= 2 * SHORT_SECONDS


def test_garbage_is_never_a_whole_answer(server: ServerHandle, login: Login) -> None:
    client = login(server)
    server.set_fault("garbage")
    refusals = set()
    for _ in range(5):
        probe = Probe(client)
        probe.send(SESSIONS)
        with pytest.raises(NotProven) as caught:
            probe.receive()
        refusals.add(str(caught.value))
    assert len(refusals) == 5, "a client that connects anew each time meets every sort of garbage"
    assert len(run(client, "x2golistsessions_root")[0]) == 512
    server.clear_fault()
    assert Probe(client).listing().records


def test_empty_answers_as_a_login_without_the_right(server: ServerHandle, login: Login) -> None:
    client = login(server)
    probe = Probe(client)
    signature = probe.listing().signature
    server.set_fault("empty")
    refused = probe.poll(SectionRequest(SectionKind.SESSIONS, signature), MOUNTS)
    assert [section.error and section.error.code for section in refused] == ["not_root"] * 2
    assert probe.end == (65534, "ts01")
    assert Probe(client).hello == Hello(65534, "nobody", "ts01")
    assert run(client, "x2golistsessions_root") == (b"", b"", 0)
    (sessions,) = Probe(login(server, "alice")).poll(SESSIONS, scope=Scope.USER)
    assert (sessions.stdout, sessions.exit_status) == (b"", 0)


def test_tarpit_accepts_and_says_nothing(server: ServerHandle, login: Login) -> None:
    existing = login(server)
    server.set_fault("tarpit")
    wait_until(lambda: not existing.get_transport().is_active(), "existing connections end")
    with socket.create_connection((server.address, server.port), HANG_SECONDS) as connection:
        connection.settimeout(SHORT_SECONDS)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    server.clear_fault()
    assert Probe(login(server)).listing().records


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
    assert Probe(login(server)).listing().records


def test_auth_refuses_the_key(server: ServerHandle, login: Login) -> None:
    server.set_fault("auth")
    with pytest.raises(paramiko.AuthenticationException):
        login(server)
    server.clear_fault()
    assert Probe(login(server)).listing().records


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
    assert Probe(login(server)).listing().records


def test_a_fault_of_one_server_leaves_the_others_alone(simulation: RunningSimulation, login: Login) -> None:
    for fault in ("hang", "tarpit", "garbage", "not-ssh", "dead", "auth", "hostkey"):
        simulation.server("ts01").set_fault(fault)
        assert Probe(login(simulation.server("ts02"))).listing().records


def test_an_unknown_fault_or_server_is_refused(simulation: RunningSimulation, server: ServerHandle) -> None:
    with pytest.raises(ValueError, match="unknown fault 'nope'"):
        server.set_fault("nope")
    with pytest.raises(KeyError, match="no simulated server 'ts99'; there are ts01 to ts02"):
        simulation.server("ts99")


# What tests count


def test_counters_tell_polls_from_listings(server: ServerHandle, login: Login) -> None:
    client = login(server)
    probe = Probe(client)
    signature = probe.listing().signature
    for _ in range(4):
        probe.listing(signature)
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
        probe.send(LOAD)
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
