"""urls: what a Redis URL and the environment say, what is refused and how, and that no password is ever shown."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from x2gofleet.connection import async_link_from_url, link_from_url
from x2gofleet.connection.urls import Credentials, RedisUrl, TlsFiles, redact_url, url_from_environment


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "USERNAME", "PASSWORD", "PASSWORD_FILE"):
        monkeypatch.delenv(f"X2GOFLEET_REDIS_{name}", raising=False)


def test_the_url_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert url_from_environment() == "redis://127.0.0.1:6379/0"
    monkeypatch.setenv("X2GOFLEET_REDIS_URL", "")
    assert url_from_environment() == "redis://127.0.0.1:6379/0"
    monkeypatch.setenv("X2GOFLEET_REDIS_URL", "unix:///run/valkey.sock")
    assert url_from_environment() == "unix:///run/valkey.sock"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:s3cret@127.0.0.1:6379/0", "redis://:***@127.0.0.1:6379/0"),
        ("redis://reader:s3cret@[::1]:6379/2", "redis://reader:***@[::1]:6379/2"),
        ("redis://reader:s3@cret@h/0", "redis://reader:***@h/0"),
        ("unix://reader:s3cret@/run/valkey.sock?db=1", "unix://reader:***@/run/valkey.sock?db=1"),
        ("redis://reader@h:1/0", "redis://reader@h:1/0"),
        ("unix:///run/valkey.sock?db=1&password=s3cret", "unix:///run/valkey.sock?db=1&password=***"),
        ("redis://h/0?username=reader&password=s3cret", "redis://h/0?username=reader&password=***"),
        ("redis://h/0?PASSWORD=s3cret", "redis://h/0?PASSWORD=***"),
        ("redis+sentinel://w:s3cret@h1,h2/mymaster", "redis+sentinel://w:***@h1,h2/mymaster"),
        ("redis+sentinel://h1/m?sentinel_password=s3cret&db=1", "redis+sentinel://h1/m?sentinel_password=***&db=1"),
        ("redis://:s3/cret@h/0", "redis://***@h/0"),
        ("redis://:s3#cret@h/0", "redis://***@h/0"),
        ("reader:s3cret@h", "reader:***@h"),
    ],
)
def test_a_shown_url_has_no_password(url: str, shown: str) -> None:
    assert redact_url(url) == shown


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "path", "master", "database"),
    [
        ("redis://h", "node", (("h", 6379),), "", "", 0),
        ("redis://", "node", (("localhost", 6379),), "", "", 0),
        ("redis://[::1]:7000/3", "node", (("::1", 7000),), "", "", 3),
        ("redis://h/1?db=2", "node", (("h", 6379),), "", "", 2),
        ("rediss://h:6380/1", "node", (("h", 6380),), "", "", 1),
        ("unix:///run/a%20b.sock?db=4", "unix", (), "/run/a b.sock", "", 4),
        (
            "redis+sentinel://h1:26379,[::2],h3/mymaster/1",
            "sentinel",
            (("h1", 26379), ("::2", 26379), ("h3", 26379)),
            "",
            "mymaster",
            1,
        ),
        ("rediss+sentinel://h1/mymaster", "sentinel", (("h1", 26379),), "", "mymaster", 0),
        ("redis+cluster://h1:7000,h2:7001", "cluster", (("h1", 7000), ("h2", 7001)), "", "", 0),
        ("rediss+cluster://h1/0", "cluster", (("h1", 6379),), "", "", 0),
    ],
)
def test_what_a_url_says(
    url: str, kind: str, hosts: tuple[tuple[str, int], ...], path: str, master: str, database: int
) -> None:
    parsed = RedisUrl.parse(url)
    assert (parsed.kind, parsed.hosts, parsed.path, parsed.master, parsed.database) == (
        kind,
        hosts,
        path,
        master,
        database,
    )
    assert (parsed.tls is not None) == url.startswith("rediss")
    assert parsed.credentials == Credentials()


def test_tls_files() -> None:
    parsed = RedisUrl.parse("rediss://h?ssl_ca_certs=/a.pem&ssl_certfile=/b.pem&ssl_keyfile=/c.pem")
    assert parsed.tls == TlsFiles("/a.pem", "/b.pem", "/c.pem")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "its scheme is none of"),
        ("127.0.0.1:6379", "its scheme is none of"),
        ("http://127.0.0.1:6379/0", "its scheme is none of"),
        ("redis://:s3cret@127.0.0.1:port/0", "'127.0.0.1:port' is no HOST:PORT"),
        ("redis://:s3cret@h:70000/0", "is no HOST:PORT"),
        ("redis://h1,h2/0", "it names several hosts"),
        ("redis+cluster://h1,,h2", "one of its hosts is empty"),
        ("redis://127.0.0.1:6379/zero", "the database 'zero' is no number"),
        ("redis://127.0.0.1:6379/0/1", "is no number"),
        ("redis+cluster://h/1", "no database but 0"),
        ("redis+sentinel://h1", "the name of the master is missing"),
        ("unix://", "three slashes"),
        ("unix://run/x.sock", "three slashes"),
        ("unix:///run/x.sock?db=zero", "is no number"),
        ("redis://127.0.0.1/0?socket_timeout=60", "unknown option 'socket_timeout'"),
        ("redis://127.0.0.1/0?decode_responses=yes", "unknown option"),
        ("redis://127.0.0.1/0?password=s3cret&protocol=3", "unknown option 'protocol'"),
        ("redis://127.0.0.1/0?ssl_ca_certs=/x", "unknown option 'ssl_ca_certs'"),
        ("redis://127.0.0.1/0?db", "NAME=VALUE"),
        ("rediss://h?ssl_cert_reqs=none", "always verified: name your CA by ssl_ca_certs"),
        ("rediss://h?ssl_check_hostname=false", "always verified"),
        ("redis://:s3#cret@h/0", "percent-encoded"),
        ("redis://:s3/cret@h/0", "percent-encoded"),
        ("redis://:s3?cret@h/0", "percent-encoded"),
        ("redis://:s3cret@[::1/0", "can't be understood"),
        ("rediss://h?ssl_ca_certs=/nonexistent/ca.pem", "/nonexistent/ca.pem can't be read"),
        ("rediss://h?ssl_keyfile=/etc/hostname", "ssl_keyfile needs ssl_certfile"),
        (f"rediss://h?ssl_ca_certs={__file__}", "holds no CA certificate in PEM"),
        (f"rediss://h?ssl_certfile={__file__}", "not a certificate and its key"),
    ],
)
@pytest.mark.parametrize("make", [link_from_url, async_link_from_url])
def test_another_url_is_refused_without_its_password(url: str, said: str, make: object) -> None:
    with pytest.raises(ValueError) as caught:
        make(url)  # type: ignore[operator]
    assert said in str(caught.value)
    assert "s3" not in str(caught.value)


def credentials(url: str) -> Credentials:
    return RedisUrl.parse(url).credentials


def test_the_url_goes_before_the_file_and_the_file_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("X2GOFLEET_REDIS_USERNAME", "of-env")
    monkeypatch.setenv("X2GOFLEET_REDIS_PASSWORD", "p-env")
    assert credentials("redis://h").login() == {"username": "of-env", "password": "p-env"}
    assert credentials("redis://reader@h").login() == {"username": "reader", "password": "p-env"}
    secret = tmp_path / "secret"
    secret.write_text("p file\n")
    secret.chmod(0o600)
    monkeypatch.setenv("X2GOFLEET_REDIS_PASSWORD_FILE", str(secret))
    assert credentials("redis://h").login() == {"username": "of-env", "password": "p file"}
    assert credentials("redis://reader:p%40url@h").login() == {"username": "reader", "password": "p@url"}
    assert credentials("unix:///s?username=reader&password=p%40url").login() == {
        "username": "reader",
        "password": "p@url",
    }
    monkeypatch.delenv("X2GOFLEET_REDIS_USERNAME")
    assert credentials("redis://:p@h").login() == {"username": None, "password": "p"}
    held = credentials("redis://h")
    secret.write_text("renewed\r\n")
    assert held.login() == {"username": None, "password": "renewed"}, "read at each new connection"
    assert "renewed" not in repr(held)
    assert "p@url" not in repr(credentials("redis://reader:p%40url@h"))


def test_nobody_asks_without_credentials() -> None:
    assert credentials("redis://h").login() == {"username": None, "password": None}


@pytest.mark.parametrize(
    ("content", "said"), [(None, "can't be read: No such file"), (b"\n", "is empty"), (b"\xff", "is not UTF-8")]
)
def test_a_password_file_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, said: str
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("X2GOFLEET_REDIS_PASSWORD_FILE", str(path))
    with pytest.raises(ValueError, match=said) as caught:
        link_from_url("redis://h")
    assert str(caught.value).startswith(f"X2GOFLEET_REDIS_PASSWORD_FILE: {path}")
    link_from_url("redis://:of-the-url@h").close()


def test_a_password_file_that_others_may_read_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "secret"
    path.write_text("s3cret\n")
    path.chmod(0o644)
    monkeypatch.setenv("X2GOFLEET_REDIS_PASSWORD_FILE", str(path))
    with caplog.at_level(logging.WARNING):
        link_from_url("redis://h").close()
    assert f"{path} may be read by everybody on this host: chmod 600 it" in caplog.text
    assert "s3cret" not in caplog.text


def test_sentinels_may_want_credentials_of_their_own() -> None:
    parsed = RedisUrl.parse("redis+sentinel://w:one@h1/mymaster?sentinel_username=s&sentinel_password=t%40o")
    assert parsed.credentials == Credentials("w", "one")
    assert parsed.sentinel_credentials == Credentials("s", "t@o")
    with pytest.raises(ValueError, match="unknown option 'sentinel_password'"):
        RedisUrl.parse("redis://h1?sentinel_password=two")
