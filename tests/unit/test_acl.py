"""acl: versions, names and rules; what they come to on real servers is tests/integration/test_acl.py's to show."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from x2gofleet.acl import Role, limits, parse_version, rules, user_name
from x2gofleet.cli import main
from x2gofleet.cli.acl import read_passwords

SHA256 = hashlib.sha256(b"secret").hexdigest()


@pytest.mark.parametrize(
    ("text", "version"),
    [("7", (7, 0)), ("7.0", (7, 0)), ("7.2.4", (7, 2)), ("6.2.5", (6, 2)), ("9.1.2", (9, 1)), ("8.0.0.1", (8, 0))],
)
def test_versions(text: str, version: tuple[int, int]) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["", "seven", "7.", ".7", "7.0-rc1", "-7", "7 0", "7.0\n", "\u0667.0", "99999"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match="is no version"):
        parse_version(text)


@pytest.mark.parametrize("text", ["6.0.16", "6.1", "5", "2.8.0"])
def test_a_version_that_is_too_old(text: str) -> None:
    with pytest.raises(ValueError, match=r"older than Redis 6\.2"):
        parse_version(text)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("version", [(6, 2), (7, 0)])
def test_rules_begin_from_nothing_and_name_no_category(role: Role, version: tuple[int, int]) -> None:
    found = rules(role, namespace="mine", server_version=version)
    assert found[:4] == ["on", "resetkeys", "resetchannels", "-@all"]
    assert not any("+@" in rule or rule in ("allkeys", "allcommands", "nopass", "~*") for rule in found)
    keys = [rule.partition("~")[2] for rule in found if "~" in rule]
    assert keys
    assert all(key.startswith("mine:") for key in keys)
    assert ("clearselectors" in found) == (version >= (7, 0))


def test_selectors_are_closed_and_do_not_nest() -> None:
    depth = 0
    for rule in rules(Role.WORKER, server_version=(7, 0)):
        depth += rule.startswith("(")
        assert depth <= 1
        depth -= rule.endswith(")")
    assert depth == 0


def test_only_a_passwords_hash_sets_passwords() -> None:
    assert not any("pass" in rule for rule in rules(Role.READER, server_version=(7, 0)))
    with_hash = rules(Role.READER, server_version=(7, 0), password_sha256=SHA256)
    assert with_hash[4:6] == ["resetpass", f"#{SHA256}"]
    with pytest.raises(ValueError, match="64 hex digits"):
        rules(Role.READER, server_version=(7, 0), password_sha256="secret")


def test_limits_are_told_where_they_are() -> None:
    assert limits(Role.READER, (6, 2)) == ()
    (told,) = limits(Role.BROKER, (7, 0))
    assert "--without-eval makes a broker that can't place" in told
    (told,) = limits(Role.BROKER, (7, 0), may_eval=False)
    assert "can't place or reserve" in told
    assert limits(Role.READER, (7, 0), may_eval=False) == ()
    assert "Redis 7 or Valkey confines it" in limits(Role.BROKER, (6, 2))[1]
    assert "SCAN" in limits(Role.WORKER, (7, 0))[0]


def test_names_of_users() -> None:
    assert user_name(Role.WORKER, "x2gofleet-") == "x2gofleet-worker"
    for prefix in ("a b", "a\n", "(", "a" * 65):
        with pytest.raises(ValueError, match="can't begin a user's name"):
            user_name(Role.WORKER, prefix)


def test_passwords_are_all_that_follows_the_first_equals_sign(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_bytes(b"# c\n\nreader=secret\r\nbroker = a=b \n")
    assert read_passwords(path) == {
        Role.READER: SHA256,
        Role.BROKER: hashlib.sha256(b" a=b ").hexdigest(),
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"reader\n", "line 1: expected ROLE=PASSWORD with a ROLE of reader, broker, worker"),
        (b"\nadmin=hush\n", "line 2: expected ROLE=PASSWORD"),
        (b"reader=hush\nreader=b\n", "line 2: reader has a password already"),
        (b"reader=\n", "line 1: the password of reader is empty"),
        (b"reader=\xff\n", "it is no UTF-8 text"),
        (None, "there is no such file"),
    ],
)
def test_a_passwords_file_that_is_wrong(
    tmp_path: Path, content: bytes | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "passwords"
    if content is not None:
        path.write_bytes(content)
    assert main(["acl", "--server-version", "7.0", "--passwords", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert str(path) in err
    assert said in err
    assert "hush" not in err


def test_the_command_says_how_to_log_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["acl", "--server-version", "7.0", "--role", "broker", "--role", "broker"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["user x2gofleet-broker " + " ".join(rules(Role.BROKER, server_version=(7, 0)))]
    assert "ACL SETUSER x2gofleet-broker '>PASSWORD'" in err
    assert "ACL SETUSER default off" in err


@pytest.mark.parametrize("version", ["6.2", "7.0"])
def test_a_broker_without_eval(version: str, capsys: pytest.CaptureFixture[str]) -> None:
    for options, may_eval in ((), True), (("--without-eval",), False):
        assert main(["acl", "--server-version", version, *options]) == 0
        out, err = capsys.readouterr()
        lines = {line.split()[1]: line for line in out.splitlines()}
        assert ("+eval" in lines["x2gofleet-broker"]) is may_eval
        assert "+eval" not in lines["x2gofleet-reader"]
        assert "+eval" in lines["x2gofleet-worker"]
        assert ("can run a script that does not end" in err) is may_eval


def test_a_server_that_does_not_answer_is_no_reason_to_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["acl", "--redis-url", "redis://127.0.0.1:1/0"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "--server-version" in err


@pytest.mark.parametrize(
    ("url", "commands"),
    [
        ("redis://h:1/0", {"+select"}),
        ("unix:///s", {"+select"}),
        ("redis+sentinel://h:1,g:2/fleet/0", {"+select", "+role"}),
        ("redis+cluster://h:1,g:2", {"+cluster|slots", "+cluster|nodes", "+asking"}),
    ],
)
def test_connections_get_what_the_url_asks_of_them(
    url: str, commands: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    every = {"+select", "+role", "+cluster|slots", "+cluster|nodes", "+asking"}
    for role in Role:
        assert main(["acl", "--server-version", "7.0", "--redis-url", url, "--role", role.value]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert every & set(line.partition("(")[0].split()) == commands
        assert not any(command in line.partition("(")[2] for command in every)
    assert main(["acl", "--server-version", "7.0", "--redis-url", url, "--topology", "cluster"]) == 0
    assert capsys.readouterr().out.count("+asking") == 3


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--server-version", "6.0"], "older than Redis 6.2"),
        (["--user-prefix", "a b"], "can't begin a user's name"),
        (["--role", "admin"], "invalid choice"),
        (["--format", "yaml"], "invalid choice"),
    ],
)
def test_bad_usage(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["acl", *argv]) == 2
    assert said in capsys.readouterr().err


def test_the_document_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    document = (Path(__file__).parents[2] / "docs" / "redis.md").read_text(encoding="utf-8")
    section = document.partition("## ACL\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"\n```\n(user .*?)```", section, re.DOTALL)
    assert main(["acl", "--server-version", "7.0"]) == 0
    assert blocks == [capsys.readouterr().out]
