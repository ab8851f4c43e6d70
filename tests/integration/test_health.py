"""The health check: what a worker of this host says of itself, over HTTP or by its heartbeat in Redis."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import redis
from x2gofleet_workers import cli, health
from x2gofleet_workers.endpoint import Endpoint
from x2gofleet_workers.metrics import PrometheusMetrics

from x2gofleet.store import Store

LIFE_MS = 60_000
HOST = socket.gethostname()


@pytest.fixture(params=["module", "command"])
def asked(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, valkey_url: str, namespace: str
) -> Callable[[], int]:
    """Either spelling of the check."""
    monkeypatch.setenv("X2GOFLEET_REDIS_URL", valkey_url)
    monkeypatch.setenv("X2GOFLEET_NAMESPACE", namespace)
    monkeypatch.delenv("X2GOFLEET_METRICS_PORT", raising=False)
    return (lambda: health.main([])) if request.param == "module" else (lambda: cli.main(["healthcheck"]))


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is wrong with the worker that X2GOFLEET_METRICS_PORT points to."""
    problems = [""]
    endpoint = Endpoint(PrometheusMetrics(), lambda: problems[0], lambda: "never asked")
    endpoint.start()
    monkeypatch.delenv("X2GOFLEET_METRICS_ADDRESS", raising=False)
    monkeypatch.setenv("X2GOFLEET_METRICS_PORT", endpoint.url.rpartition(":")[2])
    yield problems
    endpoint.stop()


def test_a_worker_that_tells_of_this_host_is_alive(
    asked: Callable[[], int], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.heartbeat({"host": HOST}, ttl_ms=LIFE_MS)
    assert asked() == 0
    assert capsys.readouterr().out == f"alive: {store.worker_id}\n"


def test_a_worker_of_another_host_does_not_count(
    asked: Callable[[], int], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.heartbeat({"host": "elsewhere"}, ttl_ms=LIFE_MS)
    assert asked() == 1
    assert capsys.readouterr().out == f"no worker on {HOST} has sent Redis a heartbeat lately\n"


def test_a_worker_that_is_silent_for_too_long_is_not_alive(
    asked: Callable[[], int], store: Store, redis_client: redis.Redis
) -> None:
    store.heartbeat({"host": HOST}, ttl_ms=LIFE_MS)
    redis_client.delete(store.keys.worker(store.worker_id))
    assert asked() == 1


def test_a_worker_that_left_is_not_alive(asked: Callable[[], int], store: Store) -> None:
    store.heartbeat({"host": HOST}, ttl_ms=LIFE_MS)
    store.leave()
    assert asked() == 1


def test_redis_out_of_reach_is_unknown_and_said_without_the_password(
    asked: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("X2GOFLEET_REDIS_URL", "unix://:hunter2@/dev/null/socket?db=0")
    assert asked() == health.EXIT_UNKNOWN
    said = capsys.readouterr().out
    assert said.startswith(f"whether a worker lives on {HOST} is unknown: unix://***@/dev/null/socket?db=0: ")
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X2GOFLEET_REDIS_URL", "https://example.org"),
        ("X2GOFLEET_NAMESPACE", "no name"),
        ("X2GOFLEET_REDIS_PASSWORD_FILE", "/nonexistent/password"),
    ],
)
def test_a_setting_that_can_not_be_used_is_unknown_without_a_traceback(
    asked: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert asked() == health.EXIT_UNKNOWN
    assert "is unknown" in capsys.readouterr().out


def test_the_worker_itself_is_asked_where_its_port_is_known_whatever_redis_does(
    asked: Callable[[], int], live: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for url in (os.environ["X2GOFLEET_REDIS_URL"], "unix:///dev/null/socket"):
        monkeypatch.setenv("X2GOFLEET_REDIS_URL", url)
        live[0] = ""
        assert asked() == 0
        assert capsys.readouterr().out == "ok\n"
        live[0] = "the watch loop has stood still for 40 s"
        assert asked() == 1
        assert capsys.readouterr().out == f"{live[0]}\n"


def test_the_module_imports_nothing_but_the_reader() -> None:
    program = (
        "import sys, x2gofleet_workers.health\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & {'paramiko', 'apscheduler',"
        " 'prometheus_client', 'rich'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "\n"
