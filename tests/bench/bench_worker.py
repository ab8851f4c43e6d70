"""One worker on one core: polls per second, Redis traffic and memory as targets grow; the cost of sharing out targets.

The simulated servers run on the other core. Writes a plot beside what it prints when told to: ``--plot FILE.svg``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import redis
from x2gofleet_workers.embedded import EmbeddedValkey
from x2gofleet_workers.ownership import fair_share

from tests.bench.plot import save
from tests.e2e.realserver import free_port
from x2gofleet.connection import client_from_url

Row = tuple[str, str, float, str]
SIZES = ((10, 0.1), (100, 0.25), (1000, 2.0))
MEASURED_SECONDS = 8.0
FILLED_WITHIN_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What a fleet of one size cost, for each unchanged poll of sessions."""

    targets: int
    polls_per_second: float
    worker_cpu_seconds: float
    redis_commands: float
    redis_bytes: float
    memory_kib: float


@contextmanager
def _process(cpu: int, *arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = ["taskset", "-c", str(cpu), sys.executable, "-m", "x2gofleet_workers", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def _until(condition: object, what: str) -> None:
    deadline = time.monotonic() + FILLED_WITHIN_SECONDS
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {FILLED_WITHIN_SECONDS:g} s: {what}")
        time.sleep(0.1)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_kib(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def _confirmed(port: int) -> float:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            text = reply.read().decode()
    except OSError:
        return 0.0
    found = 0.0
    for line in text.splitlines():
        if line.startswith("x2gofleet_polls_total{") and 'kind="sessions"' in line and 'result="confirmed"' in line:
            found += float(line.rpartition(" ")[2])
    return found


def _is_steady(port: int, polls_per_second: float) -> bool:
    """Whether all targets are polled at their interval: that is not yet so while connections are made."""
    polls, started = _confirmed(port), time.perf_counter()
    time.sleep(2.0)
    return (_confirmed(port) - polls) / (time.perf_counter() - started) > 0.9 * polls_per_second


def measure(targets: int, interval: float) -> Measured:
    """Poll ``targets`` unchanging simulated servers for some seconds."""
    cpus = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="x2gofleet-bench-") as name, EmbeddedValkey() as valkey:
        directory = Path(name)
        inventory = directory / "fleet.toml"
        simulate = ("simulate", "--servers", str(targets), "--sessions", str(2 * targets), "--pace", "0")
        with _process(cpus[-1], *simulate, "--write-inventory", str(inventory), log=directory / "simulator.log"):
            _until(lambda: inventory.exists() and "[profiles.all]" in inventory.read_text(), "the simulated servers")
            with inventory.open("a") as file:
                file.write(f"\n[intervals]\nsessions = {interval}\nload = 0\nmounts = 0\n")
            # Asked for only when the simulated servers have theirs.
            port = free_port()
            run = ("run", "--inventory", str(inventory), "--redis-url", valkey.url, "--metrics-port", str(port))
            with _process(cpus[0], *run, log=directory / "worker.log") as worker:
                client = client_from_url(valkey.url, command_timeout_seconds=5.0)
                _until(lambda: _is_steady(port, targets / interval), f"{targets} servers polled at their interval")
                return _during(client, worker.pid, port, targets)


def _during(client: redis.Redis, pid: int, port: int, targets: int) -> Measured:
    polls, cpu, started = _confirmed(port), _cpu_seconds(pid), time.perf_counter()
    before = client.info("stats")
    deadline = started + MEASURED_SECONDS
    while (left := deadline - time.perf_counter()) > 0:
        time.sleep(left)
    after = client.info("stats")
    polls, cpu = _confirmed(port) - polls, _cpu_seconds(pid) - cpu
    seconds = time.perf_counter() - started
    client.close()
    commands = after["total_commands_processed"] - before["total_commands_processed"]
    traffic = sum(after[f"total_net_{way}_bytes"] - before[f"total_net_{way}_bytes"] for way in ("input", "output"))
    return Measured(
        targets, polls / seconds, cpu / polls, commands / polls, traffic / polls, _memory_kib(pid) / targets
    )


def share_seconds(targets: int, workers: int) -> float:
    """Return the CPU seconds of sharing out targets once, as each worker does at each tick."""
    names = [f"ts{number:05}" for number in range(targets)]
    members = [f"worker-{number}" for number in range(workers)]
    started = time.process_time()
    fair_share(names, members)
    return time.process_time() - started


def plot(path: Path, measured: list[Measured]) -> None:
    """Write the worker's CPU for each poll and its memory for each target, by number of targets."""
    panels = {
        "CPU for an unchanged poll, ms": [item.worker_cpu_seconds * 1e3 for item in measured],
        "memory for each target, MiB": [item.memory_kib / 1024 for item in measured],
    }
    save(path, [item.targets for item in measured], "targets", panels)


def run(plot_file: Path | None = None) -> list[Row]:
    """Return (what, baseline, ratio, goal) of each measurement."""
    measured = [measure(*size) for size in SIZES]
    if plot_file is not None:
        plot(plot_file, measured)
    base = measured[0]
    rows: list[Row] = []
    for item in measured:
        what = f"{item.targets} targets: {1 / item.worker_cpu_seconds:.0f} unchanged polls/s on a core"
        rows.append((what, "1000 polls/s", 1 / item.worker_cpu_seconds / 1000, ">= 1"))
        what = f"{item.targets} targets: {item.redis_commands:.1f} Redis commands, {item.redis_bytes:.0f} bytes a poll"
        rows.append((what, f"{base.targets} targets", item.redis_commands / base.redis_commands, ""))
        what = f"{item.targets} targets: {item.memory_kib / 1024:.2f} MiB for each"
        rows.append((what, f"{base.targets} targets", item.memory_kib / base.memory_kib, ""))
    small, large = share_seconds(500, 10), share_seconds(5000, 10)
    what = f"sharing out 5000 targets to 10 workers, {large * 1e3:.0f} ms of CPU"
    rows.append((what, "500 targets", large / small, "<= 12"))
    return rows


def main() -> None:
    """Print the ratios."""
    plot_file = Path(sys.argv[sys.argv.index("--plot") + 1]) if "--plot" in sys.argv else None
    for what, baseline, found, goal in run(plot_file):
        print(f"{what:64} {found:8.3f}  {baseline:20} goal {goal}", flush=True)


if __name__ == "__main__":
    main()
