"""Reading never stops X2Go: its writers succeed wherever in a read the probe is stopped, or its pipe is full."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from x2gofleet_workers.probe.delivery import probe_text
from x2gofleet_workers.probe.protocol import SectionKind, SectionRequest

from .direct_probe import DirectProbe
from .namespace import wait_until
from .realserver import RealX2GoServer

SESSIONS = SectionRequest(SectionKind.SESSIONS)
# The old way: a transaction in the file, as X2Go's own commands read.
WITH_LOCK = probe_text().replace(b"$can_read_without_lock = $major", b"$can_read_without_lock = 0 * $major")


@contextmanager
def traced(pid: int, *options: str, log: Path) -> Iterator[None]:
    """Have strace attached to a process."""
    tracer = subprocess.Popen(["strace", "-o", str(log), "-p", str(pid), *options], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    assert "attached" in tracer.stderr.readline()
    try:
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(10)
        tracer.stderr.close()


def is_stopped(pid: int) -> bool:
    return re.search(r"^State:\s+[Tt]", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE) is not None


def can_write(server: RealX2GoServer) -> bool:
    """Whether a writer that does not wait at all can commit."""
    with closing(sqlite3.connect(server.database, timeout=0)) as connection:
        try:
            with connection:
                connection.execute("update sessions set last_time = last_time")
        except sqlite3.OperationalError:
            return False
        return True


def is_settled(server: RealX2GoServer) -> bool:
    """Whether the last write is so long ago that the probe reads at its first try."""
    return time.time() - server.database.stat().st_ctime > 0.1


def calls_of_a_read(server: RealX2GoServer, probe: DirectProbe, log: Path) -> list[tuple[str, int]]:
    """Return the system calls of a read in their order: the name, and the how manieth of that name it is."""
    wait_until(lambda: is_settled(server), "the last write to be long enough ago")
    with traced(probe.reader_pid(), log=log):
        probe.send(SESSIONS)
        probe.receive()
    names = re.findall(r"^(\w+)\(", log.read_text(), re.MULTILINE)
    seen: Counter[str] = Counter()
    calls = []
    for name in names:
        seen[name] += 1
        calls.append((name, seen[name]))
    # The first, and the last where strace saw it, wait for a request.
    return [call for call in calls if call[0] not in ("select", "pselect6")]


def steps_that_stop_a_writer(
    server: RealX2GoServer, text: bytes, tmp_path: Path
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Stop the reader at each of its system calls in turn; return where it stopped and where nobody could write."""
    log = tmp_path / "strace.log"
    stopped, blocked = [], []
    with DirectProbe(server, text=text) as probe:
        probe.sessions()
        for name, number in calls_of_a_read(server, probe, log):
            pid = probe.reader_pid()
            wait_until(lambda: is_settled(server), "the last write to be long enough ago")
            with traced(pid, "-e", f"inject={name}:signal=SIGSTOP:when={number}", log=log):
                probe.send(SESSIONS)
                wait_until(lambda pid=pid: is_stopped(pid) or probe.has_answer(), f"{name} {number}")  # type: ignore[misc]
                # It stops after the call: what it wrote may be here before.
                with suppress(TimeoutError):
                    wait_until(lambda pid=pid: is_stopped(pid), f"{name} {number}", timeout_seconds=1.0)  # type: ignore[misc]
                reached = is_stopped(pid)
            if reached:
                stopped.append((name, number))
                if not can_write(server):
                    blocked.append((name, number))
            os.kill(pid, signal.SIGCONT)
            probe.receive()
    return stopped, blocked


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed; run tests/e2e/setup.sh")
def test_a_writer_succeeds_at_whatever_step_of_a_read_the_probe_is_stopped(
    server: RealX2GoServer, tmp_path: Path
) -> None:
    server.insert_session("alice", 50)

    stopped, blocked = steps_that_stop_a_writer(server, probe_text(), tmp_path)

    names = {name for name, _ in stopped}
    assert {"openat", "pread64", "read", "write", "close"} <= names
    assert len(stopped) > 40
    assert blocked == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed; run tests/e2e/setup.sh")
def test_the_harness_finds_the_steps_of_a_read_with_a_lock(server: RealX2GoServer, tmp_path: Path) -> None:
    server.insert_session("alice", 50)

    _, blocked = steps_that_stop_a_writer(server, WITH_LOCK, tmp_path)

    assert blocked


def test_x2go_s_own_writers_succeed_while_the_probe_s_pipe_is_full(server: RealX2GoServer) -> None:
    session = server.insert_session("alice", 50)
    with closing(sqlite3.connect(server.database)) as connection, connection:
        connection.executemany(
            "insert into sessions (session_id, display, uname, server, client) values (?, ?, 'mallory', 'ts01', ?)",
            [(f"mallory-{number}", number, "x" * 250) for number in range(1000, 3000)],
        )
    with DirectProbe(server) as probe:
        # More than two pipes hold, and nobody reads it.
        probe.send(SESSIONS)
        wait_until(lambda: len(probe.pids()) == 2, "the reader")
        for status in ("S", "R", "S"):
            server.change_status("alice", session, status)  # type: ignore[arg-type]
        assert can_write(server)
        (section,) = probe.receive()
        assert len(section.records) == 2001
        assert len(probe.names()) == 2001
