"""demo: an embedded Valkey, simulated X2Go servers over real SSH, two workers and the live view, in one command."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from x2gofleet.cache import FleetCache
from x2gofleet.cli import live
from x2gofleet.errors import CacheUnavailable, FleetError
from x2gofleet.keys import DEFAULT_NAMESPACE
from x2gofleet_workers.embedded import EmbeddedValkey, die_with_parent
from x2gofleet_workers.simulator import running_simulation

_WORKERS = 2
_FILLED_WITHIN_SECONDS = 30.0
_STOP_SECONDS = 6.0


class DemoError(FleetError):
    """The demo could not be brought up."""


def run_demo(*, servers: int, sessions: int, seconds: float | None) -> int:
    """Bring everything up, show it until ``seconds`` have passed or the viewer ends it, take it down; exit status."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="x2gofleet-demo-")))
        print(f"starting {servers} simulated X2Go servers, a Valkey and {_WORKERS} workers ...", flush=True)
        valkey = stack.enter_context(EmbeddedValkey())
        simulation = stack.enter_context(
            running_simulation(servers=servers, sessions=sessions, directory=directory, pace=4.0)
        )
        for number in range(1, _WORKERS + 1):
            stack.callback(_stop, _start_worker(number, simulation.inventory, valkey.url, directory))
        cache = stack.enter_context(FleetCache.from_url(valkey.url))
        _wait_until_filled(cache, servers, directory)
        title = f"x2gofleet demo: {servers} simulated servers, {_WORKERS} workers"
        if sys.stdout.isatty():
            live.run_live(cache, seconds=seconds, title=title)
        else:
            _watch_plainly(cache, simulation, seconds or 6.0, title)
    return 0


def _start_worker(number: int, inventory: Path, url: str, directory: Path) -> subprocess.Popen[bytes]:
    with (directory / f"worker-{number}.log").open("wb") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "x2gofleet_workers", "run", "--inventory", str(inventory)),
                *("--redis-url", url, "--worker-id", f"demo-worker-{number}"),
                # As the view reads it, whatever X2GOFLEET_NAMESPACE says.
                *("--namespace", DEFAULT_NAMESPACE),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_filled(cache: FleetCache, servers: int, directory: Path) -> None:
    deadline = time.monotonic() + _FILLED_WITHIN_SECONDS
    while True:
        try:
            if sum(server.up is True for server in cache.servers()) == servers:
                return
        except CacheUnavailable:
            pass
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in directory.glob("worker-*.log"))
            raise DemoError(f"the fleet was not polled within {_FILLED_WITHIN_SECONDS:g} s; the workers said:\n{logs}")
        time.sleep(0.05)


def _watch_plainly(cache: FleetCache, simulation: object, seconds: float, title: str) -> None:
    """Without a terminal: let the fleet live a few seconds, then print what it came to."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        time.sleep(0.2)
    print(title)
    print(live.summary(cache))
