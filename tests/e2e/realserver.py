"""Real X2Go servers on loopback: Debian's x2goserver behind Debian's sshd, several at once, each in a namespace."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .namespace import PATH, Namespace, NamespaceProcess, wait_until

X2GO_LIB = "/usr/lib/x2go"
FIRST_UID = 20001
USERS = ("alice", "bob", "john_doe", "mallory")

# Where each program comes from, for the message of a machine that lacks it.
PROGRAMS = {
    "x2golistsessions_root": "x2goserver",
    "x2golistdesktops": "x2goserver",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "sqlite3": "sqlite3",
    "sudo": "sudo",
    "Xvfb": "xvfb",
    "xauth": "xauth",
    "xwininfo": "x11-utils",
    "ss": "iproute2",
    "perl": "perl",
}

# Every command that a poll, or a broker in the old way, runs; the counter stands in front of these.
COUNTED_COMMANDS = (
    "/usr/sbin/x2golistsessions_root",
    "/usr/bin/x2golistsessions",
    "/usr/bin/x2golistshadowsessions",
    "/usr/bin/x2golistdesktops",
    "/usr/bin/x2golistmounts",
    "/usr/bin/x2gofeature",
    f"{X2GO_LIB}/x2golistsessions_sql",
)

SessionKind = Literal["D", "R", "P"]
DatabaseFault = Literal["garbage", "missing-table", "locked", "directory", "absent"]
AgentState = Literal["STARTING", "RUNNING", "RESUMING", "SUSPENDING", "SUSPENDED", "TERMINATING", "TERMINATED"]


def missing_requirements() -> str:
    """What this machine lacks for a real X2Go server, in one line with the mend; empty when nothing."""
    if os.geteuid() != 0:
        return "real X2Go servers need root (mount namespaces, sshd, logins of several users)"
    lacking = {package for program, package in PROGRAMS.items() if shutil.which(program, path=PATH) is None}
    if lacking:
        return f"not installed: {', '.join(sorted(lacking))}; run tests/e2e/setup.sh"
    tried = subprocess.run(
        ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, check=False
    )
    if tried.returncode != 0:
        return f"no namespaces here (a container without CAP_SYS_ADMIN?): {tried.stderr.decode().strip()}"
    return ""


def create_empty_database(directory: Path) -> Path:
    """An empty session database made by X2Go's own `x2godbadmin --createdb`; returns its path in `directory`."""
    script = 'mount --bind "$1" /var/lib/x2go && x2godbadmin --createdb'
    subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "createdb", str(directory)],
        check=True,
        capture_output=True,
        env={"PATH": PATH},
    )
    return directory / "x2go_sessions"


@dataclass(frozen=True, slots=True)
class AuthenticationAttempt:
    """One request for authentication that reached sshd: the login asked for and the method (none, publickey ...)."""

    user: str
    method: str


class CommandCounter:
    """Names of the X2Go commands that ran on a server since the counter was installed or last reset."""

    def __init__(self, log: Path) -> None:
        self._log = log

    @property
    def names(self) -> tuple[str, ...]:
        """One name per run, in the order of their starts; those that X2Go's commands run themselves included."""
        return tuple(self._log.read_text().split())

    @property
    def by_name(self) -> Counter[str]:
        return Counter(self.names)

    @property
    def total(self) -> int:
        return len(self.names)

    def reset(self) -> None:
        os.truncate(self._log, 0)


class RealX2GoServer:
    """One X2Go server at 127.0.0.1:`port` that calls itself `hostname`; use as a context manager.

    Users alice, bob, john_doe and mallory exist, or those given (root too); nobody can log in before `authorize`.
    `max_startups` is sshd's MaxStartups: by default so many that it never drops a connection.
    `directory` must not exist yet; `empty_database` is what `create_empty_database` returned. The logs in
    `directory` outlive the server, all else is removed.
    """

    def __init__(
        self,
        directory: Path,
        *,
        empty_database: Path,
        hostname: str = "ts01",
        users: Sequence[str] = USERS,
        max_startups: str = "1000",
    ) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.hostname = hostname
        self.namespace = Namespace(directory, hostname)
        self._empty_database = empty_database
        self._users = tuple(users)
        self._max_startups = max_startups
        self._next_uid = itertools.count(FIRST_UID)
        self._next_number = itertools.count(1)
        self._public_host_key = ""
        self._sshd: subprocess.Popen[bytes] | None = None
        self._database_fault: DatabaseFault | None = None
        self._locker: sqlite3.Connection | None = None
        self._displays: list[subprocess.Popen[bytes]] = []
        self._frozen: list[int] = []

    def __enter__(self) -> RealX2GoServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        self.namespace.start()
        try:
            self._furnish()
            self.start_sshd()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server: every process of it dies, every mount goes."""
        if self._locker is not None:
            self._locker.close()
            self._locker = None
        self.thaw_sshd()
        self.namespace.stop()
        for display in self._displays:
            assert display.stdout is not None
            display.stdout.close()
        self._displays.clear()

    def path(self, inner: str) -> Path:
        """The server's file `inner` (absolute, no absolute symlinks in it) as this process can open it."""
        return self.namespace.path(inner)

    def run(
        self,
        argv: Sequence[str],
        user: str = "root",
        *,
        input: bytes | None = None,  # noqa: A002  # subprocess.run's own name for it
        check: bool = True,
        env: Mapping[str, str] | None = None,
        timeout_seconds: float = 60.0,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `argv` on the server as `user`, past sshd; see `Namespace.run`."""
        return self.namespace.run(argv, user=user, input=input, check=check, env=env, timeout_seconds=timeout_seconds)

    def processes(self) -> tuple[NamespaceProcess, ...]:
        return self.namespace.processes()

    def set_hostname(self, name: str) -> None:
        """Rename the running server; sessions made before keep the old name in their rows, as on a real one."""
        self.run(["sh", "-c", 'echo "$1" >/proc/sys/kernel/hostname', "sh", name])
        self.path("/etc/hostname").write_text(f"{name}\n")
        self.path("/etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
        self.hostname = name

    def add_user(self, name: str, *, shell: str = "/bin/bash") -> None:
        """Make a login that takes keys only, with a home directory."""
        uid = next(self._next_uid)
        for file, line in (
            ("passwd", f"{name}:x:{uid}:{uid}::/home/{name}:{shell}"),
            ("group", f"{name}:x:{uid}:"),
            # `*` and not `!`: sshd without PAM refuses even keys of a locked account.
            ("shadow", f"{name}:*:20000:0:99999:7:::"),
        ):
            with self.path(f"/etc/{file}").open("a") as lines:
                lines.write(f"{line}\n")
        home = self.namespace.disk / "home" / name
        home.mkdir(mode=0o755)
        os.chown(home, uid, uid)

    def add_alias(self, name: str, account: str) -> None:
        """Give an account another name, as sssd and winbind do: the same uid, which is still called as before."""
        passwd = self.path("/etc/passwd")
        line = next(line for line in passwd.read_text().splitlines() if line.startswith(f"{account}:"))
        with passwd.open("a") as lines:
            lines.write(f"{name}{line.removeprefix(account)}\n")

    def users(self) -> tuple[str, ...]:
        """Who has a login, root and system accounts aside."""
        fields = [line.split(":") for line in self.path("/etc/passwd").read_text().splitlines()]
        return tuple(
            field[0] for field in fields if len(field) > 2 and int(field[2]) in range(FIRST_UID, FIRST_UID + 9999)
        )

    def allow_sudo(self, user: str, rule: str) -> None:
        """Give `user` a sudoers rule, such as `ALL=(root) NOPASSWD: /usr/sbin/x2golistsessions_root`."""
        file = f"/etc/sudoers.d/harness-{next(self._next_number)}"
        self.path(file).write_text(f"{user} {rule}\n")
        self.path(file).chmod(0o440)
        self.run(["visudo", "--check", "--quiet", f"--file={file}"])

    @property
    def known_hosts_line(self) -> str:
        """The line for known_hosts that fits this server's present host key."""
        return f"[{self.host}]:{self.port} {self._public_host_key}"

    def authorize(self, user: str, public_key_text: str, options: str = "") -> None:
        """Let the key log in as `user`; `options` as in authorized_keys, e.g. `restrict,command="..."`."""
        with self.path(f"/etc/ssh/authorized_keys/{user}").open("a") as lines:
            lines.write(f"{options} {public_key_text}".strip() + "\n")

    def revoke(self, user: str) -> None:
        """Take back every key of `user`."""
        self.path(f"/etc/ssh/authorized_keys/{user}").unlink()

    def start_sshd(self) -> None:
        """Start sshd on the port that it had before, or on a free one; returns when it listens."""
        for _ in range(20):
            port = self.port or free_port()
            listening = f"Server listening on {self.host} port {port}."
            before = self.sshd_log().count(listening)
            process = self.namespace.spawn(
                ["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/harness_config", "-p", str(port)],
                log=self._sshd_log,
            )
            wait_until(
                lambda: self.sshd_log().count(listening) > before or process.poll() is not None,  # noqa: B023
                f"sshd to listen on port {port}",
            )
            if process.poll() is None:
                self._sshd = process
                self.port = port
                return
            if self.port:
                break
        raise RuntimeError(f"sshd does not start: {self.sshd_log()[-2000:]}")

    def stop_sshd(self, *, drop_connections: bool = True) -> None:
        """End the listening sshd and, unless told otherwise, every connection that it serves."""
        if self._sshd is None:
            return
        listeners = [p for p in self.processes() if p.name == "sshd" and "[listener]" in p.command]
        for listener in listeners:
            os.kill(listener.pid, signal.SIGTERM)
        self._sshd.wait(timeout=15)
        self._sshd = None
        while drop_connections and self._connections():
            self.drop_connections()

    def drop_connections(self) -> None:
        """Cut every SSH connection that is open now; what ran in them sees the end of its input."""
        # Clients may connect anew meanwhile.
        cut = {process.pid for process in self._connections()}
        for pid in cut:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not cut & {process.pid for process in self._connections()}, "the end of all connections")

    def freeze_sshd(self) -> None:
        """Stop every process of sshd where it is: the kernel goes on taking connections, and nobody answers."""
        for process in self.processes():
            if process.name.startswith("sshd"):
                os.kill(process.pid, signal.SIGSTOP)
                self._frozen.append(process.pid)

    def thaw_sshd(self) -> None:
        """Let sshd go on; what started it (nsenter) stops when it does, and goes on too."""
        if self._frozen and self._sshd is not None:
            self._frozen.append(self._sshd.pid)
        for pid in self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen.clear()

    def change_host_key(self, key_type: Literal["ed25519", "ecdsa", "rsa"] = "ed25519") -> None:
        """Give the server another host key on the same port; open connections are cut."""
        self.stop_sshd()
        self._make_host_key(key_type)
        self.start_sshd()

    def sshd_log(self) -> str:
        """Everything that sshd has logged (level DEBUG1), over all its restarts."""
        return self._sshd_log.read_text(errors="replace") if self._sshd_log.exists() else ""

    def connections(self) -> int:
        """How many TCP connections sshd has accepted until now."""
        return len(re.findall(r"^Connection from \S+ port \d+", self.sshd_log(), re.MULTILINE))

    def authentication_attempts(self) -> tuple[AuthenticationAttempt, ...]:
        """Every request for authentication until now; a client that turns away before asking leaves none."""
        asked = re.findall(
            r"^debug1: userauth-request for user (\S+) service \S+ method (\S+)", self.sshd_log(), re.MULTILINE
        )
        return tuple(AuthenticationAttempt(user, method) for user, method in asked)

    def insert_session(
        self,
        user: str,
        display: int,
        kind: SessionKind = "D",
        command: str = "MATE",
        *,
        cookie: str = "",
        client: str = "10.1.2.3",
        started: bool = True,
        agent: bool = True,
        telekinesis_ports: tuple[int, int] = (-1, -1),
        epoch: int | None = None,
    ) -> str:
        """Put in a session by X2Go's own commands, run as `user`; returns its name.

        kind: `D` desktop, `R` a rootless application, `P` published applications (`command` is then not used).
        cookie, client: taken as they are, unsanitised as by X2Go; an empty cookie becomes 32 random hex digits.
        started: False leaves the row as one that is just being started.
        agent: whether a process stands in for the agent (x2golistsessions_root looks for one behind `F` rows).
        epoch: seconds, for the name; now when None. A display can be used once per server.
        """
        word = "RPUBLISHED" if kind == "P" else f"{kind}{command}"
        name = f"{user}-{display}-{int(time.time()) if epoch is None else epoch}_st{word}_dp24"
        self.run([f"{X2GO_LIB}/x2goinsertsession", str(display), self.hostname, name], user)
        if started:
            agent_pid = self._start_agent(user, name) if agent else 999_999
            self.run(
                [
                    f"{X2GO_LIB}/x2gocreatesession",
                    name,
                    cookie or uuid.uuid4().hex,
                    str(agent_pid),
                    client,
                    *map(str, self._ports()),
                    *map(str, telekinesis_ports),
                ],
                user,
            )
        return name

    def shadow_session(self, owner: str, requester: str, display: int, *, shadowed: int = 50, full: bool = True) -> str:
        """A session in which `requester` sees `owner`'s display `:shadowed`; returns its name.

        As X2Go does it: made by the owner's side in the requester's name. full: may control, not only view.
        """
        mode = "1" if full else "0"
        name = f"{requester}-{display}-{int(time.time())}_stS{mode}XSHAD{owner}XSHADPP{shadowed}_dp24"
        self.run([f"{X2GO_LIB}/x2goinsertshadowsession", str(display), self.hostname, name, requester], owner)
        agent_pid = self._start_agent(owner, name)
        self.run(
            [
                f"{X2GO_LIB}/x2gocreateshadowsession",
                name,
                uuid.uuid4().hex,
                str(agent_pid),
                "10.1.2.4",
                *map(str, self._ports()),
                requester,
            ],
            owner,
        )
        return name

    def stop_agent(self, session: str) -> None:
        """End the process that stands in for the session's agent; the row stays as it is."""
        for process in self.processes():
            if session in process.command:
                os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not any(session in p.command for p in self.processes()), f"the end of {session}'s agent")

    def set_agent_state(self, user: str, session: str, state: AgentState) -> None:
        """Write the state file as `user`'s agent does, in place; a shadow session's agent is its owner's."""
        script = 'umask 077; mkdir -p "$1"; printf %s "$2" >"$1/state"'
        self.run(["sh", "-c", script, "sh", f"/tmp/.x2go-{user}/C-{session}", state], user)

    def change_status(self, user: str, session: str, status: Literal["R", "S", "F", "T"]) -> None:
        """Set the row's status by x2gochangestatus as `user`."""
        self.run([f"{X2GO_LIB}/x2gochangestatus", status, session], user)

    def insert_mount(self, user: str, session: str, client: str, path: str) -> None:
        """Record a shared folder as x2gomountdirs does; nothing is mounted."""
        script = "X2Go::Server::DB::db_insertmount(@ARGV) or die 'not inserted'"
        self.run(["perl", "-MX2Go::Server::DB", "-e", script, session, path, client], user)

    @contextlib.contextmanager
    def x_display(self, user: str, display: int = 0) -> Iterator[str]:
        """A real X server that only `user` may use; yields its name, e.g. `:71`; 0 takes the next number."""
        number = display or 70 + next(self._next_number)
        authority = f"{self.namespace.login_environment(user)['HOME']}/.Xauthority"
        self.run(["xauth", "-f", authority, "add", f":{number}", ".", uuid.uuid4().hex], user)
        process = self.namespace.spawn(
            [
                "Xvfb",
                f":{number}",
                "-displayfd",
                "1",
                "-auth",
                authority,
                "-screen",
                "0",
                "64x64x8",
                # An abstract socket would be seen by every server on this host's network.
                "-nolisten",
                "tcp",
                "-nolisten",
                "local",
            ],
            user=user,
            stdout=subprocess.PIPE,
            log=self.namespace.disk / "var/log/xvfb.log",
        )
        self._displays.append(process)
        assert process.stdout is not None
        if process.stdout.readline().strip() != str(number).encode():
            log = (self.namespace.disk / "var/log/xvfb.log").read_text(errors="replace")
            raise RuntimeError(f"no X display :{number}: {log}")
        try:
            yield f":{number}"
        finally:
            if self.namespace.is_running():
                self._end_display(process, number)
                self.run(["xauth", "-f", authority, "remove", f":{number}"], user)

    def count_commands(self) -> CommandCounter:
        """Put counting wrappers in front of X2Go's listing commands, for the rest of the server's life."""
        log = self.namespace.disk / "var/log/x2go-commands.log"
        if not log.exists():
            log.touch()
            log.chmod(0o666)
            for command in COUNTED_COMMANDS:
                real = f"{X2GO_LIB}/counted/{Path(command).name}"
                self.run(["install", "-D", "-m", "755", command, real])
                self.replace_command(
                    command,
                    f'#!/bin/sh\necho {Path(command).name} >>/var/log/{log.name}\nexec {real} "$@"\n',
                )
        return CommandCounter(log)

    def replace_command(self, command: str, script: str) -> None:
        """Put a script in the place of a command, given by its full path; running ones go on."""
        self._keep_original(command)
        new = f"{command}.new"
        self.path(new).write_text(script)
        self.path(new).chmod(0o755)
        self.path(new).rename(self.path(command))

    def remove_command(self, command: str) -> None:
        """Take a command away, given by its full path, as if its package were not installed."""
        self._keep_original(command)
        self.path(command).unlink()

    def restore_command(self, command: str) -> None:
        """Put the original of a replaced or removed command back (without its counter)."""
        self.run(["install", "-m", "755", self._original(command), command])

    @property
    def database(self) -> Path:
        """The SQLite session database: one file, whether seen from the server or from here."""
        return self.namespace.disk / "var/lib/x2go/x2go_sessions"

    def sql(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """Run one statement on the session database, past X2Go; returns its rows."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=10)) as connection, connection:
            return connection.execute(statement, parameters).fetchall()

    def break_sql_config(self, text: str = "backend=nonsense\n") -> None:
        """Overwrite X2Go's SQL configuration, so that its commands can't find the database."""
        config = self.path("/etc/x2go/x2gosql/sql")
        self._sql_config_backup.write_bytes(config.read_bytes())
        config.write_text(text)

    def restore_sql_config(self) -> None:
        self.path("/etc/x2go/x2gosql/sql").write_bytes(self._sql_config_backup.read_bytes())

    def make_database_unreadable(self, how: DatabaseFault = "garbage") -> None:
        """Break the session database for root too, until `restore_database`.

        garbage: another file without SQLite's header. missing-table: no table `sessions`. locked: by another
        writer, for longer than X2Go waits (2 s). directory, absent: instead of the file.
        """
        if self._database_fault is not None:
            raise RuntimeError(f"the database is already broken: {self._database_fault}")
        if how == "locked":
            self._locker = sqlite3.connect(self.database, isolation_level=None, check_same_thread=False)
            self._locker.execute("begin exclusive")
        elif how == "missing-table":
            self.sql("alter table sessions rename to sessions_gone")
        else:
            self.sql("pragma wal_checkpoint(truncate)")
            self._copy_database(self.database, self._database_backup)
            if how == "garbage":
                new = self.database.with_suffix(".new")
                new.write_bytes(b"this is no database\n" * 500)
                shutil.copymode(self._database_backup, new)
                shutil.chown(new, "root", "x2gouser")
                new.rename(self.database)
            else:
                self.database.unlink()
                if how == "directory":
                    self.database.mkdir()
        self._database_fault = how

    def restore_database(self) -> None:
        """Mend what `make_database_unreadable` broke; sessions are as they were."""
        match self._database_fault:
            case "locked":
                assert self._locker is not None
                self._locker.close()
                self._locker = None
            case "missing-table":
                self.sql("alter table sessions_gone rename to sessions")
            case "garbage" | "directory" | "absent":
                if self.database.is_dir():
                    self.database.rmdir()
                self._copy_database(self._database_backup, self.database)
            case None:
                raise RuntimeError("the database is not broken")
        self._database_fault = None

    def _furnish(self) -> None:
        """Make the server's files: users, host name, X2Go's state, sshd's configuration and host key."""
        disk = self.namespace.disk
        state = disk / "var/lib/x2go"
        shutil.chown(state, "x2gouser", "x2gouser")
        self._copy_database(self._empty_database, self.database)
        for sticky in (".X11-unix", ".ICE-unix"):
            (disk / "tmp" / sticky).mkdir()
            (disk / "tmp" / sticky).chmod(0o1777)
        self.set_hostname(self.hostname)
        self._own_x2go_configuration()
        for user in self._users:
            self.add_user(user)
        self.run(["usermod", "--password", "*", "root"])
        keys = self.path("/etc/ssh/authorized_keys")
        keys.mkdir()
        keys.chmod(0o755)
        self._make_host_key("ed25519")
        self.path("/etc/ssh/harness_config").write_text(_sshd_config(self._max_startups))

    def _own_x2go_configuration(self) -> None:
        """Own files below /etc/x2go from the start, so that a later write doesn't change inodes by copying up."""
        for directory, _, names in os.walk(self.path("/etc/x2go")):
            for name in names:
                file = Path(directory) / name
                if not file.is_symlink():
                    os.utime(file)

    def _make_host_key(self, key_type: str) -> None:
        key = self.path("/etc/ssh/harness_host_key")
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / "key"
            subprocess.run(["ssh-keygen", "-q", "-t", key_type, "-N", "", "-C", "", "-f", made], check=True)
            key.unlink(missing_ok=True)
            key.touch(mode=0o600)
            key.write_bytes(made.read_bytes())
            self._public_host_key = made.with_suffix(".pub").read_text().strip()

    def _start_agent(self, user: str, session: str) -> int:
        """Start a process whose command line has the session's name, as X2Go expects; its id on the server."""
        script = 'exec -a "x2goagent-$0" sleep infinity </dev/null >/dev/null 2>&1 & echo $!'
        return int(self.run(["bash", "-c", script, session], user).stdout)

    def _end_display(self, process: subprocess.Popen[bytes], number: int) -> None:
        for found in self.processes():
            if found.name == "Xvfb" and f"Xvfb :{number} " in found.command:
                os.kill(found.pid, signal.SIGTERM)
        process.wait(timeout=15)

    def _ports(self) -> tuple[int, int, int]:
        """Graphics, sound and file ports that no other session of this server has."""
        first = 30_000 + 3 * next(self._next_number)
        return first, first + 1, first + 2

    def _connections(self) -> list[NamespaceProcess]:
        """The sshd processes that serve connections (OpenSSH 9.8 and later call them sshd-session)."""
        return [p for p in self.processes() if p.name.startswith("sshd") and "[listener]" not in p.command]

    @staticmethod
    def _copy_database(source: Path, target: Path) -> None:
        """Copy with the owner and modes of the package (its postinst), by renaming: never half a database."""
        new = target.with_suffix(".new")
        shutil.copyfile(source, new)
        shutil.chown(new, "root", "x2gouser")
        new.chmod(0o660)
        new.rename(target)

    def _original(self, command: str) -> str:
        return f"{X2GO_LIB}/original/{Path(command).name}"

    def _keep_original(self, command: str) -> None:
        if not self.path(self._original(command)).exists():
            self.run(["install", "-D", "-m", "755", command, self._original(command)])

    @property
    def _database_backup(self) -> Path:
        return self.namespace.disk / "var/lib/x2go_sessions.backup"

    @property
    def _sql_config_backup(self) -> Path:
        return self.namespace.disk / "var/lib/sql.backup"

    @property
    def _sshd_log(self) -> Path:
        return self.namespace.disk / "var/log/sshd.log"


def free_port() -> int:
    """A free TCP port of 127.0.0.1 below the range that the kernel gives to outgoing connections."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port


def _sshd_config(max_startups: str) -> str:
    """One address, keys only, no PAM; DEBUG1 because only that logs each request for authentication."""
    lines = [
        "ListenAddress 127.0.0.1",
        "HostKey /etc/ssh/harness_host_key",
        "AuthorizedKeysFile /etc/ssh/authorized_keys/%u",
        "PidFile none",
        "PermitRootLogin prohibit-password",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "UsePAM no",
        "UseDNS no",
        "PrintMotd no",
        "LogLevel DEBUG1",
        f"MaxStartups {max_startups}",
        "MaxSessions 100",
        "MaxAuthTries 20",
    ]
    banner = subprocess.run(["ssh", "-V"], capture_output=True, check=True).stderr.decode()
    version = re.match(r"OpenSSH_(\d+)\.(\d+)", banner)
    if version is not None and (int(version[1]), int(version[2])) >= (9, 8):
        lines.append("PerSourcePenalties no")
    return "\n".join(lines) + "\n"
