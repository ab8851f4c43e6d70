"""health.py on a real Valkey: alive is what a worker of this host told lately, and nothing else."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
import redis
from x2gofleet_workers import health

from x2gofleet.store import Store

LIFE_MS = 60_000


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, valkey_url: str, namespace: str) -> Callable[[], int]:
    monkeypatch.setenv("X2GOFLEET_REDIS_URL", valkey_url)
    monkeypatch.setenv("X2GOFLEET_NAMESPACE", namespace)
    return health.main


def test_a_worker_that_tells_of_this_host_is_alive(
    asked: Callable[[], int], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.heartbeat({"host": socket.gethostname()}, ttl_ms=LIFE_MS)
    assert asked() == 0
    assert capsys.readouterr().out == f"alive: {store.worker_id}\n"


def test_a_worker_of_another_host_does_not_count(
    asked: Callable[[], int], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.heartbeat({"host": "elsewhere"}, ttl_ms=LIFE_MS)
    assert asked() == 1
    assert f"no worker on {socket.gethostname()}" in capsys.readouterr().out


def test_a_worker_that_is_silent_for_too_long_is_not_alive(
    asked: Callable[[], int], store: Store, redis_client: redis.Redis
) -> None:
    store.heartbeat({"host": socket.gethostname()}, ttl_ms=LIFE_MS)
    redis_client.delete(store.keys.worker(store.worker_id))
    assert asked() == 1


def test_a_worker_that_left_is_not_alive(asked: Callable[[], int], store: Store) -> None:
    store.heartbeat({"host": socket.gethostname()}, ttl_ms=LIFE_MS)
    store.leave()
    assert asked() == 1


def test_redis_out_of_reach_is_said_without_the_password(
    asked: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("X2GOFLEET_REDIS_URL", "unix://:hunter2@/nonexistent/socket?db=0")
    assert asked() == 1
    said = capsys.readouterr().out
    assert said.startswith("unix://:***@/nonexistent/socket?db=0: ")
    assert "hunter2" not in said


def test_a_url_that_is_none_is_unhealthy_without_a_traceback(
    asked: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("X2GOFLEET_REDIS_URL", "https://example.org")
    assert asked() == 1
    assert capsys.readouterr().out
