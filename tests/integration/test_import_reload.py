"""Files that an inventory imports are followed as itself is: changes are taken over, bad ones are refused."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from x2gofleet_workers.inventory import InventoryFile, load_inventory

from tests.processes import LiveFleet, live_fleet
from tests.waiting import wait_until

SERVERS = 4
THREE = ("ts01", "ts02", "ts03")
TAKEN_OVER = re.compile(r"inventory \S+: (\d+) target\(s\), (\d+) new, (\d+) changed, (\d+) removed")


class ImportingFleet:
    """Simulated servers that workers know from an x2gobroker-sessionprofiles.conf alone."""

    def __init__(self, fleet: LiveFleet) -> None:
        self.live = fleet
        self.profiles = fleet.folder / "x2gobroker-sessionprofiles.conf"
        self.inventory = fleet.folder / "importing.toml"
        login = fleet.inventory_text(sessions=0.3, load=1).partition("[servers.")[0]
        self.write(THREE)
        self.inventory.write_text(f'[import]\nx2gobroker = "{self.profiles.name}"\n{login}')

    def text(self, servers: Collection[str], *, profile: str = "pool") -> str:
        found = {name: self.live.simulation.server(name) for name in servers}
        hosts = ", ".join(f"{name}.example.org ({server.address}:{server.port})" for name, server in found.items())
        return f"[DEFAULT]\nsshport=22\n[{profile}]\nname=a pool\nhost={hosts}\n"

    def write(self, servers: Collection[str], *, profile: str = "pool") -> None:
        new = self.profiles.with_suffix(".new")
        new.write_text(self.text(servers, profile=profile))
        new.replace(self.profiles)

    def listed(self) -> dict[str, bool | None]:
        return {status.id: status.up for status in self.live.cache.servers()}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[ImportingFleet]:
    with live_fleet(tmp_path, servers=SERVERS) as made:
        made.valkey.start()
        yield ImportingFleet(made)


def test_changes_of_an_imported_file_are_taken_over_without_a_restart(fleet: ImportingFleet) -> None:
    worker = fleet.live.start("w1", fleet.inventory)
    wait_until(lambda: fleet.listed() == dict.fromkeys(THREE, True), "the imported servers are polled")
    cache = fleet.live.cache
    assert cache.profiles() == ("pool",)
    name = fleet.live.simulation.server("ts02").start_session("zoe", ready=True)
    wait_until(lambda: name in (cache.list_sessions(profile_name="pool", username="zoe") or ()), "a session is seen")
    connections = {each: fleet.live.simulation.server(each).counters.connections for each in THREE}
    version = fleet.live.valkey.client.hget(fleet.live.keys.fleet(), "version")

    fleet.write(("ts01", "ts02", "ts03", "ts04"))
    took = wait_until(lambda: len(fleet.listed()) == SERVERS and all(fleet.listed().values()), "the new one is found")
    print(f"a server that was added to an imported file is found by readers {took:.2f} s later")
    assert TAKEN_OVER.findall(worker.said) == [("4", "1", "0", "0")]
    assert fleet.live.valkey.client.hget(fleet.live.keys.fleet(), "version") > version
    assert {each: fleet.live.simulation.server(each).counters.connections for each in THREE} == connections

    fleet.write(("ts01", "ts02"), profile="other")
    wait_until(lambda: set(fleet.listed()) == {"ts01", "ts02"} and cache.profiles() == ("other",), "two have gone")
    fleet.live.check_workers()


def test_a_bad_imported_file_is_refused_and_the_old_inventory_stays(fleet: ImportingFleet) -> None:
    worker = fleet.live.start("w1", fleet.inventory)
    wait_until(lambda: fleet.listed() == dict.fromkeys(THREE, True), "the imported servers are polled")
    version = fleet.live.valkey.client.hget(fleet.live.keys.fleet(), "version")
    good = fleet.profiles.read_text()
    fleet.profiles.write_text(good.replace("sshport=22", "sshport=ssh"))
    told = f"the changed inventory is refused, the one before stays in force: {fleet.profiles}:2: [pool] sshport: 'ssh'"
    wait_until(lambda: told in worker.said, "it says which line")
    polls = fleet.live.polls()
    wait_until(lambda: all(fleet.live.polls()[name] > polls[name] + 2 for name in THREE), "all are polled on")
    assert fleet.live.valkey.client.hget(fleet.live.keys.fleet(), "version") == version
    worker.process.send_signal(signal.SIGHUP)
    wait_until(lambda: worker.said.count(told) == 2, "whoever asks is told again")
    fleet.profiles.unlink()
    wait_until(lambda: f"{fleet.profiles}: there is no such file" in worker.said, "a missing one too")
    fleet.write(("ts01", "ts04"))
    wait_until(lambda: fleet.listed() == {"ts01": True, "ts04": True}, "a good one is taken over")
    fleet.live.check_workers()


def test_sighup_reads_an_imported_file_that_does_not_look_changed(fleet: ImportingFleet) -> None:
    worker = fleet.live.start("w1", fleet.inventory)
    wait_until(lambda: fleet.listed() == dict.fromkeys(THREE, True), "the imported servers are polled")
    was = fleet.profiles.stat()
    text = fleet.profiles.read_text().replace("[pool]", "[loop]")
    with fleet.profiles.open("r+") as file:
        file.write(text)
    os.utime(fleet.profiles, ns=(was.st_atime_ns, was.st_mtime_ns))
    worker.process.send_signal(signal.SIGHUP)
    wait_until(lambda: fleet.live.cache.profiles() == ("loop",), "the other name is published")


def test_the_file_at_fault_is_followed_though_the_inventory_in_force_does_not_import_it(
    fleet: ImportingFleet,
) -> None:
    file = InventoryFile(load_inventory(fleet.inventory))
    other = fleet.live.folder / "sessions"
    fleet.inventory.write_text(
        fleet.inventory.read_text().replace("\n[defaults]", '\nx2goclient = "sessions"\n[defaults]')
    )
    assert file.changed() is None
    assert file.changed() is None
    assert f"{other}: there is no such file" in file.error
    server = fleet.live.simulation.server("ts04")
    other.write_text(f"[1]\nname=mine\nhost={server.address}\nsshport={server.port}\n")
    assert file.changed() is None, "it may not be whole yet"
    taken = file.changed()
    assert taken is not None
    assert set(taken.profiles) == {"pool", "mine"}
    assert set(taken.imported) == {str(fleet.profiles), str(other)}
    assert file.changed() is None
    other.write_text(other.read_text().replace("mine", "its"))
    assert file.changed() is None
    taken = file.changed()
    assert taken is not None
    assert set(taken.profiles) == {"pool", "its"}


def test_the_version_is_of_the_newest_file(fleet: ImportingFleet) -> None:
    os.utime(fleet.inventory, ns=(0, 1_700_000_000_000_000_000))
    os.utime(fleet.profiles, ns=(0, 1_800_000_000_000_000_000))
    assert InventoryFile(load_inventory(fleet.inventory)).published.version.startswith("1800000000000-")
    os.utime(fleet.profiles, ns=(0, 1_600_000_000_000_000_000))
    assert InventoryFile(load_inventory(fleet.inventory)).published.version.startswith("1700000000000-")


def test_check_shows_imported_targets(fleet: ImportingFleet) -> None:
    check = [sys.executable, "-m", "x2gofleet_workers", "check", "--inventory", str(fleet.inventory)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for name in THREE:
        server = fleet.live.simulation.server(name)
        assert re.search(rf"^ok +{name} +root@{server.address}:{server.port} ", done.stdout, re.MULTILINE)
    fleet.profiles.write_text("[pool]\nhost=ts01(127.0.0.1)\n")
    done = subprocess.run(check, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert f"{fleet.profiles}:2: [pool] host: 'ts01(127.0.0.1)'" in done.stderr


def test_one_odd_profile_is_left_out_and_all_others_are_served(fleet: ImportingFleet) -> None:
    worker = fleet.live.start("w1", fleet.inventory)
    wait_until(lambda: fleet.listed() == dict.fromkeys(THREE, True), "the imported servers are polled")
    cache = fleet.live.cache
    good = fleet.profiles.read_text()
    odd = "[behind a gate]\nhost=ts01.example.org (10.0.0.1)\nusesshproxy=true\n[empty]\nhost=\n"
    fleet.profiles.with_suffix(".new").write_text(good + odd)
    fleet.profiles.with_suffix(".new").replace(fleet.profiles)
    line = good.count("\n") + 3
    told = f"{fleet.profiles}:{line}: [behind a gate] usesshproxy: the host is meant as seen from the SSH proxy"
    wait_until(lambda: told in worker.said, "the log says which, and why")
    assert "The profile 'behind a gate' is left out" in worker.said
    key = fleet.live.keys.fleet()
    wait_until(lambda: b"left_out" in fleet.live.valkey.client.hget(key, "document"), "readers are told")
    assert cache.profiles() == ("pool",)
    wait_until(lambda: cache.is_cached(profile_name="pool"), "the others are served")
    for name in ("behind a gate", "empty"):
        assert not cache.is_cached(profile_name=name)
        assert cache.list_sessions(profile_name=name, username="alice") is None
    check = [sys.executable, "-m", "x2gofleet_workers", "check", "--inventory", str(fleet.inventory)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("warning  ") == 2
    assert f"warning  {told}" in done.stdout
    strict = fleet.inventory.with_name("strict.toml")
    strict.write_text(fleet.inventory.read_text().replace("[import]\n", "[import]\nstrict = true\n"))
    done = subprocess.run([*check[:-1], str(strict)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    fleet.write(THREE)
    wait_until(lambda: b"left_out" not in fleet.live.valkey.client.hget(key, "document"), "the remedy was applied")
    fleet.live.check_workers()
