"""The servers that the contract is tested on are what they are called, and what is missing is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from tests.servers import VERSIONS, RedisServers, Version, running_server


@pytest.mark.parametrize("name", VERSIONS)
def test_a_server_is_of_its_version(redis_servers: RedisServers, name: str) -> None:
    with redis.Redis.from_url(redis_servers.url(name)) as client:
        info = client.info("server")
    software, _, release = name.partition("-")
    assert info[f"{software}_version"].startswith(f"{release}.")


def test_a_server_takes_further_options() -> None:
    with running_server(VERSIONS["valkey-9"], {"maxmemory": "50mb"}) as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.config_get("maxmemory") == {"maxmemory": "52428800"}
        assert server.folder.exists()
    assert not server.folder.exists()


def test_a_server_that_is_not_installed_is_a_skip_that_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Version("redis", "7.0", "apt-get install redis-server", lambda: None)
    monkeypatch.delenv("X2GOFLEET_REQUIRE_E2E", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"redis-7.0 is not installed: apt-get install redis-server"):
        missing.binary()
    monkeypatch.setenv("X2GOFLEET_REQUIRE_E2E", "1")
    with pytest.raises(pytest.fail.Exception, match=r"X2GOFLEET_REQUIRE_E2E=1, but redis-7.0 is not installed"):
        missing.binary()


def test_a_server_of_another_version_does_not_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("X2GOFLEET_REQUIRE_E2E", raising=False)
    valkey: Path = VERSIONS["valkey-9"].binary()
    other = Version("redis", "7.0", "apt-get install redis-server", lambda: valkey)
    with pytest.raises(pytest.skip.Exception, match=rf"redis-7.0 is not installed: .*{valkey.name} is 9\."):
        other.binary()
