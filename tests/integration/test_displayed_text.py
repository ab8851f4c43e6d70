"""No escape of a server, a user, a Redis or a file reaches a terminal, a log or a page: each escape at each output."""

from __future__ import annotations

import contextlib
import http.server
import re
import socketserver
import struct
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import FleetBuilder
from tests.support.escapes import ESCAPES, marked, obeyed
from tests.waiting import HANG_SECONDS, wait_until
from x2gofleet.cli import main
from x2gofleet.connection import client_from_url
from x2gofleet.events import Change, EventKind
from x2gofleet.keys import Keys
from x2gofleet.store import Store

from .test_cli import Terminal

MATE = "stDMATE_dp24"
DRAWN = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\(B|[=>78M])|\r|\x0f")
"""What rich itself sends to a terminal: colours, positions, modes."""


def encoded(text: str) -> str:
    """Return a text that can be stored as UTF-8; of a lone surrogate, what a reader of these bytes finds."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


TEXTS = [encoded(marked(escape)) for escape in ESCAPES.values()]
WHOLE = "".join(TEXTS)


@pytest.fixture
def hostile_fleet(fleet: Any, valkey_url: str, keys: Keys) -> None:
    """A fleet with every escape in whatever servers, users, workers and files can write."""
    profiles = {f"mate {WHOLE}": ["ts01", "ts02", "alice@ts03"], "mate": ["ts01"]}
    fleet.publish(profiles, hostnames={"ts01": WHOLE}, labels={"ts01": [WHOLE]})
    rows = b"".join(
        f"{number}|alice-{50 + number}-1763800000_{MATE}{escape}|{50 + number}|host{escape}|R|"
        f"2026-01-01T00:00:00|0123456789abcdef0123456789abcdef|127.0.0.1|30001|30002|2026-01-01T00:00:00|"
        f"al{escape}ice|100|30003|-1|-1\n".encode("utf-8", "surrogatepass")
        for number, escape in enumerate(ESCAPES.values())
    )
    changes = tuple(Change(EventKind.STARTED, f"alice-50-1763800000_{MATE}{text}", f"al{text}", "R") for text in TEXTS)
    fleet.listing("ts01", "sessions", rows, host_name=WHOLE, changes=changes)
    fleet.listing("ts01", "mounts", "".join(f"alice-50-1_{MATE}|127.0.0.1|/tmp/{text}\n" for text in TEXTS))
    with contextlib.closing(client_from_url(valkey_url)) as client:
        FleetBuilder(Store(client, keys, f"w{WHOLE}")).failure("ts02", error_class=WHOLE, error_text=WHOLE)
    fleet.listing("alice@ts03", "sessions", "")
    fleet.listing("alice@ts03", "desktops", "".join(f"al{text}@:50\n" for text in TEXTS))


COMMANDS = (
    ("status",),
    ("watch",),
    ("sessions",),
    ("sessions", "--profile", f"mate {WHOLE}"),
    ("sessions", f"mate {WHOLE}"),
    ("mounts",),
    ("desktops", "--user", "alice"),
    ("desktops", "--user", WHOLE),
    ("events",),
    ("events", "--server", "ts02"),
    ("refresh", f"none {WHOLE}"),
    ("refresh", "mate", "--timeout", WHOLE),
    ("sessions", "--profile", f"none {WHOLE}"),
    ("events", "--server", WHOLE),
)


@pytest.mark.usefixtures("hostile_fleet")
@pytest.mark.parametrize("how", ["plain", "--json"])
@pytest.mark.parametrize("command", COMMANDS, ids=[f"{each[0]}-{number}" for number, each in enumerate(COMMANDS)])
def test_what_x2gofleet_prints(
    command: tuple[str, ...], how: str, valkey_url: str, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = () if how == "plain" else (how,)
    main([*command, *more, "--redis-url", valkey_url, "--namespace", namespace])
    out, err = capsys.readouterr()
    assert obeyed(out + err) == []
    # Shown they are, as text.
    assert "<<" in out + err


@pytest.mark.usefixtures("hostile_fleet")
@pytest.mark.parametrize("command", [("status",), ("sessions",), ("events",), ("mounts",)], ids=lambda each: each[0])
def test_the_same_where_no_character_is_taken_for_dangerous(
    command: tuple[str, ...], valkey_url: str, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unicodedata, "category", lambda _: "Lu")
        main([*command, "--redis-url", valkey_url, "--namespace", namespace])
    assert len(obeyed("".join(capsys.readouterr()))) > 10


@pytest.mark.usefixtures("hostile_fleet")
@pytest.mark.parametrize("command", [("status",), ("sessions",), ("events",)], ids=lambda each: each[0])
def test_what_x2gofleet_draws_on_a_terminal(command: tuple[str, ...], valkey_url: str, namespace: str) -> None:
    terminal = Terminal(*command, "--redis-url", valkey_url, "--namespace", namespace, columns=200, NO_COLOR="1")
    terminal.end()
    assert obeyed(DRAWN.sub("", terminal.printed)) == []
    assert "<<" in terminal.printed
    # What a colour of the table would look like is not among what rich draws.
    assert "\x1b[31m" not in terminal.printed


class Said(socketserver.ThreadingTCPServer):
    """A server that says something before anything else."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, said: bytes) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    self.request.sendall(said)
                    self.request.recv(100)

        super().__init__(("127.0.0.1", 0), Handler)


def disconnect(text: bytes) -> bytes:
    """A packet by which an SSH server says why it ends the connection (RFC 4253, section 11.1)."""
    payload = b"\x01" + struct.pack(">II", 11, len(text)) + text + struct.pack(">I", 0)
    padding = 16 - (len(payload) + 5) % 8
    return struct.pack(">IB", len(payload) + padding + 1, padding) + payload + bytes(padding)


SAYS: dict[str, Callable[[bytes], bytes]] = {
    "before the version": lambda text: text + b"\r\nSSH-2.0-test\r\n" + disconnect(b"bye"),
    "in the version": lambda text: b"SSH-2.0-test" + text + b"\r\n" + disconnect(b"bye"),
    "instead of the version": lambda text: text + b"\r\n",
    "as its reason to disconnect": lambda text: b"SSH-2.0-test\r\n" + disconnect(text),
}


@pytest.fixture(params=SAYS)
def hostile_inventory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An inventory of a server for each escape."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    public = key.with_suffix(".pub").read_text()
    tables, known = [], []
    with contextlib.ExitStack() as stack:
        for number, escape in enumerate(ESCAPES.values()):
            text = SAYS[request.param](marked(escape).encode("utf-8", "surrogatepass"))
            server = stack.enter_context(Said(text))
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            port = server.server_address[1]
            tables.append(f'[servers.ts{number:02d}]\nhost = "127.0.0.1"\nport = {port}\n')
            known.append(f"[127.0.0.1]:{port} {public}")
        (tmp_path / "known_hosts").write_text("".join(known))
        names = ", ".join(f'"ts{number:02d}"' for number in range(len(tables)))
        path = tmp_path / "fleet.toml"
        path.write_text(
            f'[defaults]\nuser = "root"\nkey_file = "{key}"\nknown_hosts = "{tmp_path}/known_hosts"\ndeadline = 3\n'
            f"[intervals]\nmounts = 0\n{''.join(tables)}[profiles.all]\nservers = [{names}]\n"
        )
        yield path


def test_what_check_prints(hostile_inventory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "x2gofleet_workers", "check", "--inventory", str(hostile_inventory)],
        capture_output=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    found = (done.stdout + done.stderr).decode("utf-8", "surrogateescape")
    assert found.count("FAILED") == len(ESCAPES)
    assert obeyed(found) == []


def logged(inventory: Path, url: str, namespace: str) -> str:
    """Return what a worker logs until it has said of each server that it failed, and has been stopped."""
    log = inventory.with_name("log")
    options = ["--inventory", str(inventory), "--redis-url", url, "--namespace", namespace, "--verbose"]
    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "x2gofleet_workers", "run", *options], stderr=stderr)
    try:
        wait_until(
            lambda: len(set(re.findall(rb"WARNING \S+: (ts\d\d): ", log.read_bytes()))) == len(ESCAPES),
            "each server's failure is logged",
            HANG_SECONDS,
        )
        process.terminate()
        assert process.wait(HANG_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
    return log.read_bytes().decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("hostile_inventory", SAYS, indirect=True)
def test_what_a_worker_logs(hostile_inventory: Path, valkey_url: str, namespace: str) -> None:
    text = logged(hostile_inventory, valkey_url, namespace)
    assert obeyed(text) == []
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ |  ", line) for line in text.splitlines())
    assert len(re.findall(r"^.* worker \S+: stopped$", text, re.MULTILINE)) == 1


def test_what_a_health_check_prints() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = WHOLE.encode("utf-8", "surrogatepass")
            self.send_response(503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/live"
        done = subprocess.run(
            [sys.executable, "-m", "x2gofleet_workers", "healthcheck", "--url", url],
            capture_output=True,
            timeout=HANG_SECONDS,
            check=False,
        )
        server.shutdown()
        thread.join()
    text = (done.stdout + done.stderr).decode("utf-8", "surrogateescape")
    assert done.returncode == 1
    assert "<<" in text
    assert obeyed(text) == []
