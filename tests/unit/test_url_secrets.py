"""No message shows any part of a password, however wrong the URL is: generated, at every entry point that takes one."""

from __future__ import annotations

import io
import logging
import random
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

import pytest
from x2gofleet_workers import cli as worker_cli

from x2gofleet import AsyncFleetCache, FleetCache
from x2gofleet.adapters.broker_settings import BrokerSettings
from x2gofleet.cli.app import main
from x2gofleet.connection import redact_url
from x2gofleet.connection.urls import RedisUrl

SHAPES = (
    *(
        "redis://:{}@h:port/0",
        "redis://w:{}@h:70000/0",
        "redis://w:{}@[::1/0",
        "redis://w:{}@h/zero",
        "redis://{}@h,i/0",
    ),
    *(
        "redis://h/0?password={}&x",
        "redis://h/0?password={}&db=zero",
        "redis://h/0?{}",
        "rediss://:{}@h?ssl_cert_reqs=none",
    ),
    *("redis+sentinel://w:{}@h1", "redis+sentinel://h1/m?sentinel_password={}&x", "redis+sentinel://w:{}@h1,w:{}@h2/m"),
    *(
        "redis+cluster://w:{}@h1,h2/5",
        "redis+cluster://w:{}@h1,,h2",
        "unix://w:{}@run/x.sock",
        "unix:///x?password={}&db=z",
    ),
    *(
        "http://:{}@h",
        "redis:/:{}@h",
        "redis//:{}@h",
        ":{}@h:6379",
        "{}",
        "{}://h",
        "redis://:{}@h\n/0",
        "rediss://:{}@h?x={}",
    ),
)
# What a password may have in it; each run between these is longer than any word of a message that it may equal.
SPECIAL = "/@?#:&=%[]+ \\'\"\n\t%zz,;\udcffü／"
LETTERS = "QZXJqzxj0189"


def password(chance: random.Random) -> str:
    runs = ["".join(chance.choice(LETTERS) for _ in range(chance.randrange(4, 9))) for _ in range(3)]
    return runs[0] + chance.choice(SPECIAL) + runs[1] + chance.choice(SPECIAL) + runs[2]


def of_environment(url: str) -> object:
    return BrokerSettings.read(environ={"X2GOFLEET_REDIS_URL": url})


ENTRIES: dict[str, Callable[[str], object]] = {
    "FleetCache": FleetCache.from_url,
    "AsyncFleetCache": AsyncFleetCache.from_url,
    "RedisUrl": RedisUrl.parse,
    "redact_url": redact_url,
    "settings of the adapter": lambda url: str(of_environment(url)),
    "x2gofleet": lambda url: main(["--redis-url", url, "acl"]),
}


def said(entry: Callable[[str], object], url: str) -> str:
    """Return all that an entry point prints, logs, returns as text or raises, with the causes of each exception."""
    out, log = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    shown = ""
    try:
        with redirect_stdout(out), redirect_stderr(out):
            result = entry(url)
        shown = result if isinstance(result, str) else ""
    except (Exception, SystemExit) as exc:
        while exc is not None:
            shown += str(exc) + repr(exc)
            following = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
            # The lines of the source that a traceback has hold no value.
            shown += "".join(traceback.format_exception(exc))
            if not isinstance(following, Exception):
                break
            exc = following
    finally:
        logging.getLogger().removeHandler(handler)
    return shown + out.getvalue() + log.getvalue()


def leaked(text: str, secret: str) -> list[str]:
    pieces = {secret[at : at + 4] for at in range(len(secret) - 3)}
    return sorted(piece for piece in pieces if piece in text)


@pytest.mark.parametrize("name", ENTRIES)
def test_no_part_of_a_password_is_said(name: str) -> None:
    chance = random.Random(name)
    texts = 0
    for _ in range(20):
        for shape in SHAPES:
            secret = password(chance)
            text = said(ENTRIES[name], shape.replace("{}", secret))
            assert leaked(text, secret) == [], (shape, secret)
            texts += bool(text)
    assert texts > len(SHAPES)


@pytest.mark.parametrize("command", ["run", "check"])
def test_no_part_of_a_password_is_said_by_the_worker(
    command: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_cli.signal, "signal", lambda *_: None)
    path = tmp_path_factory.mktemp("fleet") / "fleet.toml"
    path.write_text('[defaults]\nuser = "u"\nkey_file = "k"\nknown_hosts = "h"\n[servers.a]\nhost = "127.0.0.1"\n')
    chance = random.Random(command)
    for shape in SHAPES:
        secret = password(chance)
        url = shape.replace("{}", secret)
        with pytest.raises(ValueError):
            RedisUrl.parse(url)
        text = said(lambda url: worker_cli.main([command, "--inventory", str(path), "--redis-url", url]), url)
        assert text
        assert leaked(text, secret) == [], (shape, secret)


def test_a_leak_would_be_found() -> None:
    def leaking(url: str) -> object:
        raise ValueError("bad URL") from KeyError(url)

    assert leaked(said(leaking, "redis://:QZXJqz@h"), "QZXJqz")
    assert leaked(said(print, "redis://:QZXJqz@h"), "QZXJqz")
