"""A worker that is stopped between reading and writing: what it writes later is refused, or has its true polled_at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import redis
from x2gofleet_workers.simulator import RunningSimulation, running_simulation

from tests.waiting import LOOKUP_SECONDS, SLACK_SECONDS, wait_until
from x2gofleet import FleetCache, Snapshot
from x2gofleet.keys import Keys

pytestmark = pytest.mark.faults

# Holds a thread that has read an answer and not yet written it, from when one file appears until another does.
BREAKPOINT = """
import sys, time
from pathlib import Path
from x2gofleet.store import Store

trigger, go, method = Path(sys.argv.pop(1)), Path(sys.argv.pop(1)), sys.argv.pop(1)
write = getattr(Store, method)

def held(self, lease, seq, *rest, **more):
    try:
        trigger.unlink()
    except FileNotFoundError:
        return write(self, lease, seq, *rest, **more)
    print("read", flush=True)
    while not go.exists():
        time.sleep(0.001)
    outcome = write(self, lease, seq, *rest, **more)
    print("outcome", outcome.value, lease.fence, seq, flush=True)
    return outcome

setattr(Store, method, held)
from x2gofleet_workers.cli import main
sys.exit(main())
"""


class WorkerProcess:
    """A worker in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    @property
    def is_stopped(self) -> bool:
        return psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED

    def pause(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)
        wait_until(lambda: self.is_stopped)

    def resume(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def next_line(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()


class Stage:
    """One simulated server, its inventory, a namespace, and whatever workers a test starts."""

    def __init__(self, simulation: RunningSimulation, directory: Path, url: str, namespace: str) -> None:
        self.server = simulation.server("ts01")
        self._url, self._namespace = url, namespace
        self.trigger, self.go = directory / "hold-the-next-write", directory / "go-on"
        self.cache = FleetCache.from_url(url, namespace=namespace, lookup_seconds=LOOKUP_SECONDS)
        self.keys = Keys(namespace)
        self._inventory = directory / "fleet.toml"
        self._simulation = simulation

    def write_inventory(self, ttl_seconds: float, *, load_seconds: float = 0) -> None:
        self._simulation.write_inventory(self._inventory)
        with self._inventory.open("a") as file:
            file.write(f"\n[intervals]\nsessions = 0.2\nload = {load_seconds}\nmounts = 0\n")
            file.write(f"\n[ttls]\nsessions = {ttl_seconds}\n")

    @contextmanager
    def worker(self, worker_id: str, *, stop_before: str | None = None) -> Iterator[WorkerProcess]:
        """Run ``x2gofleet-worker run``; with ``stop_before`` it has a breakpoint before that method of Store."""
        start = ["-m", "x2gofleet_workers"]
        if stop_before is not None:
            start = ["-c", BREAKPOINT, str(self.trigger), str(self.go), stop_before]
        place = ["--redis-url", self._url, "--namespace", self._namespace, "--worker-id", worker_id]
        process = subprocess.Popen(
            [sys.executable, *start, "run", "--inventory", str(self._inventory), *place],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            yield WorkerProcess(process)
        finally:
            process.kill()
            process.communicate()

    def snapshot(self) -> Snapshot | None:
        found = self.cache.snapshots(server="ts01", kind="sessions")
        return found[0] if found else None

    def session_names(self) -> list[str]:
        snapshot = self.snapshot()
        return [] if snapshot is None else list(snapshot.sessions())


@pytest.fixture
def stage(tmp_path: Path, valkey_url: str, namespace: str) -> Iterator[Stage]:
    with running_simulation(servers=1, sessions=2, directory=tmp_path) as simulation:
        made = Stage(simulation, tmp_path, valkey_url, namespace)
        yield made
        made.cache.close()


def redis_ms(client: redis.Redis) -> int:
    seconds, micros = client.time()
    return int(seconds) * 1000 + int(micros) // 1000


def owner(stage: Stage, client: redis.Redis) -> str:
    return str((client.hget(stage.keys.lease("ts01"), "owner") or b"").decode())


def stop_in_the_gap(stage: Stage, worker: WorkerProcess, method: str) -> None:
    """Stop the worker with an answer read and not written."""
    wait_until(stage.snapshot)
    if method == "store":
        stage.server.start_session("carol")
    stage.trigger.touch()
    assert worker.next_line() == ["read"]
    worker.pause()
    # Nothing runs in a stopped process: the held thread writes when the process is continued.
    stage.go.touch()
    # From here on the server answers nobody: whatever is stored later was read before.
    stage.server.set_fault("dead")


@pytest.mark.parametrize("method", ["store", "confirm"])
def test_a_short_stop_the_write_is_taken_with_its_true_age(
    stage: Stage, redis_client: redis.Redis, method: str
) -> None:
    stage.write_inventory(ttl_seconds=30)
    with stage.worker("w1", stop_before=method) as worker:
        stop_in_the_gap(stage, worker, method)
        stopped_at = redis_ms(redis_client)
        before = stage.snapshot()
        assert before is not None
        wait_until(lambda: redis_ms(redis_client) > stopped_at + 400)
        worker.resume()
        said, outcome, _, seq = worker.next_line()
        assert (said, outcome) == ("outcome", "stored")
        after = stage.snapshot()
        assert after is not None
        assert (after.seq, after.fence) == (int(seq), before.fence)
        assert before.polled_at_ms < after.polled_at_ms <= stopped_at
        assert after.age > 0.4
        expires_at = redis_client.pexpiretime(stage.keys.snapshot("ts01", after.kind))
        assert expires_at == after.polled_at_ms + 30_000
        if method == "store":
            assert any(name.startswith("carol-") for name in after.sessions())


@pytest.mark.parametrize("method", ["store", "confirm"])
def test_after_the_ttl_the_write_is_refused(stage: Stage, redis_client: redis.Redis, method: str) -> None:
    stage.write_inventory(ttl_seconds=1)
    with stage.worker("w1", stop_before=method) as worker:
        stop_in_the_gap(stage, worker, method)
        wait_until(lambda: stage.snapshot() is None)
        stopped_at = redis_ms(redis_client)
        wait_until(lambda: redis_ms(redis_client) > stopped_at + 500)
        worker.resume()
        # A confirmation finds nothing to confirm before its own age is looked at.
        assert worker.next_line()[1] == {"store": "expired", "confirm": "absent"}[method]
        assert stage.snapshot() is None
        stage.server.clear_fault()
        wait_until(stage.snapshot)
        snapshot = stage.snapshot()
        assert snapshot is not None
        assert snapshot.polled_at_ms > stopped_at


@pytest.mark.parametrize("method", ["store", "confirm"])
def test_after_a_second_worker_took_over_the_write_is_refused(
    stage: Stage, redis_client: redis.Redis, method: str
) -> None:
    stage.write_inventory(ttl_seconds=60)
    with stage.worker("w1", stop_before=method) as worker:
        stop_in_the_gap(stage, worker, method)
        read_by_first = stage.snapshot()
        assert read_by_first is not None
        stage.server.clear_fault()
        # The lease's end and the heartbeat's, without waiting 6 s for them.
        redis_client.delete(stage.keys.lease("ts01"), stage.keys.workers())
        with stage.worker("w2"):
            wait_until(lambda: owner(stage, redis_client) == "w2")
            taken_over = lambda: (found := stage.snapshot()) is not None and found.worker == "w2"  # noqa: E731
            wait_until(taken_over)
            name = stage.server.start_session("dave")
            wait_until(lambda: name in stage.session_names())
            stage.server.set_fault("dead")
            newest = stage.snapshot()
            assert newest is not None
            worker.resume()
            said, outcome, fence, _ = worker.next_line()
            assert (said, outcome) == ("outcome", "lost")
            after = stage.snapshot()
            assert after is not None
            assert (after.worker, after.stdout) == ("w2", newest.stdout)
            assert after.fence > int(fence)
            assert after.polled_at_ms >= newest.polled_at_ms
            assert name in stage.session_names()


def test_an_answer_that_waits_in_the_kernel_while_its_ttl_passes_is_not_stored(
    stage: Stage, redis_client: redis.Redis
) -> None:
    """No breakpoint: the plain worker is stopped while the server still thinks."""
    stage.write_inventory(ttl_seconds=1)
    with stage.worker("w1") as worker:
        wait_until(stage.snapshot)
        stage.server.set_fault("slow=0.4")
        wait_until(lambda: stage.server.counters.running_polls == 1)
        worker.pause()
        asked_before = redis_ms(redis_client)
        stage.server.start_session("erin")
        wait_until(lambda: stage.server.counters.running_polls == 0)
        wait_until(lambda: stage.snapshot() is None)
        wait_until(lambda: redis_ms(redis_client) > asked_before + 1200)
        stage.server.set_fault("hang")
        polls = stage.server.counters.polls
        worker.resume()
        # The next question shows that the answer before it was dealt with.
        wait_until(lambda: stage.server.counters.polls > polls)
        assert stage.snapshot() is None


@pytest.mark.parametrize("changed", [True, False], ids=["a listing", "a confirmation"])
def test_an_answer_that_waits_in_the_kernel_is_as_old_as_its_question(
    stage: Stage, redis_client: redis.Redis, changed: bool
) -> None:
    stage.write_inventory(ttl_seconds=30)
    with stage.worker("w1") as worker:
        wait_until(stage.snapshot)
        stage.server.set_fault("slow=0.4")
        wait_until(lambda: stage.server.counters.running_polls == 1)
        if changed:
            stage.server.start_session("erin")
        worker.pause()
        asked_before = redis_ms(redis_client)
        before = stage.snapshot()
        assert before is not None
        wait_until(lambda: stage.server.counters.running_polls == 0)
        wait_until(lambda: redis_ms(redis_client) > asked_before + 1000)
        stage.server.set_fault("hang")
        worker.resume()
        wait_until(lambda: (found := stage.snapshot()) is not None and found.seq > before.seq)
        snapshot = stage.snapshot()
        assert snapshot is not None
        assert before.polled_at_ms < snapshot.polled_at_ms <= asked_before
        assert snapshot.age >= 1.0
        assert any(name.startswith("erin-") for name in snapshot.sessions()) is changed


def test_a_real_takeover_by_lease_and_heartbeat_alone(stage: Stage, redis_client: redis.Redis) -> None:
    """Both workers live from the start; the owner is stopped for longer than its lease lasts."""
    stage.write_inventory(ttl_seconds=60)
    with stage.worker("w1") as first, stage.worker("w2") as second:
        workers = {"w1": first, "w2": second}
        wait_until(lambda: redis_client.zcard(stage.keys.workers()) == 2 and stage.snapshot())
        # The share of two is decided once both have ticked again.
        heartbeats = dict(redis_client.zrange(stage.keys.workers(), 0, -1, withscores=True))
        wait_until(
            lambda: all(
                score > heartbeats[member] + 1500
                for member, score in redis_client.zrange(stage.keys.workers(), 0, -1, withscores=True)
            )
        )
        while True:
            stopped = owner(stage, redis_client)
            started = time.monotonic()
            workers[stopped].pause()
            before = stage.snapshot()
            if owner(stage, redis_client) == stopped and before is not None and before.worker == stopped:
                break
            # It handed the target on just then.
            workers[stopped].resume()
        successor = {"w1": "w2", "w2": "w1"}[stopped]
        wait_until(lambda: (found := stage.snapshot()) is not None and found.worker == successor)
        assert time.monotonic() - started < 6.0 + 1.0 + SLACK_SECONDS
        taken_over = stage.snapshot()
        assert taken_over is not None
        assert taken_over.fence > before.fence
        workers[stopped].resume()
        seen: list[Snapshot] = [taken_over]

        def is_member_again() -> bool:
            found = stage.snapshot()
            assert found is not None
            seen.append(found)
            return redis_client.zcard(stage.keys.workers()) == 2 and owner(stage, redis_client) == stopped

        wait_until(is_member_again)
        order = [(each.fence, each.seq) for each in seen]
        assert order == sorted(order), "an older write replaced a newer one"
        assert all(later.polled_at_ms >= sooner.polled_at_ms for sooner, later in pairwise(seen))
