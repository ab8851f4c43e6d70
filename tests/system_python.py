"""The interpreter that Debian installs python-x2go and x2gobroker for, with this library and a redis-py on its path."""

from __future__ import annotations

import functools
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import pytest

SYSTEM_PYTHON = Path("/usr/bin/python3")
REPOSITORY = Path(__file__).parent.parent
ANSWER_SECONDS = 90.0

# Runs what each line of stdin holds, and answers in one line: {"value": ...} or {"raised": type, "text": ...}.
# x2go prints on stdout now and then: the answers go to a descriptor of their own. Once it has been imported its threads
# are greenlets, which run on while this one waits in select alone.
SIDE = """
import json, os, select, sys, traceback

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
scope = {"__name__": "__main__"}

def lines():
    buffer = b""
    while True:
        while b"\\n" not in buffer:
            select.select([0], [], [])
            data = os.read(0, 65536)
            if not data:
                return
            buffer += data
        line, _, buffer = buffer.partition(b"\\n")
        yield line

for line in lines():
    task = json.loads(line)
    try:
        exec(task["run"], scope)
        answer = {"value": eval(task["value"], scope)}
    except BaseException as exc:
        traceback.print_exc()
        answer = {"raised": type(exc).__name__, "text": str(exc)}
    answers.write(json.dumps(answer) + "\\n")
    answers.flush()
os._exit(0)
"""


class RaisedThere(AssertionError):
    """An exception of the other interpreter; ``name`` is that of its type."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        super().__init__(f"{name}: {text}")


@functools.cache
def redis_for_system_python() -> Path:
    """Install redis-py for the system's interpreter into a directory of its own, once per process; return that."""
    directory = Path(tempfile.mkdtemp(prefix="x2gofleet-system-python-"))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", SYSTEM_PYTHON, "install", "-q", "--disable-pip-version-check"),
            *("--no-input", "--root-user-action", "ignore", "--target", directory, "redis>=5.3"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"redis-py could not be installed for {SYSTEM_PYTHON}: {done.stderr}"
    return directory


def require(package: str, debian: str) -> None:
    """Skip the test where the system's interpreter lacks a package; fail it there with X2GOFLEET_REQUIRE_E2E=1."""
    probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    found = SYSTEM_PYTHON.exists() and subprocess.run([SYSTEM_PYTHON, "-I", "-c", probe], timeout=60, check=False)
    if found and found.returncode == 0:
        return
    lacking = f"{SYSTEM_PYTHON} has no {package}: apt-get install {debian}"
    if os.environ.get("X2GOFLEET_REQUIRE_E2E") == "1":
        pytest.fail(lacking, pytrace=False)
    pytest.skip(lacking)


class SystemPython:
    """A process of the system's interpreter that runs what it is told; use as a context manager."""

    def __init__(self, home: Path, *, arguments: tuple[str, ...] = ()) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.errors = home / "system-python.log"
        path = os.pathsep.join([str(REPOSITORY), str(redis_for_system_python())])
        environment = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": path, "LC_ALL": "C.UTF-8"}
        with self.errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [SYSTEM_PYTHON, "-W", "ignore", *arguments, "-c", SIDE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=home,
            )

    def run(self, program: str, value: str = "None") -> Any:
        """Run statements there, then return the JSON value of an expression; raises RaisedThere."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"run": program, "value": value}).encode() + b"\n")
        self._process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            assert selector.select(ANSWER_SECONDS), f"no answer within {ANSWER_SECONDS:g} s\n{self._tail()}"
        line = self._process.stdout.readline()
        assert line, f"it ended\n{self._tail()}"
        answer = json.loads(line)
        if "raised" in answer:
            raise RaisedThere(answer["raised"], f"{answer['text']}\n{self._tail()}")
        return answer["value"]

    def value(self, expression: str) -> Any:
        """Return the JSON value of an expression there."""
        return self.run("", expression)

    def _tail(self) -> str:
        return self.errors.read_text(errors="replace")[-3000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        deadline = time.monotonic() + 10
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                self._process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
