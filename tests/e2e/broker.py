"""Debian's X2Go Session Broker in a namespace of its own, with SSH keys to the agents of real X2Go servers."""

from __future__ import annotations

import itertools
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.system_python import REPOSITORY, SYSTEM_PYTHON, redis_for_system_python

from .namespace import Namespace, wait_until
from .realserver import RealX2GoServer

DAEMON = "/usr/bin/x2gobroker-daemon"
LOADCHECKER = "/usr/sbin/x2gobroker-loadchecker"
HOME = "/home/x2gobroker"
LIBRARY = f"{HOME}/lib"
USER = "x2gobroker"
RUN = "/run/x2gobroker"

UNGUARDED = """
import sys
from x2gofleet.adapters import broker_guard, live_agent, x2gobroker

answered = live_agent.LiveAgents.call

def call(self, host, function):
    try:
        return answered(self, host, function)
    except live_agent.AgentError as exc:
        raise exc.__cause__ or exc

live_agent.LiveAgents.call = call
broker_guard.Guard.wrap = lambda self, name, function, failure: function
sys.exit(x2gobroker.main())
"""

CONFIG = """
[global]
require-password = false
require-cookie = false
cookie-directory = /home/x2gobroker/cookies
default-agent-query-mode = SSH
default-agent-hostkey-policy = RejectPolicy
default-use-load-checker = {load_checker}
load-checker-intervals = 2

[broker_inifile]
enable = true
use-load-checker = {load_checker}
"""

Profiles = Mapping[str, Mapping[str, RealX2GoServer]]


@dataclass(frozen=True, slots=True)
class Selected:
    """What the broker tells a client that selected a session: host:port, and the session to go on with, by fields."""

    server: str
    session: tuple[str, ...] | None
    seconds: float = field(compare=False)

    @property
    def stable(self) -> tuple[str, tuple[str, ...] | None]:
        """All but the session's age and the time of its last change of status, which pass."""
        if self.session is None:
            return self.server, None
        return self.server, (*self.session[:10], *self.session[11:12], *self.session[13:])


class BrokerDaemon:
    """A running x2gobroker-daemon, asked over HTTP as X2Go Client does."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, username: str, task: str, profile: str = "", *, timeout_seconds: float = 120) -> str:
        """Return the text of the reply, which grants access."""
        form = {"user": username, "login": username, "password": "", "task": task, "sid": profile}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/plain/inifile/", urllib.parse.urlencode(form).encode()
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=timeout_seconds
        ) as answer:
            text: str = answer.read().decode()
        assert "Access granted" in text, text
        return text

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False

    def profiles(self, username: str) -> tuple[dict[str, dict[str, str]], float]:
        """Return the profiles offered to a user, by id, and the seconds that it took."""
        began = time.monotonic()
        text = self.ask(username, "listsessions")
        seconds = time.monotonic() - began
        found: dict[str, dict[str, str]] = {}
        for line in text.splitlines():
            if section := re.fullmatch(r"\[(.+)\]", line):
                found[section[1]] = {}
            elif found and "=" in line:
                name, _, value = line.partition("=")
                found[list(found)[-1]][name] = value
        return found, seconds

    def select(self, username: str, profile: str) -> Selected:
        """Select a profile for a user."""
        began = time.monotonic()
        text = self.ask(username, "selectsession", profile)
        seconds = time.monotonic() - began
        server = re.search(r"^SERVER:(.*)$", text, re.MULTILINE)
        session = re.search(r"^SESSION_INFO:(.*)$", text, re.MULTILINE)
        assert server is not None, text
        return Selected(server[1], tuple(session[1].split("|")) if session else None, seconds)


class BrokerHost:
    """A machine with Debian's x2gobroker, its key known to the agents of the servers; use as a context manager."""

    def __init__(self, directory: Path, servers: Mapping[str, RealX2GoServer]) -> None:
        self.namespace = Namespace(directory, "broker")
        self._servers = servers
        self._uids = itertools.count()

    def __enter__(self) -> BrokerHost:
        self.namespace.start()
        try:
            self._furnish()
        except BaseException:
            self.namespace.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.namespace.stop()

    def _furnish(self) -> None:
        hosts = "".join(f"127.0.0.1 {name}\n" for name in self._servers)
        self.namespace.path("/etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 broker\n{hosts}")
        self.namespace.run(["usermod", "--home", HOME, USER])
        for directory in (HOME, f"{HOME}/cookies", "/var/log/x2gobroker", RUN):
            self.namespace.run(["install", "-d", "-o", USER, "-g", USER, "-m", "755", directory])
        library = self.namespace.path(LIBRARY)
        shutil.copytree(redis_for_system_python(), library)
        shutil.copytree(REPOSITORY / "x2gofleet", library / "x2gofleet")
        library.chmod(0o755)
        # Made and allowed in as on any site: by the broker's own tool, in the agent user's authorized keys.
        self.namespace.run(["/usr/sbin/x2gobroker-keygen"])
        key = self.namespace.path(f"{HOME}/.ssh/id_rsa.pub").read_text().strip()
        lines = []
        for name, server in self._servers.items():
            server.run(["usermod", "--password", "*", USER])
            server.authorize(USER, key)
            host_key = server.known_hosts_line.split(" ", 1)[1]
            lines.append(f"[{server.host}]:{server.port},[{name}]:{server.port} {host_key}\n")
        self.namespace.path(f"{HOME}/.ssh/known_hosts").write_text("".join(lines))
        self.namespace.run(["chown", "-R", f"{USER}:{USER}", f"{HOME}/.ssh", "/var/log/x2gobroker"])
        for server in self._servers.values():
            self.know(*server.users())
        self.configure({})

    def know(self, *users: str) -> None:
        """Have the name service of this host know users, as one of the same directory as the servers' does."""
        passwd = self.namespace.path("/etc/passwd")
        known = {line.partition(":")[0] for line in passwd.read_text().splitlines()}
        with passwd.open("a") as lines:
            for user in dict.fromkeys(users):
                if user not in known:
                    uid = 30_001 + next(self._uids)
                    lines.write(f"{user}:x:{uid}:{uid}::/nonexistent:/usr/sbin/nologin\n")

    def configure(self, profiles: Profiles, *, load_checker: bool = False, more: str = "") -> None:
        """Write the broker's configuration and session profiles; hosts with the addresses and ports of the servers."""
        text = f"[DEFAULT]\ncommand = MATE\nuser = BROKER_USER\nbroker-use-load-checker = {str(load_checker).lower()}\n"
        for profile_id, servers in profiles.items():
            hosts = ", ".join(f"{name} ({server.host}:{server.port})" for name, server in servers.items())
            text += f"\n[{profile_id}]\nname = {profile_id}\nhost = {hosts}\n"
        self.namespace.path("/etc/x2go/broker/x2gobroker-sessionprofiles.conf").write_text(text + more)
        config = CONFIG.format(load_checker=str(load_checker).lower())
        self.namespace.path("/etc/x2go/x2gobroker.conf").write_text(config)

    def command(self, program: list[str], settings: Mapping[str, str] | None, *, unguarded: bool = False) -> list[str]:
        """The command that runs a program of x2gobroker as it is (None), or with the adapter and its settings.

        ``unguarded``: what agents raise reaches x2gobroker as if the adapter had no guard.
        """
        if settings is None:
            return ["env", f"HOME={HOME}", *program]
        variables = [f"{name}={value}" for name, value in {"PYTHONPATH": LIBRARY, **settings}.items()]
        adapter = ["-c", UNGUARDED] if unguarded else ["-m", "x2gofleet.adapters.x2gobroker"]
        launcher = [str(SYSTEM_PYTHON), *adapter, "--"]
        return ["env", f"HOME={HOME}", *variables, *launcher, *program]

    def python(self, program: str, settings: Mapping[str, str] | None) -> Any:
        """Run a Python program as the broker's user, with the adapter where there are settings; returns its JSON."""
        path = f"{HOME}/program.py"
        self.namespace.path(path).write_text(program)
        command = self.command([str(SYSTEM_PYTHON), path] if settings is None else [path], settings)
        return json.loads(self.namespace.run(command, user=USER).stdout.splitlines()[-1])

    @property
    def log(self) -> Path:
        """What the daemons print, in order of their lines."""
        return self.namespace.directory / "daemons.log"

    def broker_log(self) -> str:
        """What the daemons write into broker.log."""
        log = self.namespace.disk / "var/log/x2gobroker/broker.log"
        return log.read_text(errors="replace") if log.exists() else ""

    @contextmanager
    def daemon(self, settings: Mapping[str, str] | None = None, *, unguarded: bool = False) -> Iterator[BrokerDaemon]:
        """Run x2gobroker-daemon in the foreground, as it is or with the adapter; see ``command``."""
        daemon = BrokerDaemon(free_port())
        program = [DAEMON, "-M", "HTTP", "-b", f"127.0.0.1:{daemon.port}"]
        process = self.namespace.spawn(self.command(program, settings, unguarded=unguarded), user=USER, log=self.log)
        try:
            wait_until(
                lambda: daemon.answers() or process.poll() is not None, "the broker to listen", timeout_seconds=60
            )
            assert process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            yield daemon
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @contextmanager
    def forked_daemon(self, settings: Mapping[str, str]) -> Iterator[BrokerDaemon]:
        """Run x2gobroker-daemon as Debian's systemd unit does, but for the address: as root, into the background."""
        daemon = BrokerDaemon(free_port())
        program = [DAEMON, "--drop-privileges", "-D", "--pidfile", f"{RUN}/x2gobroker-daemon.pid"]
        with self._forked([*program, "-b", f"127.0.0.1:{daemon.port}"], "root", settings):
            wait_until(daemon.answers, "the broker to listen", timeout_seconds=60)
            yield daemon

    @contextmanager
    def forked_loadchecker(self, settings: Mapping[str, str]) -> Iterator[Callable[[str], str]]:
        """Run x2gobroker-loadchecker as Debian's systemd unit does; yields what asks its socket for a profile."""
        path = f"{RUN}/x2gobroker-loadchecker.socket"
        program = [LOADCHECKER, f"--socket-file={path}", "--daemonize", "-o", USER, "-g", USER, "-p", "0660"]

        def ask(profile: str) -> str:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(self.namespace.path(path)))
                client.sendall(f"inifile\r{profile}\r\n".encode())
                return client.recv(4096).decode()

        with self._forked([*program, f"--pidfile={RUN}/x2gobroker-loadchecker.pid"], USER, settings):
            wait_until(self.namespace.path(path).exists, "the load checker's socket", timeout_seconds=60)
            yield ask

    @contextmanager
    def _forked(self, program: list[str], user: str, settings: Mapping[str, str]) -> Iterator[None]:
        log = self.log
        parent = self.namespace.spawn(self.command(program, settings), user=user, log=log)
        try:
            assert parent.wait(60) == 0, log.read_text(errors="replace")[-3000:]
            yield
        finally:
            for process in self.namespace.processes():
                if process.command.startswith(Path(program[0]).name):
                    os.kill(process.pid, signal.SIGTERM)

    def owner(self, name: str) -> str:
        """The user that a running program belongs to."""
        running = next(p for p in self.namespace.processes() if p.command.startswith(name))
        return pwd.getpwuid(Path(f"/proc/{running.pid}").stat().st_uid).pw_name


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
