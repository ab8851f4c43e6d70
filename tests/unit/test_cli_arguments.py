"""arguments and main: what is understood, and what bad usage says; no Redis is asked."""

from __future__ import annotations

import pytest

from x2gofleet.cli import main
from x2gofleet.cli.arguments import build_parser, namespace, redis_url


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("X2GOFLEET_REDIS_URL", raising=False)
    monkeypatch.delenv("X2GOFLEET_NAMESPACE", raising=False)


def understood(*argv: str) -> tuple[str, str, bool]:
    options = build_parser().parse_args(argv)
    return redis_url(options), namespace(options), options.json


def test_common_options_go_before_and_after_the_command() -> None:
    expected = ("unix:///a", "b", True)
    given = ("--redis-url", "unix:///a", "--namespace", "b", "--json")
    assert understood(*given, "status") == expected
    assert understood("status", *given) == expected
    assert understood("--json", "--namespace", "b", "status", "--redis-url", "unix:///a") == expected
    assert understood("--namespace", "a", "status", "--namespace", "b")[1] == "b"


def test_defaults_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert understood("status") == ("redis://127.0.0.1:6379/0", "x2gofleet", False)
    monkeypatch.setenv("X2GOFLEET_REDIS_URL", "unix:///e")
    monkeypatch.setenv("X2GOFLEET_NAMESPACE", "e")
    assert understood("status") == ("unix:///e", "e", False)
    assert understood("status", "--redis-url", "unix:///a", "--namespace", "b") == ("unix:///a", "b", False)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "COMMAND"),
        (["statuss"], "invalid choice"),
        (["desktops"], "--user"),
        (["desktops", "--user", "a b"], "'a b' is no user name"),
        (["refresh"], "PROFILE"),
        (["refresh", "mate", "--timeout", "0"], "from above 0"),
        (["refresh", "mate", "--timeout", "nan"], "from above 0"),
        (["status", "--redis-url", "http://h"], "--redis-url is no Redis URL"),
        (["status", "--redis-url", "redis://h:port/0"], "--redis-url is no Redis URL"),
        (["status", "--redis-url", "redis://h/0?nonsense=1"], "--redis-url is no Redis URL"),
        (["status", "--redis-url", "redis://[::1/0"], "--redis-url is no Redis URL"),
        (["status", "--namespace", "a b"], "is no namespace"),
    ],
)
def test_bad_usage_is_told_and_exits_with_2(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err


def test_a_password_is_never_in_a_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    urls = (
        *("http://:sesame@h", "redis://:open#sesame@h:1/0", "redis://u:sesame@127.0.0.1:1/0", "redis://:sesame"),
        *("redis://:sesame@very/sesame@redis.example.org:6379/0", "redis://h/0?password=a&sesame=1"),
    )
    for url in urls:
        assert main(["status", "--redis-url", url]) in (2, 3)
        monkeypatch.setenv("X2GOFLEET_REDIS_URL", url)
        assert main(["status"]) in (2, 3)
    out, err = capsys.readouterr()
    assert err.count("\n") == 2 * len(urls)
    assert "X2GOFLEET_REDIS_URL is no Redis URL" in err
    assert "sesame" not in out + err


def test_help_names_the_exit_status_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for words in ("exit status:", "examples:", "x2gofleet sessions --user alice", "Redis can't be asked"):
        assert words in text
    epilog = text[text.index("examples:") :]
    assert max(len(line) for line in epilog.splitlines()) < 80


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("x2gofleet 0.")


def test_nobody_listening_is_one_line_and_exit_status_3(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["status"], ["sessions"], ["desktops", "--user", "a"], ["mounts"], ["refresh", "p"], ["watch"]):
        assert main([*command, "--redis-url", "redis://127.0.0.1:1/0"]) == 3
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("x2gofleet: redis://127.0.0.1:1/0 can't be asked: ")
        assert "--redis-url" in err
