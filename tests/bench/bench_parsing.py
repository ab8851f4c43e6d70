"""Parsing and reading sessions against python-x2go's own parser, interleaved in one process.

Run as ``python tests/bench/bench_parsing.py``; ``run()`` gives the rows of the table to a collector. Both
sides start from a server's bytes and read every attribute they have (ours also client, age, server).
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from x2gofleet.model import SessionList
from x2gofleet.parsing import strip_age

PYTHON_X2GO = Path("/usr/lib/python3/dist-packages/x2go/backends/info/plain.py")
SESSIONS = 50
ROUNDS = 600

Row = tuple[str, str, float, str]


def load_python_x2go() -> Any:
    """Return python-x2go's module of session infos, loaded from its file: nothing else of it is needed."""
    spec = importlib.util.spec_from_file_location("python_x2go_plain", PYTHON_X2GO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sessions_stdout(count: int = SESSIONS, *, fields: int = 16) -> bytes:
    """Return a listing of ``count`` sessions of as many users, as x2golistsessions_root prints it."""
    lines = []
    for number in range(count):
        display, port = 50 + number, 35001 + 10 * number
        name = f"user{number}-{display}-{1763800000 + number}_stDMATE_dp24"
        row = [str(1368 + number), name, str(display), "ts01", "R", "2026-11-22T20:24:30", f"{number:032x}"]
        row += ["192.0.2.17", str(port), str(port + 1), "2026-11-22T20:24:31", f"user{number}", "2728"]
        row += [str(port + 2), "-1", "-1"]
        lines.append("|".join(row[:fields]) + "\n")
    return "".join(lines).encode()


def read_ours(sessions: SessionList) -> None:
    for info in sessions.values():
        _ = (
            info.agent_pid,
            info.name,
            info.display,
            info.hostname,
            info.status,
            info.date_created,
            info.cookie,
        )
        _ = (info.graphics_port, info.snd_port, info.date_suspended, info.username, info.sshfs_port)
        _ = (info.tekictrl_port, info.tekidata_port, info.local_container)
        _ = (info.client, info.age_seconds, info.server)


def read_theirs(sessions: dict[str, Any]) -> None:
    for info in sessions.values():
        _ = (
            info.agent_pid,
            info.name,
            info.display,
            info.hostname,
            info.status,
            info.date_created,
            info.cookie,
        )
        _ = (info.graphics_port, info.snd_port, info.date_suspended, info.username, info.sshfs_port)
        _ = (info.tekictrl_port, info.tekidata_port, info.local_container)


def median_ratio(ours: Callable[[], object], theirs: Callable[[], object], *, rounds: int = ROUNDS) -> float:
    """Return the median of ours / theirs over interleaved rounds, each first in half of them."""
    ratios = []
    for number in range(rounds):
        if number % 2:
            our_seconds, their_seconds = _seconds(ours), _seconds(theirs)
        else:
            their_seconds, our_seconds = _seconds(theirs), _seconds(ours)
        ratios.append(our_seconds / their_seconds)
    return statistics.median(ratios)


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def run() -> list[Row]:
    """Return rows of (what, baseline, ratio, goal); an empty list where python-x2go is not installed."""
    if not PYTHON_X2GO.exists():
        return []
    python_x2go = load_python_x2go()
    rows: list[Row] = []
    for fields in (16, 14):
        stdout = sessions_stdout(fields=fields)
        ratio = median_ratio(
            lambda stdout=stdout: read_ours(SessionList.from_stdout(stdout, server="ts01")),  # type: ignore[misc]
            lambda stdout=stdout: read_theirs(python_x2go.X2GoServerSessionList(stdout.decode()).get_sessions()),  # type: ignore[misc]
        )
        what = f"parse {SESSIONS} sessions of {fields} fields, read every attribute"
        rows.append((what, "python-x2go's parser", ratio, "<= 1.0"))
    stdout = sessions_stdout()
    ratio = median_ratio(lambda: strip_age(stdout), lambda: SessionList.from_stdout(stdout))
    rows.append((f"strip_age of {SESSIONS} sessions", "parsing them", ratio, "<= 0.5"))
    return rows


def main() -> None:
    rows = run()
    if not rows:
        print(f"python-x2go is not installed ({PYTHON_X2GO}): no baseline to compare with")
    for what, baseline, ratio, goal in rows:
        print(f"{what:<55} vs {baseline:<22} {ratio:5.2f}  (goal {goal})")


if __name__ == "__main__":
    main()
