"""Polls of a real X2Go server over real sshd: wall clock and CPU on both sides; the cost of idle connections."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import paramiko
from x2gofleet_workers import ssh
from x2gofleet_workers.inventory import Target, load_inventory
from x2gofleet_workers.shell_probe import Request, start_command
from x2gofleet_workers.ssh import Deadline, Endpoint, ProbeChannel, SshConnection

from tests.e2e.realserver import RealX2GoServer, create_empty_database, missing_requirements

Row = tuple[str, str, float, str]
SESSIONS = 5
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


def _ask(channel: ProbeChannel, *sections: str) -> list[str]:
    request = Request("server", sections, 20)
    return [section.signature for section, _ in channel.ask(request, Deadline(30))]


def _each(run: Callable[[], object], times: int) -> tuple[float, float]:
    """Return the median wall seconds and the mean CPU seconds of this process, a call."""
    walls = []
    cpu = time.process_time()
    for _ in range(times):
        started = time.perf_counter()
        run()
        walls.append(time.perf_counter() - started)
    return statistics.median(walls), (time.process_time() - cpu) / times


def _probe_cpu(server: RealX2GoServer) -> float:
    """Return the CPU seconds of all probes on the server, ended children included."""
    ticks = 0
    for process in server.processes():
        stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        if command[:1] == [b"sh"] and b"x2gofleet-probe" in command:
            ticks += sum(int(value) for value in stat[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def _polls() -> list[Row]:
    rows: list[Row] = []
    with real_server() as (server, endpoint):
        connection = SshConnection.open(endpoint, Deadline(20))
        channel = connection.start_probe(start_command("auto", as_root=False), Deadline(20))
        (signature,) = _ask(channel, "sessions=-")
        (signature,) = _ask(channel, f"sessions={signature}")
        unchanged = f"sessions={signature}"

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

        probe_wall, probe_cpu = _each(lambda: _ask(channel, "load"), 300)
        same_wall, same_cpu = _each(lambda: _ask(channel, unchanged), 300)
        exec_wall, exec_cpu = _each(executed, 40)
        transport = plain.get_transport()
        assert transport is not None
        transport.sock.setsockopt(6, 1, 1)
        nodelay_wall, _ = _each(executed, 40)

        started = _probe_cpu(server)
        for _ in range(400):
            _ask(channel, unchanged)
        middle = _probe_cpu(server)
        for _ in range(10):
            _ask(channel, "sessions=-")
        same_server, full_server = (middle - started) / 400, (_probe_cpu(server) - middle) / 10
        plain.close()
        connection.close()
    base = f"paramiko exec_command of `true`, {exec_wall * 1e3:.1f} ms"
    rows.append((f"a poll of load over the probe, {probe_wall * 1e3:.2f} ms", base, probe_wall / exec_wall, "<= 0.05"))
    rows.append((f"an unchanged poll of sessions, {same_wall * 1e3:.2f} ms", base, same_wall / exec_wall, "<= 0.05"))
    base = f"the same with TCP_NODELAY, {nodelay_wall * 1e3:.1f} ms"
    rows.append((f"a poll of load over the probe, {probe_wall * 1e3:.2f} ms", base, probe_wall / nodelay_wall, ""))
    base = f"paramiko exec_command, {exec_cpu * 1e3:.2f} ms"
    rows.append((f"client CPU of an unchanged poll, {same_cpu * 1e3:.2f} ms", base, same_cpu / exec_cpu, "<= 1.5 ms"))
    rows.append((f"client CPU of a poll of load, {probe_cpu * 1e3:.2f} ms", base, probe_cpu / exec_cpu, "<= 1.5 ms"))
    base = f"a full listing, {full_server * 1e3:.0f} ms"
    rows.append(
        (f"server CPU of an unchanged poll, {same_server * 1e3:.1f} ms", base, same_server / full_server, "<= 0.02")
    )
    return rows


def _idle_cpu(target: Target, check_timeout: float) -> float:
    """Return which part of a core this process uses while it holds idle connections."""
    before = ssh._Transport._active_check_timeout
    ssh._Transport._active_check_timeout = check_timeout
    connections: list[SshConnection] = []
    try:
        while len(connections) < IDLE_CONNECTIONS:
            connections.append(SshConnection.open(target.endpoint, Deadline(30)))
        time.sleep(1.0)
        started, cpu = time.perf_counter(), time.process_time()
        time.sleep(IDLE_SECONDS)
        return (time.process_time() - cpu) / (time.perf_counter() - started)
    finally:
        ssh._Transport._active_check_timeout = before
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
            ours = _idle_cpu(target, ssh._Transport._active_check_timeout)
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
