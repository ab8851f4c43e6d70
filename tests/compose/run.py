#!/usr/bin/env python3
"""`make compose-test`: brings docker-compose.yml up for real, scales, kills and stops workers, and reads all the while.

Needs Python's standard library and an engine: `docker compose`, or podman with podman-compose. Environment:

  X2GOFLEET_COMPOSE       the one to use: "docker compose" or "podman-compose"
  X2GOFLEET_BASE_IMAGE    the Debian image to build on
  X2GOFLEET_REDIS_IMAGE   the Redis or Valkey image; unset, and the default can't be pulled: Debian's Redis is built
  X2GOFLEET_BUILD_ARGS    more options for every build, e.g. "--no-cache" or "--network=host"
  PIP_CERT, PIP_CONFIG_FILE, PIP_INDEX_URL ...   are lent to the worker's build, as are /etc/pip.conf and the user's own

Exit status: 0 passed, 1 failed, 2 no engine here.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
BASE_IMAGE = os.environ.get("X2GOFLEET_BASE_IMAGE") or "docker.io/library/debian:bookworm-slim"
DEFAULT_REDIS_IMAGE = "docker.io/valkey/valkey:8-alpine"
LOCAL_REDIS_IMAGE = "x2gofleet-redis"
WORKER_IMAGE, SERVER_IMAGE = "x2gofleet-worker", "x2gofleet-x2goserver"
SERVERS = ("ts01", "ts02", "ts03")
SESSIONS = 9
LEASE_AND_TICK_SECONDS = 7.0
# What a busy machine may add: the successor's SSH connection and its first full listing.
SLACK_SECONDS = 5.0
TTL_SECONDS = 15.0
LENT_VARIABLES = ("INDEX_URL", "EXTRA_INDEX_URL", "TRUSTED_HOST", "PROXY", "DEFAULT_TIMEOUT", "RETRIES")

NO_ENGINE = """\
compose-test: no container engine answers here. Either of these will do:
  Docker Engine with its compose plugin      https://docs.docker.com/engine/install/  (`docker compose version`)
  podman and podman-compose                  on Debian: apt-get install podman podman-compose netavark aardvark-dns"""


class StepError(Exception):
    """A step did not come to what it must."""


@dataclass
class Clock:
    """Prints each step with the time since the start and its own."""

    started: float = field(default_factory=time.monotonic)
    _last: float = field(default_factory=time.monotonic)

    def step(self, text: str) -> None:
        now = time.monotonic()
        print(f"[{now - self.started:6.1f} s] {text}  ({now - self._last:.1f} s)", flush=True)
        self._last = now

    @staticmethod
    def note(text: str) -> None:
        print(f"           {text}", flush=True)


@dataclass(frozen=True)
class Engine:
    """A container engine's command and its compose command; everything they say goes to `log`."""

    name: str
    compose_command: tuple[str, ...]
    scales: bool
    log: Path
    project: str
    environment: dict[str, str]

    @property
    def is_podman(self) -> bool:
        return self.name == "podman"

    def run(
        self, argv: Sequence[str], *, check: bool = True, timeout: float = 900.0
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            argv,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        with self.log.open("a") as log:
            log.write(f"$ {shlex.join(argv)}\n{done.stdout}{done.stderr}-> {done.returncode}\n")
        if check and done.returncode != 0:
            raise StepError(f"{shlex.join(argv)}: exit status {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
        return done

    def __call__(self, *args: str, check: bool = True, timeout: float = 900.0) -> str:
        """Run the engine's command; return what it prints, stripped."""
        return self.run([self.name, *args], check=check, timeout=timeout).stdout.strip()

    def succeeds(self, *args: str, timeout: float = 60.0) -> bool:
        try:
            return self.run([self.name, *args], check=False, timeout=timeout).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def compose(self, *args: str, check: bool = True) -> None:
        self.run([*self.compose_command, "-p", self.project, *args], check=check)

    def containers(self, service: str, *, running: bool = False) -> list[str]:
        """Return the names of a service's containers, in order."""
        states = ["--filter", "status=running"] if running else ["-a"]
        labels = [f"label=com.docker.compose.project={self.project}", f"label=com.docker.compose.service={service}"]
        filters = [word for label in labels for word in ("--filter", label)]
        return sorted(self("ps", *states, *filters, "--format", "{{.Names}}").split())

    def inspect(self, container: str, what: str) -> str:
        return self("inspect", "--format", what, container)

    def is_healthy(self, container: str) -> bool:
        if self.is_podman:
            # Without systemd, podman runs no health check by itself.
            return self.succeeds("healthcheck", "run", container)
        return self.inspect(container, "{{.State.Health.Status}}") == "healthy"


def find_engine(log: Path) -> Engine | None:
    """Return the engine to use: Docker where its daemon answers, else podman."""
    chosen = os.environ.get("X2GOFLEET_COMPOSE", "").split()

    def answers(*argv: str) -> str:
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout if done.returncode == 0 else ""

    project = f"x2gofleet-test-{os.getpid()}"
    environment = dict(os.environ, DOCKER_BUILDKIT="1", BUILDAH_FORMAT="docker", X2GOFLEET_BASE_IMAGE=BASE_IMAGE)
    environment["X2GO_CHANGE_SECONDS"] = "5"
    environment.pop("X2GOFLEET_WORKERS", None)
    if chosen in ([], ["docker", "compose"]) and answers("docker", "compose", "version") and answers("docker", "info"):
        return Engine("docker", ("docker", "compose"), True, log, project, environment)
    if chosen in ([], ["podman-compose"]) and answers("podman", "info"):
        version = re.search(
            r"podman-compose\w* version[: ]+(\d+)\.(\d+)\.(\d+)", answers("podman-compose", "--version")
        )
        if version:
            # 1.0.3, Debian's, takes --scale and ignores it.
            scales = tuple(map(int, version.groups())) >= (1, 0, 6)
            return Engine("podman", ("podman-compose",), scales, log, project, environment)
    return None


def wait_until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise StepError(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)


class Sampler:
    """sample.py in the client's container: what a broker reads, all the while."""

    def __init__(self, engine: Engine, client: str) -> None:
        script = (ROOT / "tests/compose/sample.py").read_text()
        arguments = ["mate", str(SESSIONS), str(len(SERVERS))]
        self._process = subprocess.Popen(
            [engine.name, "exec", "-i", client, "python", "-c", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=engine.environment,
        )
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.seen: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def wait(
        self, condition: Callable[[dict[str, Any]], bool], what: str, seconds: float, *, fresh: bool = False
    ) -> dict[str, Any]:
        """Return the first line for which `condition` holds; unless `fresh`, the last one read counts too."""
        deadline = time.monotonic() + seconds
        if not fresh and self.seen and condition(self.seen[-1]):
            return self.seen[-1]
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                last = self.seen[-1] if self.seen else "nothing"
                raise StepError(f"not within {seconds:g} s: {what}; the client last read {last}") from None
            if line is None:
                raise StepError(f"the sampler ended: {self._errors()}")
            self.seen.append(line)
            if condition(line):
                return line

    def rows(self) -> set[tuple[str, ...]]:
        """Return (server, name, user, status) of every session that the client reads now."""
        assert self._process.stdin is not None
        self._process.stdin.write("rows\n")
        self._process.stdin.flush()
        return {
            tuple(row) for row in self.wait(lambda line: "rows" in line, "the sampler's rows", 20, fresh=True)["rows"]
        }

    def finish(self) -> dict[str, float]:
        """End the sampler; return its summary."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        found = self.wait(lambda line: "summary" in line, "the sampler's summary", 20)
        self._process.wait(timeout=20)
        summary: dict[str, float] = found["summary"]
        return summary

    def _errors(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read()[-2000:]

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def megabytes(engine: Engine, image: str) -> str:
    return f"{int(engine('image', 'inspect', '--format', '{{.Size}}', image)) / 1e6:.0f} MB"


def lent_to_pip(directory: Path) -> list[str]:
    """Return build options that lend the build this user's way to packages, as secrets that stay in no layer."""
    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "pip/pip.conf"
    certificates = (os.environ.get(name) for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"))
    files = {
        "pip-config": os.environ.get("PIP_CONFIG_FILE") or "/etc/pip.conf",
        "pip-user-config": str(own),
        "pip-cert": next(filter(None, certificates), ""),
    }
    variables = {f"PIP_{name}": os.environ[f"PIP_{name}"] for name in LENT_VARIABLES if f"PIP_{name}" in os.environ}
    if variables:
        environment = directory / "pip-environment"
        environment.touch(mode=0o600)
        environment.write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items()))
        files["pip-environment"] = str(environment)
    found = {name: file for name, file in files.items() if file and Path(file).is_file() and os.path.getsize(file)}
    return [word for name, file in found.items() for word in ("--secret", f"id={name},src={file}")]


def build(engine: Engine, clock: Clock, scratch: Path) -> None:
    options = ["--build-arg", f"BASE_IMAGE={BASE_IMAGE}", *shlex.split(os.environ.get("X2GOFLEET_BUILD_ARGS", ""))]
    servers = "tests/compose/x2goserver"
    engine("build", *options, *lent_to_pip(scratch), "-t", WORKER_IMAGE, "-f", "workers/Dockerfile", ".")
    clock.step(f"built {WORKER_IMAGE}: {megabytes(engine, WORKER_IMAGE)}")
    engine("build", *options, "-t", SERVER_IMAGE, "-f", f"{servers}/Dockerfile", servers)
    clock.step(f"built {SERVER_IMAGE}: {megabytes(engine, SERVER_IMAGE)}")
    redis_image = os.environ.get("X2GOFLEET_REDIS_IMAGE")
    if not redis_image:
        redis_image = DEFAULT_REDIS_IMAGE
        if not engine.succeeds("image", "inspect", redis_image) and not engine.succeeds("pull", "-q", redis_image):
            redis_image = LOCAL_REDIS_IMAGE
            clock.note(f"{DEFAULT_REDIS_IMAGE} can't be pulled here: using Debian's Redis instead")
    if redis_image == LOCAL_REDIS_IMAGE:
        engine(
            "build", *options, "-t", LOCAL_REDIS_IMAGE, "-f", "tests/compose/redis/Dockerfile", "tests/compose/redis"
        )
    engine.environment["X2GOFLEET_REDIS_IMAGE"] = redis_image
    if engine.succeeds("image", "inspect", redis_image):
        clock.step(f"Redis image {redis_image}: {megabytes(engine, redis_image)}")
    if engine.succeeds("image", "inspect", BASE_IMAGE):
        clock.note(f"each stands on {BASE_IMAGE}: {megabytes(engine, BASE_IMAGE)}")


def check_images(engine: Engine, clock: Clock) -> None:
    """No key and no pip configuration in an image; the worker is not root."""
    find = "find / -xdev ( -name ssh_host_*_key -o -name id_ed25519* -o -name authorized_keys -o -name pip.conf )"
    for image in (WORKER_IMAGE, SERVER_IMAGE):
        argv = ["run", "--rm", "--network", "none", "--user", "0", "--entrypoint", "find", image, *find.split()[1:]]
        if found := engine(*argv):
            raise StepError(f"{image} holds {found}")
    user = engine("image", "inspect", "--format", "{{.Config.User}}", WORKER_IMAGE)
    if user.split(":")[0] in ("", "0", "root"):
        raise StepError(f"the worker's image runs as {user!r}")
    clock.step(f"no key and no pip configuration in the images; the worker runs as {user}")


def keep_bridge_addresses(engine: Engine) -> None:
    """Give the networks' bridges, for good, the MAC addresses that they have.

    With netavark 1.4 (Debian 12) a bridge takes another one when a container comes or goes, and podman's name server
    on it can't be reached from the others until their ARP entries expire: for up to half a minute.
    """
    if not engine.is_podman or os.geteuid() != 0 or shutil.which("ip") is None:
        return
    for network in left_over(engine, "network"):
        interface = json.loads(engine("network", "inspect", network))[0].get("network_interface", "")
        address = Path("/sys/class/net") / interface / "address"
        if interface and address.is_file():
            engine.run(["ip", "link", "set", "dev", interface, "address", address.read_text().strip()], check=False)


def up(engine: Engine, *, workers: int, services: Sequence[str] = ()) -> None:
    options = ["up", "--detach", "--no-build"]
    if engine.scales:
        options += ["--scale", f"worker={workers}"]
    else:
        engine.environment["X2GOFLEET_WORKERS"] = str(workers)
    if services and not engine.is_podman:
        options += ["--no-recreate"]
    engine.compose(*options, *services)


def started_at(engine: Engine, container: str) -> float:
    text = engine.inspect(container, "{{.State.StartedAt}}")
    found = re.match(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d\.?\d{0,6})\d*(?: )?(Z|[+-]\d\d:?\d\d)", text)
    if found is None:
        raise StepError(f"no time of start in {text!r}")
    zone = "+00:00" if found[3] == "Z" else found[3]
    return datetime.fromisoformat(f"{found[1]}T{found[2]}{zone}").timestamp()


def owners_now(engine: Engine, client: str) -> dict[str, str | None]:
    """Ask `x2gofleet status --json` in the client's container who polls which server; empty where it gets no answer."""
    done = engine.run([engine.name, "exec", client, "x2gofleet", "status", "--json"], check=False)
    if done.returncode != 0:
        # A name server may be slow while containers come and go; a reader waits 0.25 s for it.
        return {}
    return {server["id"]: server["worker"] for server in json.loads(done.stdout)["servers"]}


def container_of(engine: Engine, worker: str) -> str:
    """Return the container of a worker, whose id begins with its container's host name."""
    for container in engine.containers("worker", running=True):
        if worker.startswith(engine.inspect(container, "{{.Config.Hostname}}")):
            return container
    raise StepError(f"no running container has the worker {worker}")


def polled_without(worker: str) -> Callable[[dict[str, Any]], bool]:
    """A condition: what is read of every server was polled by another worker than `worker`."""
    return lambda seen: len(seen.get("polled_by", {})) == len(SERVERS) and worker not in seen["polled_by"].values()


def shared_by(number: int, *, without: str = "") -> Callable[[dict[str, Any]], bool]:
    """A condition: every server has an owner, `number` workers own, `without` is none of them."""

    def holds(seen: dict[str, Any]) -> bool:
        owners = set(seen.get("owners", {}).values())
        return (
            len(seen.get("owners", {})) == len(SERVERS)
            and None not in owners
            and "" not in owners
            and (len(owners) == number and without not in owners)
        )

    return holds


def sessions_of(engine: Engine, server: str) -> set[tuple[str, ...]]:
    """Return (server, name, user, status) of what X2Go itself lists on a server."""
    rows = engine("exec", engine.containers(server)[0], "x2golistsessions_root").splitlines()
    return {(server, row[1], row[11], row[4]) for row in (line.split("|") for line in rows) if row[4] != "F"}


def play(engine: Engine, clock: Clock, cleanup: contextlib.ExitStack) -> None:
    began = time.time()
    up(engine, workers=1)
    keep_bridge_addresses(engine)
    clock.step("up: redis, setup, worker, ts01, ts02, ts03, client")
    client = engine.containers("client")[0]
    sampler = Sampler(engine, client)
    cleanup.callback(sampler.kill)
    complete = sampler.wait(lambda seen: bool(seen.get("complete")), f"{SESSIONS} sessions of {SERVERS}", 120)
    clock.step(f"the client reads {complete['sessions']} sessions of {complete['servers']} servers")
    starts = {
        service: started_at(engine, engine.containers(service)[0])
        for service in ("redis", *SERVERS, "worker", "client")
    }
    clock.note("started after: " + ", ".join(f"{name} {at - began:.1f} s" for name, at in starts.items()))
    clock.note(
        f"all sessions read {complete['at'] - max(starts[name] for name in (*SERVERS, 'worker')):.1f} s after "
        "the last of servers and worker had started"
    )
    first_worker = engine.containers("worker")[0]
    for container in (first_worker, *(engine.containers(server)[0] for server in SERVERS)):
        wait_until(lambda: engine.is_healthy(container), f"{container} healthy", 60)  # noqa: B023
    clock.step("health checks: worker and servers healthy")

    addresses = engine.inspect(
        engine.containers("redis")[0], "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
    )
    for redis in ("redis", *addresses.split()):
        if engine.succeeds(
            "exec", engine.containers("ts01")[0], "timeout", "2", "bash", "-c", f"</dev/tcp/{redis}/6379"
        ):
            raise StepError(f"an X2Go server can reach Redis at {redis}")
    clock.step(f"the X2Go servers can't reach Redis, by its name or at {addresses}")

    before_scaling = time.time()
    up(engine, workers=3, services=["worker"])
    clock.step("scaled to 3 workers")
    shared = sampler.wait(shared_by(3), "three workers that own one server each", 60)
    owners: dict[str, str | None] = {}

    def told() -> bool:
        owners.update(owners_now(engine, client))
        return shared_by(3)({"owners": owners})

    wait_until(told, "x2gofleet status --json tells of three owners", 20)
    workers = engine.containers("worker", running=True)
    since = shared["at"] - max(started_at(engine, worker) for worker in workers)
    clock.step(f"owned by three workers: {', '.join(f'{s} by {w}' for s, w in sorted(owners.items()))}")
    clock.note(f"{shared['at'] - before_scaling:.1f} s after the command, {since:.1f} s after the last worker's start")

    victim = str(owners["ts01"])
    container = container_of(engine, victim)
    killed_at = time.time()
    engine("kill", "--signal", "KILL", container)
    moved = sampler.wait(shared_by(2, without=victim), f"ts01 owned by another worker than {victim}", 60)
    took = moved["at"] - killed_at
    wait_until(lambda: container not in engine.containers("worker", running=True), f"{container} dead", 10)
    clock.step(f"killed {victim} (SIGKILL): ts01 moved to {moved['owners']['ts01']} after {took:.1f} s")
    anew = sampler.wait(polled_without(victim), f"sessions of ts01 that another worker than {victim} polled", 30)
    clock.step(f"sessions of ts01 polled by its new owner {anew['at'] - killed_at:.1f} s after the kill")
    if took > LEASE_AND_TICK_SECONDS + SLACK_SECONDS:
        raise StepError(f"the take-over took {took:.1f} s")

    leaver = str(moved["owners"]["ts02"])
    container = container_of(engine, leaver)
    stopped_at = time.time()
    engine("stop", container)
    stop_took = time.time() - stopped_at
    left = sampler.wait(shared_by(1, without=leaver), f"everything owned by another worker than {leaver}", 30)
    anew = sampler.wait(polled_without(leaver), f"sessions that another worker than {leaver} polled", 30)
    status = engine.inspect(container, "{{.State.ExitCode}}")
    clock.step(
        f"stopped {leaver} (SIGTERM): exit status {status} in {stop_took:.1f} s, its servers moved after "
        f"{left['at'] - stopped_at:.1f} s, polled anew after {anew['at'] - stopped_at:.1f} s"
    )
    if status != "0" or stop_took > 5.0 + SLACK_SECONDS:
        raise StepError(f"{leaver} did not stop cleanly: exit status {status} after {stop_took:.1f} s")

    def same() -> bool:
        return sampler.rows() == {row for server in SERVERS for row in sessions_of(engine, server)}

    wait_until(same, "the client reads what X2Go itself lists on each server", 60)
    found = sampler.rows()
    states = {status: sum(row[3] == status for row in found) for status in "RS"}
    clock.step(
        f"the client reads what X2Go lists: {len(found)} sessions, {states['R']} running, {states['S']} suspended"
    )

    summary = sampler.finish()
    changes = engine("logs", client).count("R -> S") + engine("logs", client).count("S -> R")
    clock.step(f"read without a gap: {summary['samples']} readings, {summary['gaps']} incomplete")
    clock.note(
        f"the oldest answer was {summary['oldest']} s old, {summary['oldest_at'] - killed_at:.1f} s after the kill "
        f"(TTL {TTL_SECONDS:g} s); the longest time between two readings {summary['longest_pause']} s"
    )
    clock.note(f"suspended or resumed meanwhile, as the client saw it: {changes}")
    if summary["gaps"] or summary["oldest"] >= TTL_SECONDS or summary["samples"] < 50:
        raise StepError(f"reading went on with gaps: {summary}; seen: {sampler.seen}")


def left_over(engine: Engine, kind: str) -> list[str]:
    label = ["--filter", f"label=com.docker.compose.project={engine.project}"]
    if kind == "container":
        return engine("ps", "-a", *label, "--format", "{{.Names}}", check=False).split()
    return engine(kind, "ls", *label, "--format", "{{.Name}}", check=False).split()


def down(engine: Engine, clock: Clock) -> None:
    """Take everything down, whatever state it is in, and see that nothing is left."""
    engine.compose("down", "--volumes", check=False)
    # podman-compose 1.0.3 leaves networks.
    for container in left_over(engine, "container"):
        engine("rm", "--force", container, check=False)
    for kind in ("volume", "network"):
        for name in left_over(engine, kind):
            engine(kind, "rm", name, check=False)
    rest = [name for kind in ("container", "volume", "network") for name in left_over(engine, kind)]
    if rest:
        raise StepError(f"left over: {', '.join(rest)}")
    clock.step("down: no container, volume or network is left")


def show_logs(engine: Engine) -> None:
    for container in left_over(engine, "container"):
        done = engine.run([engine.name, "logs", "--tail", "25", container], check=False)
        print(f"--- {container}\n{done.stdout}{done.stderr}", file=sys.stderr)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    def end(number: int, _: object) -> NoReturn:
        raise StepError(f"ended by {signal.Signals(number).name}")

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> int:
    clock = Clock()
    scratch = Path(tempfile.mkdtemp(prefix="x2gofleet-compose-"))
    status = 1
    try:
        engine = find_engine(scratch / "log")
        if engine is None:
            print(NO_ENGINE, file=sys.stderr)
            status = 2
            return status
        clock.step(f"{engine('--version')}, {' '.join(engine.compose_command)}, project {engine.project}")
        with ended_by_signals(), contextlib.ExitStack() as cleanup:
            build(engine, clock, scratch)
            check_images(engine, clock)
            cleanup.callback(down, engine, clock)
            try:
                play(engine, clock, cleanup)
            except BaseException:
                show_logs(engine)
                raise
        print(f"compose-test passed in {time.monotonic() - clock.started:.0f} s")
        status = 0
    except (StepError, subprocess.TimeoutExpired) as exc:
        print(f"compose-test failed: {exc}", file=sys.stderr)
    finally:
        if status == 1:
            (scratch / "pip-environment").unlink(missing_ok=True)
            print(f"what the engine said is in {scratch / 'log'}", file=sys.stderr)
        else:
            shutil.rmtree(scratch)
    return status


if __name__ == "__main__":
    sys.exit(main())
