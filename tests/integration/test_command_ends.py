"""How every command ends: closed, full and broken stdout and stderr, Ctrl-C at any moment, endless password files."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from tests.waiting import HANG_SECONDS, wait_until
from x2gofleet_entry import EXIT_INTERRUPTED, EXIT_OUTPUT_LOST

INTERRUPTED = Path(__file__).parents[1] / "support" / "interrupted"
READER, WORKER = "reader", "worker"
LOST = "what it prints can't be written"

READER_COMMANDS: dict[str, tuple[str, ...]] = {
    "status": ("status",),
    "sessions": ("sessions",),
    "desktops": ("desktops", "--user", "alice"),
    "mounts": ("mounts",),
    "refresh": ("refresh", "mate", "--timeout", "0.2"),
    "events": ("events",),
    "watch": ("watch",),
    "acl": ("acl",),
    "status --json": ("status", "--json"),
    "sessions --json": ("sessions", "--json"),
    "events --json": ("events", "--json"),
    "watch --json": ("watch", "--json"),
    "acl --json": ("acl", "--json"),
    "reader --help": ("--help",),
    "reader --version": ("--version",),
    "reader nonsense": ("nonsense",),
}
WORKER_COMMANDS: dict[str, tuple[str, ...]] = {
    "healthcheck": ("healthcheck", "--url", "http://127.0.0.1:1/live"),
    "check": ("check", "--inventory", "{folder}/fleet.toml"),
    "simulate": ("simulate", "--servers", "1", "--write-inventory", "{folder}/simulated.toml", "--duration", "0.1"),
    "demo": ("demo", "--servers", "1", "--sessions", "1", "--seconds", "0.1"),
    "probe": ("probe",),
    "worker --help": ("--help",),
    "worker --version": ("--version",),
    "worker nonsense": ("nonsense",),
}
COMMANDS = [*((READER, name) for name in READER_COMMANDS), *((WORKER, name) for name in WORKER_COMMANDS)]
INVENTORY = """\
[defaults]
user = "root"
key_file = "{folder}/key"
known_hosts = "{folder}/known_hosts"
deadline = 60
[servers.ts01]
host = "127.0.0.1"
port = {port}
[profiles.all]
servers = ["ts01"]
"""


def script(entry: str) -> list[str]:
    """Return what the installed script of a command does."""
    return [sys.executable, "-c", f"import sys; from x2gofleet_entry import {entry}; sys.exit({entry}())"]


class Runner:
    """Runs commands on a fleet that has something to print."""

    def __init__(self, folder: Path, url: str, namespace: str) -> None:
        self.folder = folder
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("X2GOFLEET_")}
        self._environment |= {"X2GOFLEET_REDIS_URL": url, "X2GOFLEET_NAMESPACE": namespace, "COLUMNS": "100"}
        self._running: list[subprocess.Popen[str]] = []

    def start(
        self, entry: str, arguments: tuple[str, ...], *, env: dict[str, str] | None = None, **options: Any
    ) -> Any:
        """Start a command; stdout and stderr are pipes where nothing else is said."""
        filled = [each.format(folder=self.folder) for each in arguments]
        chosen = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
        process = subprocess.Popen([*script(entry), *filled], text=True, env=self._environment | (env or {}), **chosen)
        self._running.append(process)
        return process

    def run(self, entry: str, arguments: tuple[str, ...], **options: Any) -> tuple[int, str, str]:
        """Run a command to its end; return status, stdout and stderr."""
        process = self.start(entry, arguments, **options)
        out, err = process.communicate(timeout=HANG_SECONDS)
        return process.returncode, out or "", err or ""

    def close(self) -> None:
        """End what still runs."""
        for process in self._running:
            process.kill()
            process.communicate()


@pytest.fixture
def runner(tmp_path: Path, valkey_url: str, namespace: str, fleet: Any, samples: Path) -> Iterator[Runner]:
    fleet.publish({"mate": ["ts01"]})
    fleet.listing("ts01", "sessions", samples / "root-sqlite.txt")
    fleet.listing("ts01", "mounts", "")
    (tmp_path / "key").write_text("none")
    (tmp_path / "fleet.toml").write_text(INVENTORY.format(folder=tmp_path, port=1))
    made = Runner(tmp_path, valkey_url, namespace)
    yield made
    made.close()


def of(command: tuple[str, str]) -> tuple[str, tuple[str, ...]]:
    entry, name = command
    return entry, (READER_COMMANDS if entry == READER else WORKER_COMMANDS)[name]


@pytest.mark.parametrize("command", COMMANDS, ids=[name for _, name in COMMANDS])
def test_stdout_that_takes_nothing_is_one_line_and_a_status(command: tuple[str, str], runner: Runner) -> None:
    entry, arguments = of(command)
    usual, printed, said = runner.run(entry, arguments)
    assert "Traceback" not in said
    with ExitStack() as stack:
        full = stack.enter_context(open("/dev/full", "w"))
        results = {
            "full": runner.run(entry, arguments, stdout=full),
            "closed": runner.run(entry, arguments, stdout=None, preexec_fn=lambda: os.close(1)),
        }
        reading, writing = os.pipe()
        os.close(reading)
        stack.callback(os.close, writing)
        broken = runner.run(entry, arguments, stdout=writing)
    for how, (status, out, err) in results.items():
        assert out == "", how
        if printed:
            assert (status, err.count("\n")) == (EXIT_OUTPUT_LOST, 1), (how, err)
            assert LOST in err, how
            assert {"full": "No space left", "closed": "stdout is closed"}[how] in err
        else:
            assert (status, err) == (usual, said), how
    assert broken == ((0, "", "") if printed else (usual, "", said))


@pytest.mark.parametrize("command", COMMANDS, ids=[name for _, name in COMMANDS])
def test_stderr_that_takes_nothing_changes_neither_answer_nor_status(command: tuple[str, str], runner: Runner) -> None:
    entry, arguments = of(command)
    usual, printed, _ = runner.run(entry, arguments)
    with open("/dev/full", "w") as full:
        for how, result in {
            "full": runner.run(entry, arguments, stderr=full),
            "closed": runner.run(entry, arguments, stderr=None, preexec_fn=lambda: os.close(2)),
            "all closed": runner.run(entry, arguments, stdin=None, stderr=None, preexec_fn=lambda: os.closerange(0, 1)),
        }.items():
            assert result[0] == usual, how
            # The sessions of demo come and go, ports and processes have other numbers.
            assert shape_of(result[1]) == shape_of(printed), (how, result[1])


def shape_of(printed: str) -> str:
    return re.sub(r"[0-9]+", "0", " ".join(printed.partition("\n")[0].split()))


@pytest.mark.parametrize("stdout", ["full", "closed", "broken"])
def test_a_worker_whose_embedded_valkey_can_not_be_told(stdout: str, runner: Runner) -> None:
    arguments = ("run", "--inventory", "{folder}/fleet.toml", "--embedded")
    with ExitStack() as stack:
        reading, writing = os.pipe()
        os.close(reading)
        stack.callback(os.close, writing)
        full = stack.enter_context(open("/dev/full", "w"))
        options: dict[str, Any] = {
            "full": {"stdout": full},
            "closed": {"stdout": None, "preexec_fn": lambda: os.close(1)},
            "broken": {"stdout": writing},
        }[stdout]
        status, _, err = runner.run(WORKER, arguments, **options)
    assert status == (0 if stdout == "broken" else EXIT_OUTPUT_LOST)
    assert err.count("\n") == (0 if stdout == "broken" else 1), err


# Ctrl-C

MOMENTS = {
    READER: ("x2gofleet", "redis", "x2gofleet.cache", "x2gofleet.cli.app", "x2gofleet.cli.arguments", "exit"),
    WORKER: (
        "x2gofleet",
        "x2gofleet_workers.cli",
        "paramiko",
        "apscheduler",
        "uvicorn",
        "x2gofleet_workers.worker",
        "exit",
    ),
}
LAST_WORDS = {READER: ("status",), WORKER: ("demo", "--servers", "1", "--sessions", "1", "--seconds", "0.1")}


def watched(**env: str) -> dict[str, str]:
    """Return the environment of a command that tests/support/interrupted looks after."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(INTERRUPTED), os.environ.get("PYTHONPATH", "")])), **env}


@pytest.mark.parametrize(("entry", "moment"), [(entry, moment) for entry in MOMENTS for moment in MOMENTS[entry]])
def test_ctrl_c_while_it_starts_or_ends(entry: str, moment: str, runner: Runner) -> None:
    status, _, err = runner.run(entry, LAST_WORDS[entry], env=watched(INTERRUPT_AT=moment))
    assert (status, err) == (EXIT_INTERRUPTED, "")


@pytest.fixture
def silent_server(tmp_path: Path) -> Iterator[Path]:
    """The inventory of a server that takes connections and says nothing."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        key.write_private_key(tmp_path / "key")
        public = key.export_public_key().decode()
        (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
        path = tmp_path / "hanging.toml"
        path.write_text(INVENTORY.format(folder=tmp_path, port=port))
        yield path


RUNNING: dict[str, tuple[str, tuple[str, ...], int]] = {
    "refresh": (READER, ("refresh", "mate", "--timeout", "600"), EXIT_INTERRUPTED),
    "events --follow": (READER, ("events", "--follow"), 0),
    "events --follow --json": (READER, ("events", "--follow", "--json"), 0),
    "check": (WORKER, ("check", "--inventory", "{folder}/hanging.toml"), EXIT_INTERRUPTED),
    "simulate": (WORKER, ("simulate", "--servers", "1", "--write-inventory", "{folder}/simulated.toml"), 0),
    "demo": (WORKER, ("demo", "--servers", "2", "--sessions", "2", "--seconds", "600"), EXIT_INTERRUPTED),
    "run": (WORKER, ("run", "--inventory", "{folder}/fleet.toml"), 0),
}


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize("after_seconds", [0.0, 0.5, 2.0])
def test_ctrl_c_while_it_runs(
    name: str, after_seconds: float, runner: Runner, silent_server: Path, tmp_path: Path
) -> None:
    """There is no traceback whenever Ctrl-C comes; a running command ends with the status that --help gives."""
    entry, arguments, usual = RUNNING[name]
    begun = tmp_path / "begun"
    process = runner.start(entry, arguments, env=watched(BEGUN=str(begun)))
    wait_until(begun.exists, "the command is being imported")
    time.sleep(after_seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode in {usual, EXIT_INTERRUPTED}
    assert "Traceback" not in err
    assert "KeyboardInterrupt" not in err


# Password files

ENDLESS = {
    "/dev/zero": "a device",
    "/dev/full": "a device",
    "{folder}/pipe": "a pipe",
    "{folder}": "a directory",
    "{folder}/sparse": "",
    "{folder}/missing": "there is no such file",
}


@pytest.mark.parametrize("file", ENDLESS)
@pytest.mark.parametrize("of_what", ["of Redis", "of Redis, worker", "of check", "of users"])
def test_password_files_that_are_none_are_one_line(file: str, of_what: str, runner: Runner, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(10**12)
    path = file.format(folder=tmp_path)
    inventory = str(tmp_path / "fleet.toml")
    url = "redis://user@127.0.0.1:1/0"
    entry, arguments = {
        "of Redis": (READER, ("status", "--redis-url", url)),
        "of Redis, worker": (WORKER, ("run", "--inventory", inventory, "--redis-url", url)),
        "of check": (WORKER, ("check", "--inventory", inventory, "--redis-url", url)),
        "of users": (READER, ("acl", "--server-version", "7.0", "--passwords", path)),
    }[of_what]
    status, out, err = runner.run(entry, arguments, env={"X2GOFLEET_REDIS_PASSWORD_FILE": path})
    assert status == 2, (out, err)
    assert err.count("\n") == 1, err
    assert path in err
    assert ENDLESS[file] in err
