"""Each alert of docs/prometheus fires when the real thing is broken, and no other does; a healthy fleet has none."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.processes import LiveFleet, WorkerProcess, live_fleet, wait_until
from tests.support.hung_files import hung_file_system
from tests.topologies import free_port
from tests.wires import Wire
from x2gofleet.errors import FleetError
from x2gofleet.kinds import Kind

from .monitoring import ALERT_SECONDS, FASTER, RULES, PrometheusProcess, faster, prometheus, require_prometheus

CASES = Path(__file__).with_name("alerts.test.yml")
SERVERS = 3
INTERVAL_SECONDS = 0.5
SETTLED_EVALUATIONS = 90
"""Longer than the longest duration with its `for` in the rules, as they are made shorter here."""
BEFORE_SETTLED_EVALUATIONS = 40
"""The same for RULES_BEFORE."""
SLOW_SECONDS, NOT_SLOW_SECONDS = 0.1, 1.5
"""From when on the rules call Redis slow, and from when on where the machine's own load must not count."""
RULES_BEFORE = """
groups:
  - name: before
    rules:
      - alert: BeforeServerDown
        expr: sum(x2gofleet_targets{condition="backing_off"}) > 0
        for: 5m
      - alert: BeforeSnapshotsStale
        expr: >
          max by (instance) (x2gofleet_oldest_snapshot_age_seconds{kind="sessions"}) > 15
          unless on (instance) x2gofleet_targets{condition="backing_off"} > 0
        for: 1m
      - alert: BeforeRedisSlow
        expr: histogram_quantile(0.99, sum by (le) (rate(x2gofleet_redis_seconds_bucket[5m]))) > 0.1
        for: 5m
      - alert: BeforeInventoriesDiffer
        expr: count(count by (digest) (x2gofleet_inventory_info)) > 1
        for: 5m
"""
"""The alerts of a former docs/metrics.md: what these tests must be able to find silent."""


@pytest.fixture(autouse=True)
def installed() -> None:
    require_prometheus()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path, servers=SERVERS) as made:
        made.valkey.start()
        yield made


class Monitored:
    """A fleet whose workers a Prometheus scrapes once they are ready."""

    def __init__(self, fleet: LiveFleet, stack: contextlib.ExitStack) -> None:
        self.fleet, self._stack = fleet, stack
        self.prometheus: PrometheusProcess
        self._since = 0.0
        self.inventory = fleet.folder / "fleet.toml"

    def write_inventory(self, name: str = "fleet.toml", *, deadline: int = 4, **intervals: float) -> Path:
        """Write an inventory of all servers; a poll has ``deadline`` seconds."""
        times = {"sessions": INTERVAL_SECONDS, "load": 1, "mounts": 1, **intervals}
        text = self.fleet.inventory_text(**times).replace("[defaults]\n", f"[defaults]\ndeadline = {deadline}\n")  # type: ignore[arg-type]
        path = self.fleet.folder / name
        new = path.with_suffix(".new")
        new.write_text(text)
        new.replace(path)
        return path

    def start(self, name: str, inventory: Path | None = None, *, port: int = 0, url: str = "") -> WorkerProcess:
        """Start a worker that serves metrics."""
        return self.fleet.start(name, inventory or self.inventory, "--metrics-port", str(port), url=url)

    def watch(
        self,
        *workers: WorkerProcess,
        is_ready: bool = True,
        slow_seconds: float = NOT_SLOW_SECONDS,
        times_faster: int = FASTER,
    ) -> None:
        """Have a Prometheus scrape these workers, once they are ready.

        In its rules Redis is slow from ``slow_seconds`` on, and durations are ``times_faster`` shorter.
        """
        for worker in workers:
            wait_until(lambda: answer(worker, "/ready")[0] == 200 or not is_ready, "it is ready", ALERT_SECONDS)  # noqa: B023
        texts = {"now": RULES.read_text(), "before": RULES_BEFORE}
        rules = {
            name: faster(text.replace(f"> {SLOW_SECONDS:g}\n", f"> {slow_seconds:g}\n", 1), times_faster)
            for name, text in texts.items()
        }
        urls = [worker.metrics_url() for worker in workers]
        self.prometheus = self._stack.enter_context(prometheus(self.fleet.folder / "prometheus", urls, rules))
        if workers:
            # It reads its list of targets 5 s after its start.
            wait_until(lambda: "X2GoFleetNoWorker" not in self.prometheus.firing(), "it knows them", ALERT_SECONDS)
        self._since = self.prometheus.now()

    def fires(self, *names: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Wait until exactly these alerts fire, those of RULES_BEFORE left out; each says what, why and what to do."""

        def exactly() -> bool:
            meanwhile()
            return now(self.prometheus.firing()) == set(names)

        wait_until(exactly, f"exactly {names} fire", ALERT_SECONDS)
        for name, alert in self.prometheus.firing().items():
            if name in names:
                assert alert["annotations"].keys() == {"summary", "description", "remedy"}
                assert not re.search(r"[{}]{2}|<no value>|error expanding", " ".join(alert["annotations"].values()))

    def fired(self, *names: str, perhaps: tuple[str, ...] = ()) -> None:
        """Check that these alerts, and no others, have fired since the workers were first scraped."""
        assert now(self.prometheus.fired_since(self._since)) - set(perhaps) == set(names)

    def before_is_silent(self) -> None:
        """Check that none of RULES_BEFORE has fired."""
        found = self.prometheus.fired_since(self._since)
        assert found - now(found) == set()

    def evaluated(self, times: int) -> None:
        """Wait until the rules were evaluated so many times more."""
        before = self.prometheus.evaluations()
        wait_until(lambda: self.prometheus.evaluations() >= before + times, "the rules are evaluated", ALERT_SECONDS)


def now(names: Iterable[str]) -> set[str]:
    """Return those of the alerts of docs/prometheus."""
    return {name for name in names if not name.startswith("Before")}


def answer(worker: WorkerProcess, path: str) -> tuple[int, str]:
    url = worker.metrics_url().removesuffix("/metrics") + path
    try:
        with urllib.request.urlopen(url, timeout=20) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


@pytest.fixture
def monitored(fleet: LiveFleet) -> Iterator[Monitored]:
    with contextlib.ExitStack() as stack:
        made = Monitored(fleet, stack)
        made.write_inventory()
        yield made


@pytest.fixture
def two(monitored: Monitored) -> Monitored:
    """Two workers that are scraped."""
    workers = [monitored.start(name) for name in ("w1", "w2")]
    monitored.fleet.wait_for_shares("w1", "w2")
    monitored.watch(*workers)
    return monitored


@pytest.fixture
def one(monitored: Monitored) -> Monitored:
    """One worker that is scraped."""
    monitored.watch(monitored.start("w1"))
    return monitored


# The rules


def test_promtool_takes_rules_and_configuration() -> None:
    for command, name in (("rules", RULES), ("config", RULES.with_name("prometheus.yml"))):
        subprocess.run(["promtool", "check", command, str(name)], check=True, timeout=60, capture_output=True)


def passes(rules: str, folder: Path) -> bool:
    """Whether these rules pass the rules' tests."""
    cases = CASES.read_text().replace("../../docs/prometheus/x2gofleet.rules.yml", "rules.yml")
    (folder / "rules.yml").write_text(rules)
    (folder / "cases.yml").write_text(cases)
    done = subprocess.run(
        ["promtool", "test", "rules", str(folder / "cases.yml")], check=False, timeout=60, capture_output=True
    )
    return done.returncode == 0


def test_promtool_passes_the_rules_tests_and_fails_rules_that_are_changed(tmp_path: Path) -> None:
    rules, cases = RULES.read_text(), CASES.read_text()
    assert passes(rules, tmp_path)
    alerts = re.findall(r"^      - alert: (\w+)$", rules, re.M)
    assert len(alerts) == len(set(alerts)) >= 16
    assert set(re.findall(r'alertname="(\w+)"', cases)) == set(alerts), "each is expected to fire in some case"
    assert not passes(re.sub(r"expr: (>-\n(?: {10}.*\n)+|.*\n)", "expr: vector(0) > 1\n", rules), tmp_path)
    assert not passes(re.sub(r"for: \w+", "for: 0s", rules), tmp_path)


def test_a_healthy_fleet_has_no_alert(two: Monitored) -> None:
    server = two.fleet.simulation.server("ts01")
    began = two.prometheus.evaluations()
    while two.prometheus.evaluations() < began + SETTLED_EVALUATIONS:
        name = server.start_session("alice", ready=True)
        server.set_mounts(name, [("_home_alice", "/media/disk")])
        assert len(two.fleet.cache.update("all", timeout=30)) == SERVERS
        server.end(name)
        two.evaluated(5)
    two.fired()
    two.before_is_silent()
    assert two.prometheus.value("sum(x2gofleet_owned_targets)") == SERVERS
    assert two.prometheus.value("min(x2gofleet_health)") == 1
    rules = {rule["name"]: rule for rule in two.prometheus.rules() if not rule["name"].startswith("Before")}
    assert {rule["health"] for rule in rules.values()} == {"ok"}
    for name, rule in rules.items():
        assert rule["annotations"].keys() == {"summary", "description", "remedy"}, name
        assert rule["labels"]["severity"] in ("critical", "warning"), name
    two.fleet.check_workers()


# Workers


def test_the_last_worker_is_killed(two: Monitored) -> None:
    for worker in two.fleet.workers.values():
        worker.process.kill()
        worker.process.wait()
    two.fires("X2GoFleetNoWorker", "X2GoWorkerDown")
    two.evaluated(BEFORE_SETTLED_EVALUATIONS)
    two.before_is_silent()
    worker = two.start("w3")
    two.prometheus.scrape(worker.metrics_url())
    two.fires()


def test_one_of_two_workers_is_killed(two: Monitored) -> None:
    two.fleet.workers["w1"].process.kill()
    # For the 6 s of a lease nobody polls its targets: the rule's 2 minutes, which are 3 s here, are meant for that.
    two.fires("X2GoWorkerDown")
    two.fired("X2GoWorkerDown", perhaps=("X2GoTargetUnpolled",))


def test_no_worker_was_ever_scraped(monitored: Monitored) -> None:
    monitored.watch()
    monitored.fires("X2GoFleetNoWorker")


def test_a_worker_hangs_on_the_file_system_of_its_inventory(one: Monitored) -> None:
    link = one.inventory.with_name("link")
    with hung_file_system(one.inventory.with_name("hung")) as folder:
        link.symlink_to(folder / "fleet.toml")
        link.replace(one.inventory)
        one.fires("X2GoWorkerStuck")
        status, text = answer(one.fleet.workers["w1"], "/live")
        assert (status, text.partition(" has")[0]) == (503, "the watch loop")
        one.fired("X2GoWorkerStuck")


def test_a_worker_waits_for_a_server_that_hangs(monitored: Monitored) -> None:
    monitored.fleet.simulation.server("ts01").set_fault("hang")
    monitored.watch(monitored.start("w1", monitored.write_inventory(deadline=120)), is_ready=False)
    wait_until(lambda: "X2GoWorkerNotReady" in monitored.prometheus.firing(), "it fires", ALERT_SECONDS)
    monitored.fired("X2GoWorkerNotReady", perhaps=("X2GoSnapshotsStale",))


def test_a_worker_restarts_again_and_again(monitored: Monitored) -> None:
    port = free_port()
    workers = [monitored.start("w1"), monitored.start("w2", port=port)]
    # Of 15 minutes 3 are left, so that three restarts on a busy machine take less.
    monitored.watch(*workers, times_faster=5)
    started = f'x2gofleet_start_time_seconds{{instance="127.0.0.1:{port}"}}'

    def fires_after_a_restart() -> bool:
        last = monitored.prometheus.value(started)
        monitored.fleet.workers["w2"].stop()
        monitored.start("w2", port=port)
        wait_until(
            lambda: monitored.prometheus.value(started) not in (0, last), "the new one is scraped", ALERT_SECONDS
        )
        return "X2GoWorkerRestarting" in monitored.prometheus.firing()

    wait_until(fires_after_a_restart, "it fires", ALERT_SECONDS)
    monitored.fired("X2GoWorkerRestarting", perhaps=("X2GoWorkerDown", "X2GoTargetUnpolled"))


# Servers


def test_a_server_is_down(two: Monitored) -> None:
    server = two.fleet.simulation.server("ts02")
    server.set_fault("dead")
    two.fires("X2GoServerDown")
    server.clear_fault()
    two.fires()
    two.fired("X2GoServerDown")


def test_nobody_polls_a_target(two: Monitored) -> None:
    lease, client = two.fleet.keys.lease("ts01"), two.fleet.valkey.client
    # One command, so that the worker can't take it again in between.
    client.hset(lease, mapping={"owner": "thief", "nonce": "stolen"})
    client.persist(lease)
    two.fires("X2GoTargetUnpolled")
    two.before_is_silent()
    client.delete(lease)
    two.fires()
    two.fired("X2GoTargetUnpolled")


def test_a_server_answers_later_than_its_snapshots_live(monitored: Monitored) -> None:
    monitored.watch(monitored.start("w1", monitored.write_inventory(deadline=120, mounts=0)))
    server = monitored.fleet.simulation.server("ts01")
    server.set_fault("slow=20")
    monitored.fires("X2GoSnapshotsStale")
    server.clear_fault()
    monitored.fires()
    monitored.fired("X2GoSnapshotsStale")


def test_redis_does_not_let_a_worker_write_one_kind(two: Monitored) -> None:
    client = two.fleet.valkey.client
    kinds = [f"~*:{kind.value}" for kind in Kind if kind is not Kind.LOAD]
    rest = ("lease", "fence", "state", "events", "workers", "fleet", "fresh", "changes")
    client.execute_command(
        "ACL", "SETUSER", "default", "resetkeys", *kinds, *(f"~*:{name}" for name in rest), "~*worker:*"
    )
    two.fires("X2GoSnapshotsStale")
    client.execute_command("ACL", "SETUSER", "default", "allkeys")
    two.fires()
    two.fired("X2GoSnapshotsStale")


def test_one_kind_of_a_server_can_not_be_listed(two: Monitored) -> None:
    server = two.fleet.simulation.server("ts01")
    server.set_fault("mounts")
    two.fires("X2GoListingsFail")
    two.before_is_silent()
    server.clear_fault()
    two.fires()
    two.fired("X2GoListingsFail")


# Redis


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
def test_redis_is_away(two: Monitored, number: int) -> None:
    valkey = two.fleet.valkey
    if number == signal.SIGKILL:
        valkey.kill()
    else:
        valkey.signal(number)
    two.fires("X2GoFleetRedisUnavailable")
    if number == signal.SIGKILL:
        valkey.start()
    else:
        valkey.signal(signal.SIGCONT)
    two.fires()
    two.fired("X2GoFleetRedisUnavailable")


def test_redis_is_slow(monitored: Monitored) -> None:
    with Wire(monitored.fleet.valkey.socket) as wire:
        monitored.watch(monitored.start("w1", url=wire.url), slow_seconds=SLOW_SECONDS)
        is_over = threading.Event()

        def hold() -> None:
            while not is_over.wait(0.05):
                wire.set("held")
                is_over.wait(0.4)
                wire.set("")

        thread = threading.Thread(target=hold)
        thread.start()
        try:
            monitored.fires("X2GoFleetRedisSlow")
        finally:
            is_over.set()
            thread.join()
        monitored.fired("X2GoFleetRedisSlow")


def test_leases_are_lost_again_and_again(one: Monitored) -> None:
    fleet, lease = one.fleet, one.fleet.keys.lease("ts01")

    def lose() -> None:
        lost = fleet.valkey.client.hget(lease, "nonce")
        fleet.valkey.client.delete(lease)
        wait_until(lambda: fleet.valkey.client.hget(lease, "nonce") not in (None, lost), "it is taken again")
        one.evaluated(4)

    one.fires("X2GoFleetLeasesLost", meanwhile=lose)
    one.before_is_silent()
    one.fires()
    one.fired("X2GoFleetLeasesLost")


def test_a_restart_of_redis_is_no_sustained_loss_of_leases(one: Monitored) -> None:
    one.fleet.valkey.client.flushall()
    one.evaluated(SETTLED_EVALUATIONS)
    assert one.prometheus.value("sum(x2gofleet_lease_losses_total)") == SERVERS
    one.fired()


# Inventory


def test_the_inventory_is_refused_while_workers_run(two: Monitored) -> None:
    good = two.inventory.read_text()
    two.inventory.write_text(good.replace("port = ", "prot = ", 1))
    two.fires("X2GoFleetInventoryRefused")
    two.evaluated(BEFORE_SETTLED_EVALUATIONS)
    two.before_is_silent()
    polls = two.fleet.polls()
    wait_until(lambda: all(count > polls[name] for name, count in two.fleet.polls().items()), "all are polled on")
    for worker in two.fleet.workers.values():
        status, text = answer(worker, "/ready")
        assert status == 200
        assert text.startswith(
            f"ok\nwarning: the inventory file is refused, the previous inventory stays in force: {two.inventory}:"
        )
        assert "prot" in text
    late = two.start("w3")
    assert late.process.wait(60) == 2, "one that is started with that file does not run"
    assert "prot" in late.said
    two.inventory.write_text(good)
    two.fires()
    two.fired("X2GoFleetInventoryRefused")


def test_workers_have_different_inventories(monitored: Monitored) -> None:
    older, newer = (monitored.write_inventory(f"{name}.toml", load=load) for name, load in (("older", 1), ("newer", 2)))
    os.utime(older, (1_000_000_000, 1_000_000_000))
    workers = [monitored.start("w1", older), monitored.start("w2", newer)]
    wait_until(lambda: answer(workers[0], "/ready")[0] == 503, "the one with the older file knows it", ALERT_SECONDS)
    monitored.watch(*workers, is_ready=False)
    monitored.fires("X2GoFleetInventoriesDiffer")
    newer.replace(older)
    monitored.fires()
    monitored.fired("X2GoFleetInventoriesDiffer")


# What readers notice


def test_refreshes_fail(one: Monitored) -> None:
    one.fleet.simulation.server("ts01").set_fault("dead")

    def refresh() -> None:
        with contextlib.suppress(FleetError):
            one.fleet.cache.update("all", timeout=30)

    one.fires("X2GoFleetRefreshesFail", "X2GoServerDown", meanwhile=refresh)
    one.fired("X2GoFleetRefreshesFail", "X2GoServerDown")


def test_rows_are_rejected_again_and_again(one: Monitored) -> None:
    server = one.fleet.simulation.server("ts01")
    name = server.start_session("alice", ready=True)
    server.set_mounts(name, [("a|b", "/x")])
    one.fires("X2GoFleetRowsRejected")
    one.before_is_silent()
    server.set_mounts(name, [])
    one.fires()
    one.fired("X2GoFleetRowsRejected")
