"""A machine of its own for one server: private mounts, host name and processes, on the host's network."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import HANG_SECONDS

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_UNSHARE = [
    "unshare",
    "--mount",
    "--uts",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--propagation",
    "private",
]

# The overlays' upper directories are on a tmpfs, because an overlay (a container's root) can't hold another's.
# The binds come last: $1 itself may lie below /tmp.
_INIT = r"""
set -e
mount -t tmpfs -o mode=755 tmpfs "$1/overlay"
for place in etc usr; do
    mkdir -p "$1/overlay/$place" "$1/overlay/$place.work"
    mount -t overlay overlay \
        -o "lowerdir=/$place,upperdir=$1/overlay/$place,workdir=$1/overlay/$place.work" "/$place"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd /run/lock
chmod 1777 /run/lock
for place in var/lib/x2go var/log home root tmp; do
    mount --bind "$1/disk/$place" "/$place"
done
echo "$2" >/proc/sys/kernel/hostname
echo ready
cat >/dev/null || :
exit 0
"""


class NamespaceError(Exception):
    """A namespace could not be made, or a command in it failed; carries what the command printed."""


def wait_until(condition: Callable[[], bool], what: str, *, timeout_seconds: float = HANG_SECONDS) -> None:
    """Return once `condition()` is true; TimeoutError naming `what` when it never became so."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_seconds:g} s in vain for {what}")
        time.sleep(0.005)


@dataclass(frozen=True, slots=True)
class NamespaceProcess:
    """One process of a namespace: its ids on the host and inside, and its command line (arguments by spaces)."""

    pid: int
    inner_pid: int
    name: str
    command: str


class Namespace:
    """Mount, UTS and PID namespaces with private /etc, /usr (overlays), /run, /tmp, /home, /root and X2Go state.

    The PID namespace is what makes the end sure: its first process dies with this one (its standard input
    ends) or by `stop`, and the kernel then kills all others, daemons included. The network is the host's, so
    that tests reach the server at 127.0.0.1.
    """

    def __init__(self, directory: Path, hostname: str) -> None:
        self.directory = directory
        self._initial_hostname = hostname
        self._holder: subprocess.Popen[bytes] | None = None
        self._pid_namespace = ""
        self._mount_namespace = ""
        self._background: list[subprocess.Popen[bytes]] = []

    @property
    def disk(self) -> Path:
        """What is bound over the namespace's /var/lib/x2go, /var/log, /home, /root and /tmp, seen from the host."""
        return self.directory / "disk"

    def start(self) -> None:
        """Make the namespaces and mounts; NamespaceError with the shell's words when that fails."""
        for place, mode in (
            ("overlay", 0o755),
            ("disk/var/lib/x2go", 0o770),
            ("disk/var/log", 0o755),
            ("disk/home", 0o755),
            ("disk/root", 0o700),
            ("disk/tmp", 0o1777),
        ):
            path = self.directory / place
            path.mkdir(parents=True)
            path.chmod(mode)
        errors = self.directory / "init.log"
        with errors.open("wb") as stderr:
            holder = subprocess.Popen(
                [*_UNSHARE, "sh", "-c", _INIT, "init", str(self.directory), self._initial_hostname],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={"PATH": PATH},
            )
        self._holder = holder
        assert holder.stdout is not None
        if holder.stdout.readline() != b"ready\n":
            self.stop()
            raise NamespaceError(f"no namespaces for {self._initial_hostname}: {errors.read_text().strip()}")
        self._pid_namespace = os.readlink(f"/proc/{holder.pid}/ns/pid_for_children")
        self._mount_namespace = os.readlink(f"/proc/{holder.pid}/ns/mnt")

    def stop(self) -> None:
        """End every process and with them every mount, then remove the directory but for its logs."""
        holder = self._holder
        if holder is None:
            return
        self._holder = None
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.close()
        holder.stdout.close()
        try:
            holder.wait(timeout=5)
        except subprocess.TimeoutExpired:
            holder.kill()
            holder.wait(timeout=5)
        for process in self._background:
            process.wait(timeout=30)
        self._background.clear()
        wait_until(self.is_gone, f"the end of the processes of {self._initial_hostname}")
        shutil.rmtree(self.directory / "overlay")
        for place in ("var/lib", "home", "root", "tmp"):
            shutil.rmtree(self.disk / place)

    def is_running(self) -> bool:
        return self._holder is not None

    def is_gone(self) -> bool:
        """Whether no process is left in these namespaces, and so no mount either."""
        return not self._pids_in("mnt", self._mount_namespace) and not self._pids_in("pid", self._pid_namespace)

    def path(self, inner: str) -> Path:
        """The file that a process in the namespace calls `inner` (absolute; no absolute symlinks in it)."""
        return Path(f"/proc/{self._pid}/root{inner}")

    def enter(self, argv: Sequence[str], *, user: str = "root") -> list[str]:
        """The host command that runs `argv` inside as `user`; dies with the process that ran it."""
        proc = f"/proc/{self._pid}/ns"
        change = ["setpriv", "--pdeathsig", "KILL"]
        if user != "root":
            change += [f"--reuid={user}", f"--regid={user}", "--init-groups"]
        namespaces = [f"--mount={proc}/mnt", f"--uts={proc}/uts", f"--pid={proc}/pid_for_children"]
        return ["nsenter", *namespaces, "--", *change, "--", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        user: str = "root",
        input: bytes | None = None,  # noqa: A002  # subprocess.run's own name for it
        check: bool = True,
        env: Mapping[str, str] | None = None,
        timeout_seconds: float = 60.0,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `argv` inside as `user`, with the environment of a login plus `env`, in `/`.

        Raises NamespaceError with both outputs when `check` and the exit status is not 0.
        """
        done = subprocess.run(
            self.enter(argv, user=user),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            check=False,
            env={**self.login_environment(user), **(env or {})},
            timeout=timeout_seconds,
        )
        if check and done.returncode != 0:
            raise NamespaceError(
                f"{argv[0]} as {user} exited with {done.returncode}: "
                f"{done.stdout.decode(errors='replace')!r} {done.stderr.decode(errors='replace')!r}"
            )
        return done

    def spawn(
        self, argv: Sequence[str], *, user: str = "root", stdout: int | None = None, log: Path
    ) -> subprocess.Popen[bytes]:
        """Start `argv` inside without waiting for it; standard error is appended to `log`."""
        with log.open("ab") as stderr:
            process = subprocess.Popen(
                self.enter(argv, user=user),
                stdin=subprocess.DEVNULL,
                stdout=stderr if stdout is None else stdout,
                stderr=stderr,
                env=self.login_environment(user),
            )
        self._background.append(process)
        return process

    def login_environment(self, user: str) -> dict[str, str]:
        home = "/root" if user == "root" else f"/home/{user}"
        return {"PATH": PATH, "HOME": home, "USER": user, "LOGNAME": user, "LANG": "C.UTF-8"}

    def processes(self) -> tuple[NamespaceProcess, ...]:
        """Every process inside but the first one and what keeps it, as seen now."""
        found = []
        for pid in self._pids_in("pid", self._pid_namespace):
            with contextlib.suppress(OSError, AttributeError):
                status = Path(f"/proc/{pid}/status").read_text()
                command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
                inner = int(re.search(r"^NSpid:.*?(\d+)$", status, re.MULTILINE)[1])  # type: ignore[index]
                parent = int(re.search(r"^PPid:\s(\d+)$", status, re.MULTILINE)[1])  # type: ignore[index]
                name = re.search(r"^Name:\s(.*)$", status, re.MULTILINE)[1]  # type: ignore[index]
                if inner != 1 and not (name == "cat" and self._is_first(parent)):
                    found.append(NamespaceProcess(pid, inner, name, command.decode(errors="replace")))
        return tuple(sorted(found, key=lambda process: process.inner_pid))

    def _is_first(self, pid: int) -> bool:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return False
        return re.search(r"^NSpid:.*\s1$", status, re.MULTILINE) is not None

    @property
    def _pid(self) -> int:
        if self._holder is None:
            raise NamespaceError(f"{self._initial_hostname} is not running")
        return self._holder.pid

    @staticmethod
    def _pids_in(kind: str, namespace: str) -> list[int]:
        pids = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{entry}/ns/{kind}") == namespace:
                        pids.append(int(entry))
        return pids
