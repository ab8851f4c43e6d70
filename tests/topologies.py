"""Real Sentinel groups and real clusters on loopback, whose processes a test may kill, stop and start again."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot
from x2gofleet_workers.embedded import _binary, die_with_parent

from tests.waiting import HANG_SECONDS, wait_until
from x2gofleet.connection import client_from_url

HOST = "127.0.0.1"
SERVICE = "fleet"
DOWN_AFTER_MS = 1000
FAILOVER_TIMEOUT_MS = 3000
NODE_TIMEOUT_MS = 2000
SLOTS = 16384
_BUS_OFFSET = 10_000
# Below what the kernel hands out by itself (net.ipv4.ip_local_port_range), as is the bus.
_PORTS = range(10_240, 22_000)

_ports = random.SystemRandom()


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind((HOST, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """Return a port of loopback that is free now, and so is the cluster bus port that belongs to it."""
    while True:
        port = _ports.choice(_PORTS)
        if _is_free(port) and _is_free(port + _BUS_OFFSET):
            return port


class ServerProcess:
    """One server or sentinel on a TCP port of loopback, with a folder of its own; keeps its port when started again."""

    def __init__(self, binary: Path, *, sentinel: bool = False, lines: Sequence[str] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="x2gofleet-test-"))
        self.port = 0
        self._binary, self._sentinel, self._lines = binary, sentinel, tuple(lines)
        self._process: subprocess.Popen[bytes] | None = None
        self._client: redis.Redis | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return HOST, self.port

    @property
    def client(self) -> redis.Redis:
        """A patient client of this server alone."""
        if self._client is None:
            url = f"redis://{HOST}:{self.port}"
            self._client = client_from_url(url, connect_timeout_seconds=10, command_timeout_seconds=10)
        return self._client

    def start(self) -> None:
        """Start the server and wait until it answers; on another port where the first one proves to be taken."""
        for _ in range(10):
            if not (self.folder / "conf").exists():
                self.port = free_port()
                self._configure()
            arguments = [str(self._binary), str(self.folder / "conf"), *(["--sentinel"] if self._sentinel else [])]
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
            wait_until(lambda: self.answers() or not self.alive, "the server answers or has ended")
            if self.alive:
                return
            said = (self.folder / "log").read_text()
            assert "already in use" in said or "bind" in said, said
            (self.folder / "conf").unlink()
            self._client = None
        raise AssertionError("ten ports were taken by others")

    def _configure(self) -> None:
        own = [f"port {self.port}", f"bind {HOST}", f"dir {self.folder}", f"logfile {self.folder / 'log'}"]
        if not self._sentinel:
            own += ['save ""', "appendonly no", "repl-diskless-sync-delay 0", "repl-ping-replica-period 1"]
        (self.folder / "conf").write_text("\n".join([*own, *self._lines]) + "\n")

    @property
    def alive(self) -> bool:
        """Whether the process that was started runs."""
        return self._process is not None and self._process.poll() is None

    def answers(self) -> bool:
        """Whether a PING is answered by this very process."""
        with contextlib.suppress(redis.exceptions.RedisError, OSError):
            told = self.client.execute_command("INFO", "server")
            return self._process is not None and told["process_id"] == self._process.pid
        return False

    def role(self) -> str:
        """What it says it is: master, slave or sentinel; "" where it does not answer."""
        with contextlib.suppress(redis.exceptions.RedisError, OSError):
            return str(self.client.execute_command("ROLE")[0].decode())
        return ""

    def state(self) -> str:
        """What a sentinel thinks of the master: its flags, such as ``s_down,master``."""
        return _pairs(self.client.execute_command("SENTINEL", "MASTER", SERVICE, NEVER_DECODE=True))["flags"]

    def kill(self) -> None:
        """End the server as a crash would; also one that is stopped."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(HANG_SECONDS)

    def pause(self) -> None:
        """Stop the process: connections stay, and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a stopped process go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the server and remove its folder."""
        self.kill()
        if self._client is not None:
            self._client.close()
        shutil.rmtree(self.folder)


def _start_all(stack: ExitStack, servers: Sequence[ServerProcess]) -> None:
    for server in servers:
        stack.callback(server.close)
        server.start()


@dataclass
class SentinelGroup:
    """Two servers, one of which is the master, and three sentinels that watch them."""

    servers: list[ServerProcess]
    sentinels: list[ServerProcess] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The URL that readers and workers are given."""
        return f"redis+sentinel://{','.join(f'{HOST}:{sentinel.port}' for sentinel in self.sentinels)}/{SERVICE}/0"

    @property
    def master(self) -> ServerProcess:
        """The server that the sentinels call the master."""
        ports = self.agreed()
        assert len(ports) == 1, f"the sentinels name masters on ports {ports}"
        return next(server for server in self.servers if server.port in ports)

    def agreed(self) -> set[int]:
        """Return the ports of the masters that the sentinels name."""
        found = set()
        for sentinel in self.sentinels:
            if sentinel.alive:
                reply: Any = sentinel.client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
                found.add(int(reply[1]))
        return found

    def is_ready(self) -> bool:
        """Whether a failover would succeed now: every sentinel knows the others and a replica that is in step."""
        for sentinel in self.sentinels:
            told = _pairs(sentinel.client.execute_command("SENTINEL", "MASTER", SERVICE, NEVER_DECODE=True))
            others = len(self.sentinels) - 1
            if told["flags"] != "master" or int(told["num-slaves"]) < 1 or int(told["num-other-sentinels"]) < others:
                return False
            for row in sentinel.client.execute_command("SENTINEL", "REPLICAS", SERVICE, NEVER_DECODE=True):
                replica = _pairs(row)
                if replica["flags"] != "slave" or replica["master-link-status"] != "ok":
                    return False
        return True

    def wait_until_ready(self) -> None:
        """Wait until a failover would succeed."""
        wait_until(self.is_ready, "the sentinels know each other and the replica")

    def fail_over(self) -> None:
        """Have the sentinels promote the replica, with nothing broken."""
        self.sentinels[0].client.execute_command("SENTINEL", "FAILOVER", SERVICE)


def _pairs(reply: Any) -> dict[str, str]:
    if isinstance(reply, dict):
        return {_text(name): _text(value) for name, value in reply.items()}
    items = iter(reply)
    return {_text(name): _text(value) for name, value in zip(items, items, strict=True)}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@contextmanager
def sentinel_group(*, binary: Path | None = None, lines: Sequence[str] = ()) -> Iterator[SentinelGroup]:
    """Run two servers (``lines`` are more of their configuration) and three sentinels, ready to fail over."""
    binary = binary or _binary()
    with ExitStack() as stack:
        servers = [ServerProcess(binary, lines=lines) for _ in range(2)]
        _start_all(stack, servers)
        master, replica = servers
        replica.client.execute_command("REPLICAOF", HOST, master.port)
        watch = (
            f"sentinel monitor {SERVICE} {HOST} {master.port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}",
        )
        sentinels = [ServerProcess(binary, sentinel=True, lines=watch) for _ in range(3)]
        _start_all(stack, sentinels)
        group = SentinelGroup(servers, sentinels)
        group.wait_until_ready()
        yield group


@dataclass
class Cluster:
    """Primaries, each with one replica."""

    nodes: list[ServerProcess]
    primaries: int

    @property
    def url(self) -> str:
        """The URL that readers and workers are given: it names the nodes that were primaries at first."""
        seeds = self.nodes[: self.primaries]
        return f"redis+cluster://{','.join(f'{HOST}:{node.port}' for node in seeds)}"

    def node(self, port: int) -> ServerProcess:
        """Return the node that listens there."""
        return next(node for node in self.nodes if node.port == port)

    def owners(self) -> dict[int, list[tuple[int, int]]]:
        """Return each primary's ranges of slots by its port, as a living node tells."""
        found: dict[int, list[tuple[int, int]]] = {}
        asked = next(node for node in self.nodes if node.alive)
        for first, last, primary, *_ in asked.client.execute_command("CLUSTER", "SLOTS", NEVER_DECODE=True):
            found.setdefault(int(primary[1]), []).append((first, last))
        return found

    def primary_of(self, key: str) -> ServerProcess:
        """Return the node that serves a key."""
        slot = key_slot(key.encode())
        for port, ranges in self.owners().items():
            if any(first <= slot <= last for first, last in ranges):
                return self.node(port)
        raise AssertionError(f"nobody serves slot {slot}")

    def is_whole(self) -> bool:
        """Whether every living node sees all slots served and every living replica in step with its primary."""
        for node in self.nodes:
            if not node.alive:
                continue
            told = node.client.execute_command("CLUSTER", "INFO", NEVER_DECODE=True)
            lines = dict(line.split(":", 1) for line in _text(told).split() if ":" in line)
            if lines["cluster_state"] != "ok" or lines["cluster_slots_ok"] != str(SLOTS):
                return False
            role = node.client.execute_command("ROLE")
            if role[0] == b"slave" and role[3] != b"connected":
                return False
        return True

    def wait_until_whole(self) -> None:
        """Wait until the whole cluster works."""
        wait_until(self.is_whole, "the cluster is whole")

    def begin_move(self, slot: int, source: ServerProcess, target: ServerProcess) -> None:
        """Let a slot migrate: from now on the source answers ASK for keys that it has not."""
        target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", _id_of(source))
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", _id_of(target))

    def move_keys(self, slot: int, source: ServerProcess, target: ServerProcess) -> int:
        """Move the keys of a slot that migrates; return how many."""
        moved = 0
        while names := source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.client.execute_command("MIGRATE", HOST, target.port, "", 0, 2000, "KEYS", *names)
            moved += len(names)
        return moved

    def end_move(self, slot: int, target: ServerProcess) -> None:
        """Give a slot to the node that it migrated to, and tell all primaries: the source answers MOVED."""
        primaries = [self.node(port) for port in self.owners()]
        for node in [target, *(node for node in primaries if node is not target)]:
            node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", _id_of(target))


def _id_of(node: ServerProcess) -> str:
    return _text(node.client.execute_command("CLUSTER", "MYID"))


@contextmanager
def cluster(
    *, primaries: int = 3, replicas: int = 1, binary: Path | None = None, lines: Sequence[str] = ()
) -> Iterator[Cluster]:
    """Run a cluster of ``primaries`` with ``replicas`` each (``lines`` are more of their configuration), whole."""
    own = (
        "cluster-enabled yes",
        "cluster-config-file nodes.conf",
        f"cluster-node-timeout {NODE_TIMEOUT_MS}",
        f"cluster-announce-ip {HOST}",
        "cluster-replica-validity-factor 0",
    )
    with ExitStack() as stack:
        nodes = [ServerProcess(binary or _binary(), lines=(*own, *lines)) for _ in range(primaries * (1 + replicas))]
        _start_all(stack, nodes)
        for number, node in enumerate(nodes[:primaries]):
            first, last = (SLOTS * part // primaries for part in (number, number + 1))
            slots = [str(slot) for slot in range(first, last)]
            node.client.execute_command("CLUSTER", "ADDSLOTS", *slots)
            node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            nodes[0].client.execute_command("CLUSTER", "MEET", HOST, node.port)
        for number, node in enumerate(nodes[primaries:]):
            _replicate(node, nodes[number % primaries])
        made = Cluster(nodes, primaries)
        made.wait_until_whole()
        yield made


def _replicate(node: ServerProcess, primary: ServerProcess) -> None:
    name = _id_of(primary)

    def accepted() -> bool:
        # "Unknown node" until the two have met.
        with contextlib.suppress(redis.exceptions.ResponseError):
            return bool(node.client.execute_command("CLUSTER", "REPLICATE", name))
        return False

    wait_until(accepted, "a replica takes its primary")
