"""Polls of a real X2Go server over real sshd: wall clock and CPU on both sides; the cost of idle connections."""

from __future__ import annotations

import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import paramiko
from x2gofleet_workers.inventory import Target, load_inventory
from x2gofleet_workers.probe.delivery import first_input, start_command
from x2gofleet_workers.probe.protocol import AnswerDecoder, Request, Scope, Section, SectionKind, SectionRequest
from x2gofleet_workers.ssh import Deadline, Endpoint, ProbeChannel, SshClient, SshConnection
from x2gofleet_workers.ssh.transport import Transport

from tests.e2e.realserver import RealX2GoServer, create_empty_database, missing_requirements

Row = tuple[str, str, float, str]
SESSIONS = 5
SESSIONS_SECTION = SectionRequest(SectionKind.SESSIONS)
LOAD_SECTION = SectionRequest(SectionKind.LOAD)
IDLE_CONNECTIONS = 200
IDLE_SECONDS = 10.0


@contextmanager
def real_server() -> Iterator[tuple[RealX2GoServer, Endpoint]]:
    """Run a real X2Go server with some sessions; yield it and where to log in as root."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="x2gofleet-bench-")))
        key = directory / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        (directory / "state").mkdir()
        database = create_empty_database(directory / "state")
        server = stack.enter_context(RealX2GoServer(directory / "server", empty_database=database, hostname="ts01"))
        server.authorize("root", key.with_suffix(".pub").read_text())
        known_hosts = directory / "known_hosts"
        known_hosts.write_text(server.known_hosts_line + "\n")
        for display in range(50, 50 + SESSIONS):
            server.insert_session("alice", display)
        yield server, Endpoint(server.host, server.port, "root", str(key), str(known_hosts))


UNCHANGED_POLLS = 400
CHANGED_POLLS = 60
LOOK_SECONDS = 20.0
LISTINGS = 10


def _ask(channel: ProbeChannel, *sections: SectionRequest, watch: bool = False) -> list[Section]:
    decoder = AnswerDecoder(Request(Scope.SERVER, sections, 20, watch), after=channel.decoder)
    return list(channel.exchange(decoder, Deadline(30)))


def _each(run: Callable[[], object], times: int) -> tuple[float, float]:
    """Return the median wall seconds and the mean CPU seconds of this process, a call."""
    walls = []
    cpu = time.process_time()
    for _ in range(times):
        started = time.perf_counter()
        run()
        walls.append(time.perf_counter() - started)
    return statistics.median(walls), (time.process_time() - cpu) / times


def _probe_pids(server: RealX2GoServer) -> list[int]:
    return [each.pid for each in server.processes() if each.command.startswith("x2gofleet-probe")]


def _probe_cpu(server: RealX2GoServer) -> float:
    """Return the CPU seconds of all processes of the probe, to the nanosecond."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in _probe_pids(server)) / 1e9


def _probe_memory(server: RealX2GoServer) -> float:
    """Return the proportional memory of all processes of the probe, in MB."""
    rollups = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in _probe_pids(server))
    return sum(int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1]) for text in rollups) / 1024  # type: ignore[index]


def _fill(server: RealX2GoServer, sessions: int) -> None:
    """Insert records up to so many sessions, all running, each with a state file."""
    (have,) = server.sql("select count(*) from sessions")[0]
    directory = server.path("/tmp/.x2go-alice")
    for number in range(int(str(have)), sessions):
        name = f"alice-{1000 + number}-1763800000_stDMATE_dp24"
        statement = (
            "insert into sessions (session_id, display, uname, server, status) values (?, ?, 'alice', 'ts01', 'R')"
        )
        server.sql(statement, (name, 1000 + number))
        (directory / f"C-{name}").mkdir(parents=True)
        (directory / f"C-{name}" / "state").write_text("RUNNING")


def _looks(server: RealX2GoServer, channel: ProbeChannel, sessions: int) -> Row:
    _fill(server, sessions)
    time.sleep(0.2)
    _ask(channel, SESSIONS_SECTION, watch=True)
    started, cpu = time.perf_counter(), _probe_cpu(server)
    time.sleep(LOOK_SECONDS)
    part = (_probe_cpu(server) - cpu) / (time.perf_counter() - started)
    return (
        f"an idle probe with ten looks a second, {sessions} sessions, {part:.3%} of a core",
        "one core",
        part,
        "<= 0.002",
    )


def _polls() -> list[Row]:
    rows: list[Row] = []
    with real_server() as (server, endpoint):
        connection = SshClient().open(endpoint, Deadline(20))
        channel = connection.start_probe(
            start_command("auto", as_root=False), Deadline(20), first_input=first_input("auto")
        )
        (listed,) = _ask(channel, SESSIONS_SECTION)
        unchanged = SectionRequest(SectionKind.SESSIONS, listed.signature)
        assert _ask(channel, unchanged)[0].same
        memory = _probe_memory(server)

        plain = paramiko.SSHClient()
        plain.load_host_keys(endpoint.known_hosts)
        plain.connect(
            endpoint.host,
            endpoint.port,
            endpoint.user,
            key_filename=endpoint.key_file,
            allow_agent=False,
            look_for_keys=False,
        )

        def executed() -> object:
            _, stdout, _ = plain.exec_command("true")
            return stdout.read(), stdout.channel.recv_exit_status()

        probe_wall, probe_cpu = _each(lambda: _ask(channel, LOAD_SECTION), 300)
        same_wall, same_cpu = _each(lambda: _ask(channel, unchanged), 300)
        exec_wall, exec_cpu = _each(executed, 40)
        transport = plain.get_transport()
        assert transport is not None
        transport.sock.setsockopt(6, 1, 1)
        nodelay_wall, _ = _each(executed, 40)

        started = _probe_cpu(server)
        for _ in range(UNCHANGED_POLLS):
            _ask(channel, unchanged)
        middle = _probe_cpu(server)
        for number in range(CHANGED_POLLS):
            server.sql("update sessions set status = ?", ("RS"[number % 2],))
            time.sleep(0.06)
            _ask(channel, SESSIONS_SECTION)
        same_server, changed_server = (
            (middle - started) / UNCHANGED_POLLS,
            (_probe_cpu(server) - middle) / CHANGED_POLLS,
        )
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for _ in range(LISTINGS):
            server.run(["x2golistsessions_root"])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        listing = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / LISTINGS
        looks = [_looks(server, channel, sessions) for sessions in (10, 300)]
        plain.close()
        connection.close()
    base = f"paramiko exec_command of `true`, {exec_wall * 1e3:.1f} ms"
    rows.append((f"a poll of load over the probe, {probe_wall * 1e3:.2f} ms", base, probe_wall / exec_wall, "<= 0.02"))
    rows.append((f"an unchanged poll of sessions, {same_wall * 1e3:.2f} ms", base, same_wall / exec_wall, "<= 0.02"))
    base = f"the same with TCP_NODELAY, {nodelay_wall * 1e3:.1f} ms"
    rows.append((f"a poll of load over the probe, {probe_wall * 1e3:.2f} ms", base, probe_wall / nodelay_wall, ""))
    base = f"paramiko exec_command, {exec_cpu * 1e3:.2f} ms"
    rows.append((f"client CPU of an unchanged poll, {same_cpu * 1e3:.2f} ms", base, same_cpu / exec_cpu, "<= 1.5 ms"))
    rows.append((f"client CPU of a poll of load, {probe_cpu * 1e3:.2f} ms", base, probe_cpu / exec_cpu, "<= 1.5 ms"))
    base = f"x2golistsessions_root, {listing * 1e3:.0f} ms"
    what = f"server CPU of an unchanged poll, {same_server * 1e3:.2f} ms"
    rows.append((what, base, same_server / listing, "<= 0.3 ms"))
    what = f"server CPU of a changed poll, {changed_server * 1e3:.2f} ms"
    rows.append((what, base, changed_server / listing, "<= 0.033"))
    rows.append((f"memory of the probe's processes, {memory:.1f} MB", "16 MB", memory / 16, "<= 1"))
    return rows + looks


def _idle_cpu(target: Target, check_timeout: float) -> float:
    """Return which part of a core this process uses while it holds idle connections."""
    before = Transport._active_check_timeout
    Transport._active_check_timeout = check_timeout
    connections: list[SshConnection] = []
    try:
        while len(connections) < IDLE_CONNECTIONS:
            connections.append(SshClient().open(target.endpoint, Deadline(30)))
        time.sleep(1.0)
        started, cpu = time.perf_counter(), time.process_time()
        time.sleep(IDLE_SECONDS)
        return (time.process_time() - cpu) / (time.perf_counter() - started)
    finally:
        Transport._active_check_timeout = before
        for connection in connections:
            connection.close()


def _idle() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="x2gofleet-bench-") as directory:
        inventory = Path(directory) / "fleet.toml"
        command = [sys.executable, "-m", "x2gofleet_workers", "simulate", "--servers", "1", "--pace", "0"]
        process = subprocess.Popen([*command, "--write-inventory", str(inventory)], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            process.stdout.readline()
            (target,) = load_inventory(inventory).targets.values()
            ours = _idle_cpu(target, Transport._active_check_timeout)
            theirs = _idle_cpu(target, paramiko.Transport._active_check_timeout)
        finally:
            process.terminate()
            process.wait()
    what = f"{IDLE_CONNECTIONS} idle connections, {ours:.3%} of a core"
    return [(what, f"paramiko's own wake-ups, {theirs:.2%} of a core", ours / theirs, "<= 0.2 % of a core")]


def run() -> list[Row]:
    """Return (what, baseline, ratio, goal) of each measurement; polls need root and Debian's x2goserver."""
    lacking = missing_requirements()
    if lacking:
        print(f"no polls of a real X2Go server: {lacking}", file=sys.stderr)
        return _idle()
    return _polls() + _idle()


def main() -> None:
    """Print the ratios."""
    for what, baseline, found, goal in run():
        print(f"{what:52} {found:8.4f}x  {baseline:50} goal {goal}")


if __name__ == "__main__":
    main()
