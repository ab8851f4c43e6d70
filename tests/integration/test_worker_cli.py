"""The command x2gofleet-worker as an operator runs it: exit statuses, messages, signals, and what is left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from x2gofleet_workers.inventory import load_inventory
from x2gofleet_workers.probe.delivery import probe_text
from x2gofleet_workers.simulator import RunningSimulation, running_simulation

from tests.waiting import HANG_SECONDS, LOOKUP_SECONDS, SLACK_SECONDS, wait_until
from x2gofleet.cache import FleetCache
from x2gofleet.extras import how_to_install
from x2gofleet.keys import Keys

STOP_SECONDS = 5.0
COMMAND = (sys.executable, "-m", "x2gofleet_workers")


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("X2GOFLEET_")} | more


def called(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_what_is_not_installed_is_said_with_what_to_install() -> None:
    program = (
        "import sys; sys.modules['apscheduler'] = None; from x2gofleet_workers.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "apscheduler" in done.stderr
    assert done.stderr.endswith(f"a worker needs more than a reader: {how_to_install('worker')}\n")
    assert "Traceback" not in done.stderr


class Running:
    """The command in the background, with what it says in a file."""

    def __init__(self, folder: Path, scratch: str, *args: object) -> None:
        self.path = folder / f"said-{time.monotonic_ns()}"
        with self.path.open("wb") as said:
            self.process = subprocess.Popen(
                [*COMMAND, *map(str, args)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=environment(TMPDIR=scratch),
            )

    @property
    def said(self) -> str:
        return self.path.read_text()

    def ends_with(self, number: int) -> int:
        """Send a signal; return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(SLACK_SECONDS)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


Start = Callable[..., Running]


@pytest.fixture
def scratch() -> Iterator[str]:
    """A TMPDIR for the command: short, because the path of a unix socket has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="x2gofleet-test-") as folder:
        yield folder


@pytest.fixture
def start(tmp_path: Path, scratch: str) -> Iterator[Start]:
    """Starts the command in the background; ended with the test."""
    started: list[Running] = []

    def run(*args: object) -> Running:
        started.append(Running(tmp_path, scratch, *args))
        return started[-1]

    yield run
    for each in started:
        each.close()


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[RunningSimulation]:
    with running_simulation(2, 4, directory=tmp_path) as running:
        yield running


@pytest.fixture
def cache(redis_client: redis.Redis, namespace: str) -> FleetCache:
    return FleetCache(redis_client, namespace=namespace, lookup_seconds=LOOKUP_SECONDS)


def is_filled(cache: FleetCache) -> bool:
    servers = cache.servers()
    return bool(servers) and all(each.up for each in servers)


# Usage


@pytest.mark.parametrize("command", [(), ("run",), ("check",), ("demo",), ("simulate",), ("probe",)])
def test_help(command: tuple[str, ...]) -> None:
    found = called(*command, "--help")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("usage: x2gofleet-worker")
    if not command:
        assert "exit status:" in found.stdout
        assert all(name in found.stdout for name in ("run", "check", "demo", "simulate", "probe"))


def test_version() -> None:
    assert re.fullmatch(r"x2gofleet \d+\.\d+\.\d+\n", called("--version").stdout)


GOOD = '[servers.a]\nhost = "127.0.0.1"\nuser = "root"\nkey_file = "k"\nknown_hosts = "h"\n'


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "arguments are required: COMMAND"),
        (("dance",), "invalid choice"),
        (("run",), "arguments are required: --inventory"),
        (("run", "--inventory", "x", "--redis-url", "redis://h", "--embedded"), "not allowed with"),
        (("run", "--inventory", "absent.toml"), "absent.toml: there is no such file"),
        (("check", "--inventory", "absent.toml"), "absent.toml: there is no such file"),
        (
            ("run", "--inventory", "{bad}"),
            "bad.toml:2: servers.a.hots: 'hots' is no setting here. did you mean 'host'?",
        ),
        (("check", "--inventory", "{bad}"), "bad.toml:2: servers.a.hots"),
        (("run", "--inventory", "{good}", "--redis-url", "http://:secret@h"), "is not a valid Redis URL"),
        (("run", "--inventory", "{good}", "--namespace", "a b"), "'a b' is no namespace"),
        (("run", "--inventory", "{good}", "--worker-id", "a b"), "'a b' is no worker id"),
        (("demo", "--servers", "0"), "must be at least 1"),
        (("demo", "--servers", "many"), "invalid"),
    ],
)
def test_wrong_usage_is_told_and_exits_with_2(args: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "good.toml").write_text(GOOD)
    (tmp_path / "bad.toml").write_text(GOOD.replace("host =", "hots ="))
    names = {"{good}": str(tmp_path / "good.toml"), "{bad}": str(tmp_path / "bad.toml")}
    found = called(*(names.get(arg, arg) for arg in args))
    assert found.returncode == 2, found
    assert said in found.stderr
    assert "Traceback" not in found.stderr
    assert "secret" not in found.stderr


def test_the_inventory_may_come_from_the_environment(tmp_path: Path) -> None:
    found = called("check", X2GOFLEET_INVENTORY=str(tmp_path / "from-the-environment.toml"))
    assert found.returncode == 2
    assert "from-the-environment.toml: there is no such file" in found.stderr


def test_probe_prints_the_script() -> None:
    found = called("probe")
    assert (found.returncode, found.stdout) == (0, probe_text().decode())


# check


def test_check_of_a_fleet_that_answers(simulation: RunningSimulation) -> None:
    found = called("check", "--inventory", simulation.inventory)
    assert (found.returncode, found.stderr) == (0, "")
    first, second, last = found.stdout.splitlines()
    assert re.match(
        r"ok +ts01 +root@127\.0\.0\.1:\d+ +\d+ session\(s\), host name ts01, sqlite, by records, equal to X2Go's own ",
        first,
    )
    assert "ts02" in second
    assert last == "all 2 target(s) answer"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("dead", "Unreachable: 127.0.0.1 port"),
        ("not-ssh", "Unreachable: "),
        ("auth", "AuthenticationFailed: "),
        ("hostkey", "HostKeyMismatch: "),
        ("empty", "NotPermitted: "),
        ("garbage", "NotProven: "),
    ],
)
def test_check_of_a_fleet_with_a_fault(fault: str, said: str, simulation: RunningSimulation) -> None:
    simulation.server("ts02").set_fault(fault)
    found = called("check", "--inventory", simulation.inventory)
    assert found.returncode == 1
    first, second = found.stdout.splitlines()
    assert first.startswith("ok      ts01")
    assert second.startswith("FAILED  ts02")
    assert said in second
    assert found.stderr == "1 of 2 target(s) failed\n"


def test_check_shows_no_cookie(simulation: RunningSimulation) -> None:
    found = called("check", "--inventory", simulation.inventory)
    cookies = {session.cookie for server in simulation.servers.values() for session in server.sessions} - {""}
    assert cookies
    assert not [cookie for cookie in cookies if cookie in found.stdout + found.stderr]


# run


def run_arguments(simulation: RunningSimulation, valkey_url: str, namespace: str) -> tuple[object, ...]:
    return ("run", "--inventory", simulation.inventory, "--redis-url", valkey_url, "--namespace", namespace)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_polls_until_a_signal_and_lets_go(
    number: signal.Signals,
    simulation: RunningSimulation,
    valkey_url: str,
    namespace: str,
    redis_client: redis.Redis,
    cache: FleetCache,
    start: Start,
) -> None:
    worker = start(*run_arguments(simulation, valkey_url, namespace), "--worker-id", "w-cli")
    wait_until(lambda: is_filled(cache), "all servers are polled")
    assert {each.owner for each in cache.servers()} == {"w-cli"}
    status = worker.ends_with(number)
    assert status == 0
    keys = Keys(namespace)
    left = [keys.lease("ts01"), keys.lease("ts02"), keys.worker("w-cli"), keys.workers()]
    assert redis_client.exists(*left) == 0
    assert "worker w-cli: stopped" in worker.said
    assert "Traceback" not in worker.said


@pytest.mark.parametrize("hung", ["poll", "banner", "connect"])
def test_sigterm_while_a_server_hangs(
    hung: str,
    simulation: RunningSimulation,
    valkey_url: str,
    namespace: str,
    redis_client: redis.Redis,
    start: Start,
    tmp_path: Path,
) -> None:
    server = simulation.server("ts01")
    server.set_fault({"poll": "hang", "banner": "tarpit", "connect": "dead"}[hung])
    fillers: list[socket.socket] = []
    inventory = simulation.inventory
    if hung == "connect":
        # A queue of connections that is full answers no SYN.
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers.append(listener)
        for _ in range(4):
            fillers.append(socket.socket())
            fillers[-1].setblocking(False)
            fillers[-1].connect_ex(listener.getsockname())
        port = listener.getsockname()[1]
        target = load_inventory(inventory).targets["ts01"]
        known = Path(target.endpoint.known_hosts)
        key = known.read_text().split()[2]
        known.write_text(f"{known.read_text()}[127.0.0.1]:{port} ssh-ed25519 {key}\n")
        inventory = tmp_path / "hole.toml"
        inventory.write_text(simulation.inventory.read_text().replace(f"port = {server.port}\n", f"port = {port}\n"))
    try:
        arguments = ("run", "--inventory", inventory, "--redis-url", valkey_url, "--namespace", namespace)
        worker = start(*arguments)
        lease = Keys(namespace).lease("ts01")
        wait_until(lambda: redis_client.exists(lease), "it owns the server that hangs")
        if hung == "poll":
            wait_until(lambda: server.counters.running_polls > 0, "a poll hangs")
        elif hung == "banner":
            wait_until(lambda: server.counters.open_connections > 0, "a connection hangs")
        else:
            process = psutil.Process(worker.process.pid)
            wait_until(
                lambda: [each for each in process.net_connections("tcp") if each.status == "SYN_SENT"], "it connects"
            )
        status = worker.ends_with(signal.SIGTERM)
    finally:
        for each in fillers:
            each.close()
    assert status == 0, worker.said
    assert redis_client.exists(lease) == 0


def test_run_without_redis_says_so_and_stops_when_told(simulation: RunningSimulation, start: Start) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        url = f"redis://worker:secret@127.0.0.1:{port}/0"
        worker = start("run", "--inventory", simulation.inventory, "--redis-url", url)
        wait_until(lambda: "--embedded" in worker.said, "the ways out are told")
        assert f"redis://***@127.0.0.1:{port}/0 can't be used" in worker.said
        status = worker.ends_with(signal.SIGTERM)
    assert status == 0
    assert "secret" not in worker.said
    assert "Traceback" not in worker.said


def embedded(start: Start, simulation: RunningSimulation) -> tuple[Running, str, Path, psutil.Process]:
    worker = start("run", "--inventory", simulation.inventory, "--embedded")
    wait_until(lambda: "embedded Valkey: unix://" in worker.said, "the URL is printed")
    found = re.search(r"embedded Valkey: (unix://(\S+)/valkey\.sock\S*)", worker.said)
    assert found is not None
    (server,) = (
        child for child in psutil.Process(worker.process.pid).children() if "valkey" in " ".join(child.cmdline())
    )
    return worker, found[1], Path(found[2]), server


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_embedded_serves_readers_keeps_others_out_and_ends_with_the_worker(
    simulation: RunningSimulation, start: Start
) -> None:
    worker, url, folder, server = embedded(start, simulation)
    with FleetCache.from_url(url, lookup_seconds=LOOKUP_SECONDS) as cache:
        wait_until(lambda: is_filled(cache), "all servers are polled")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert f"x2gofleet --redis-url '{url}' status" in worker.said
    assert server.net_connections("tcp") == []
    status = worker.ends_with(signal.SIGTERM)
    assert status == 0
    assert is_gone(server)
    assert not folder.exists()


def test_embedded_ends_with_a_worker_that_is_killed(simulation: RunningSimulation, start: Start) -> None:
    worker, _, folder, server = embedded(start, simulation)
    worker.ends_with(signal.SIGKILL)
    wait_until(lambda: is_gone(server), "the Valkey is gone")
    assert {left.suffix for left in folder.iterdir()} <= {".sock", ".log"}, "nothing of the cache is on disk"


# demo


def family(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def workers_of(process: subprocess.Popen[Any]) -> int:
    found = 0
    for child in family(process):
        with suppress(psutil.NoSuchProcess):
            found += child.cmdline()[1:4] == ["-m", "x2gofleet_workers", "run"]
    return found


def test_demo_without_a_terminal_prints_what_it_came_to(scratch: str) -> None:
    began = time.monotonic()
    found = called("demo", "--servers", 3, "--sessions", 12, "--seconds", 1, TMPDIR=scratch, COLUMNS="100")
    assert (found.returncode, found.stderr) == (0, ""), found
    assert time.monotonic() - began < HANG_SECONDS
    assert "3 simulated servers, 2 workers" in found.stdout
    assert all(name in found.stdout for name in ("ts01", "ts02", "ts03"))
    assert "\x1b" not in found.stdout
    assert os.listdir(scratch) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_demo_leaves_no_process_behind_however_it_ends(number: signal.Signals, start: Start) -> None:
    demo = start("demo", "--servers", 2, "--sessions", 4, "--seconds", 60)
    # Not any three: what Python itself starts while it imports is there for a moment.
    wait_until(lambda: workers_of(demo.process) == 2, "a Valkey and two workers run")
    started = family(demo.process)
    status = demo.ends_with(number)
    assert status == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    wait_until(lambda: all(is_gone(process) for process in started), "all of them are gone")
