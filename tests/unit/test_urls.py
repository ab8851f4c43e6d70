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
        ("redis://:s3cret@127.0.0.1:6379/0", "redis://***@127.0.0.1:6379/0"),
        ("redis://reader:s3cret@[::1]:6379/2", "redis://***@[::1]:6379/2"),
        ("redis://reader:s3@cret@h/0", "redis://***@h/0"),
        ("unix://reader:s3cret@/run/valkey.sock?db=1", "unix://***@/run/valkey.sock?db=1"),
        ("redis://s3cret@h:1/0", "redis://***@h:1/0"),
        ("unix:///run/valkey.sock?db=1&password=s3cret", "unix:///run/valkey.sock?db=1&password=***"),
        ("unix:///run/a@b.sock", "unix:///run/a@b.sock"),
        ("redis://h/0?username=reader&password=s3cret", "redis://h/0?username=***&password=***"),
        ("rediss://h/0?ssl_ca_certs=/ca.pem&password=s3cret", "rediss://h/0?ssl_ca_certs=/ca.pem&password=***"),
        ("redis+sentinel://w:s3cret@h1,h2/mymaster", "redis+sentinel://***@h1,h2/mymaster"),
        ("redis+sentinel://h1/m?sentinel_password=s3cret&db=1", "redis+sentinel://h1/m?sentinel_password=***&db=1"),
        # What is not understood has only its scheme shown.
        ("redis://h/0?PASSWORD=s3cret", "redis://***"),
        ("redis://:s3/cret@h/0", "redis://***"),
        ("redis://:s3#cret@h/0", "redis://***"),
        ("redis://:s3cret/0", "redis://***"),
        ("reader:s3cret@h", "***"),
        ("s3cret://h", "***"),
        ("", "***"),
    ],
)
def test_a_shown_url_has_no_password(url: str, shown: str) -> None:
    assert redact_url(url) == shown


# Each part of the password begins with Zq, so that any part of it that is shown is found.
PARTS = "Zq1z/Zq2z", "Zq1z@Zq2z", "Zq1z?Zq2z", "Zq1z#Zq2z", "Zq1z:Zq2z", "Zq1z&Zq2z=Zq3z", "Zq1z%zz%ff", "Zq1z[Zq2z]"
PASSWORDS = (
    "Zq1z",
    *PARTS,
    *(f"{one}{two}" for one in PARTS for two in PARTS),
    "Zq1z\nZq2z",
    "Zq1z Zq2z",
    "Zq1z\udcffZq2z",
    "Zq1z\uff0fZq2z",
    "@/Zq1z@/Zq2z@",
    "//Zq1z//Zq2z",
)
WRITTEN = (
    "redis://:{}@redis.example.org:6379/0",
    "redis://reader:{}@h",
    "redis://{}@h:port/0",
    "redis://:{}@",
    "redis://:{}",
    "redis://:{}/0",
    "redis://{}:h:6379/0",
    "redis://reader:{}@[::1/0",
    "redis://reader:{}@h:70000/0",
    "redis://reader:{}@h/zero",
    "redis://reader:{}@h/0?db=zero",
    "redis://h/{}",
    "redis://h/0?password={}&protocol=3",
    "redis://h/0?password={}&{}",
    "redis://h/0?{}",
    "redis://h/0?{}=1",
    "redis://h/0?db={}",
    "rediss://:{}@h/0?ssl_cert_reqs=none",
    "redis+sentinel://w:{}@h1,h2,w:{}@h3/mymaster",
    "redis+sentinel://w:{}@h1",
    "redis+sentinel://h1/m?sentinel_password={}&x",
    "redis+cluster://w:{}@h1:7000,h2/5",
    "unix://reader:{}@/run/x.sock",
    "unix://reader:{}@run/x.sock",
    "unix:///run/x.sock?password={}&db=zero",
    "unix://{}",
    "http://:{}@h",
    ":{}@h:6379",
    "{}",
    "{}://h",
)
# In a URL that is understood, what stands in the place of a host or a path is none.
WHERE_HOSTS_ARE = ("redis://:{}@", "redis://:{}", "redis://:{}/0", "redis://h/{}", "unix://{}", "redis://{}:h:6379/0")


@pytest.mark.parametrize("written", WRITTEN)
def test_no_part_of_a_password_is_shown_however_the_url_is_written(written: str) -> None:
    refused = 0
    for password in PASSWORDS:
        url = written.replace("{}", password)
        said = [redact_url(url)]
        try:
            RedisUrl.parse(url)
        except ValueError as exc:
            refused += 1
            said += [str(exc), repr(exc.__cause__)]
        else:
            if written in WHERE_HOSTS_ARE:
                continue
        assert not [text for text in said if "Zq" in text], url
    assert refused > 0


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
        ("redis://[2001:db8::1]", "node", (("2001:db8::1", 6379),), "", "", 0),
        ("redis://[::ffff:192.0.2.1]:7000", "node", (("::ffff:192.0.2.1", 7000),), "", "", 0),
        ("redis://[fe80::1%eth0]:7000/1", "node", (("fe80::1%eth0", 7000),), "", "", 1),
        ("redis://[fe80::1%25eth0]:7000/1", "node", (("fe80::1%eth0", 7000),), "", "", 1),
        ("redis://:6380", "node", (("localhost", 6380),), "", "", 0),
        ("redis://bücher.example/", "node", (("bücher.example", 6379),), "", "", 0),
        ("  redis://h:7000/3\n", "node", (("h", 7000),), "", "", 3),
        ("unix:///run/a@b.sock", "unix", (), "/run/a@b.sock", "", 0),
        (
            "redis+sentinel://[::1]:26379,[2001:db8::2]:5,h3,[::4]/my%20master",
            "sentinel",
            (("::1", 26379), ("2001:db8::2", 5), ("h3", 26379), ("::4", 26379)),
            "",
            "my master",
            0,
        ),
        ("redis+sentinel://h1,[::2]/m", "sentinel", (("h1", 26379), ("::2", 26379)), "", "m", 0),
        ("redis+cluster://[::1]:7000,[::2]:7001", "cluster", (("::1", 7000), ("::2", 7001)), "", "", 0),
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
        ("redis://:s3cret@127.0.0.1:port/0", "host 1 of 1 is not HOST:PORT"),
        ("redis://:s3cret@h:70000/0", "with a port from 1 to 65535"),
        ("redis://h:0/0", "with a port from 1 to 65535"),
        ("redis://h:/0", "is not HOST:PORT"),
        ("redis://::1/0", "[ ] around an IPv6 address"),
        ("redis://[::1]x/0", "is not HOST:PORT"),
        ("redis://x[::1]/0", "is not HOST:PORT"),
        ("redis://[::1]]/0", "is not HOST:PORT"),
        ("redis://[127.0.0.1]/0", "something other than an IPv6 address"),
        ("redis://[v1.x]/0", "something other than an IPv6 address"),
        ("redis://[]/0", "something other than an IPv6 address"),
        ("redis://[fe80::1%]/0", "something other than an IPv6 address"),
        ("redis://[::1%a b]/0", "something other than an IPv6 address"),
        ("redis+sentinel://h1,[::2/m", "host 2 of 2 is not HOST:PORT"),
        ("redis+sentinel://w:p@h1,w:p@h2/m", "before the first host"),
        ("redis://h1,h2/0", "it names several hosts"),
        ("redis+cluster://h1,,h2", "host 2 of 3 is empty"),
        ("redis+cluster://h1,:7001", "host 2 of 2 is empty"),
        ("redis://127.0.0.1:6379/zero", "behind the hosts and /, is not a number"),
        ("redis://127.0.0.1:6379/0/1", "is not a number"),
        ("redis://h\n1/0", "control character"),
        ("redis://:\udcff@h/0", "is not UTF-8 text"),
        ("redis://:%ff@h/0", "percent-encodes is not UTF-8 text"),
        ("redis+cluster://h/1", "no database but 0"),
        ("redis+sentinel://h1", "the name of the master is missing"),
        ("unix://", "three slashes"),
        ("unix://run/x.sock", "three slashes"),
        ("unix:///run/x.sock?db=zero", "behind db=, is not a number"),
        ("redis://127.0.0.1/0?socket_timeout=60", "unknown option 'socket_timeout'"),
        ("redis://127.0.0.1/0?decode_responses=yes", "unknown option"),
        ("redis://127.0.0.1/0?s3cret=yes", "unknown option; known here are db, password, username"),
        ("redis://h?db=1&&db=2", "NAME=VALUE"),
        ("redis://127.0.0.1/0?password=s3cret&protocol=3", "unknown option 'protocol'"),
        ("redis://127.0.0.1/0?ssl_ca_certs=/x", "unknown option 'ssl_ca_certs'"),
        ("redis://127.0.0.1/0?db", "NAME=VALUE"),
        ("rediss://h?ssl_cert_reqs=none", "always verified: name your CA by ssl_ca_certs"),
        ("rediss://h?ssl_check_hostname=false", "always verified"),
        ("redis://:s3#cret@h/0", "percent-encoded"),
        ("redis://:s3/cret@h/0", "percent-encoded"),
        ("redis://:s3?cret@h/0", "percent-encoded"),
        ("redis://:s3cret@[::1/0", "is not HOST:PORT"),
        ("redis://:s3/cret@h@x/0", "percent-encoded"),
        ("rediss://h?ssl_ca_certs=/dev/null/ca.pem", "/dev/null/ca.pem can't be read"),
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


@pytest.mark.parametrize(
    ("url", "username", "password"),
    [
        ("redis://w:p%40%2F%3F%23%25%3A@h", "w", "p@/?#%:"),
        ("redis://w:a:b@h", "w", "a:b"),
        ("redis://w:a@b@h", "w", "a@b"),
        ("redis://w:[a]@h", "w", "[a]"),
        ("redis://w:a+b@h", "w", "a+b"),
        ("redis://w:a b@[::1]:1", "w", "a b"),
        ("redis://w:\uff0f\uff20@h", "w", "\uff0f\uff20"),
        ("redis://w:p%C3%A4@h", "w", "p\u00e4"),
        ("redis+sentinel://w:p%40@[::1],[::2]/m", "w", "p@"),
        ("redis://h?username=w&password=a+b%2Bc%26%3D", "w", "a b+c&="),
        ("redis://h?password=a&password=b", "", "b"),
        ("unix:///s?password=p@url", "", "p@url"),
        ("unix://w:p@/s", "w", "p"),
    ],
)
def test_who_asks(url: str, username: str, password: str) -> None:
    assert RedisUrl.parse(url).credentials == Credentials(username, password)


def test_a_password_of_the_environment_that_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X2GOFLEET_REDIS_PASSWORD", "Zq1z\udcff")
    with pytest.raises(ValueError, match="X2GOFLEET_REDIS_PASSWORD is not UTF-8 text") as caught:
        RedisUrl.parse("redis://h")
    assert "Zq" not in str(caught.value)


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
    ("content", "said"), [(None, "can't be used: there is no such file"), (b"\n", "is empty"), (b"\xff", "is no UTF-8")]
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
        for _ in range(3):
            link_from_url("redis://h").close()
        assert caplog.text.count(f"{path} may be read by everybody on this host: chmod 600 it") == 1
        path.chmod(0o600)
        link_from_url("redis://h").close()
        path.chmod(0o644)
        link_from_url("redis://h").close()
    assert caplog.text.count("chmod 600 it") == 2
    assert "s3cret" not in caplog.text


def test_sentinels_may_want_credentials_of_their_own() -> None:
    parsed = RedisUrl.parse("redis+sentinel://w:one@h1/mymaster?sentinel_username=s&sentinel_password=t%40o")
    assert parsed.credentials == Credentials("w", "one")
    assert parsed.sentinel_credentials == Credentials("s", "t@o")
    with pytest.raises(ValueError, match="unknown option 'sentinel_password'"):
        RedisUrl.parse("redis://h1?sentinel_password=two")
