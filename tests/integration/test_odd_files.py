"""The commands of a worker with files of every odd sort: they end with one line and status 2, and never wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.odd_files import LATIN_1, ODD, OddFile
from tests.waiting import HANG_SECONDS

COMMANDS = {
    "check": ("check",),
    "run": ("run", "--redis-url", "redis://127.0.0.1:1/0"),
}


def done(folder: Path, command: str, inventory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "x2gofleet_workers", *COMMANDS[command], "--inventory", str(inventory)],
        env={**os.environ, **environment},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("odd", [*ODD, LATIN_1], ids=lambda odd: odd.name)
def test_an_inventory_of_every_odd_sort(tmp_path: Path, odd: OddFile) -> None:
    odd.make(tmp_path / "fleet.toml", "[defaults]\n")
    for command in COMMANDS:
        ended = done(tmp_path, command, tmp_path / "fleet.toml")
        assert ended.returncode == 2, ended.stderr
        (line,) = ended.stderr.splitlines()
        assert line.startswith(f"x2gofleet-worker: {tmp_path / 'fleet.toml'}")
        assert odd.said in line


@pytest.mark.parametrize("kind", ["x2gobroker", "x2goclient"])
def test_an_import_of_a_pipe_and_of_zeros(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (str(tmp_path / "pipe"), "/dev/zero"):
        (tmp_path / "fleet.toml").write_text(f'[import]\n{kind} = "{name}"\n')
        ended = done(tmp_path, "check", tmp_path / "fleet.toml")
        assert ended.returncode == 2
        (line,) = ended.stderr.splitlines()
        assert line.startswith(f"x2gofleet-worker: {name}: it is a ")


def test_a_password_file_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    text = '[defaults]\nuser = "root"\nkey_file = "k"\nknown_hosts = "h"\n[servers.a]\nhost = "127.0.0.1"\nport = 1\n'
    (tmp_path / "fleet.toml").write_text(text)
    ended = done(tmp_path, "run", tmp_path / "fleet.toml", X2GOFLEET_REDIS_PASSWORD_FILE=str(tmp_path / "pipe"))
    assert ended.returncode == 2
    assert "it is a pipe, not a regular file" in ended.stderr
    assert "Traceback" not in ended.stderr
