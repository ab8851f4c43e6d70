"""fleet.toml: what each setting comes to, and that whatever is wrong with a file is said with line, key and mend."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x2gofleet_workers.inventory import Fleet, load_inventory, parse_inventory

from x2gofleet.errors import InventoryError
from x2gofleet.kinds import Kind

DEFAULTS = """\
[defaults]
user = "root"
key_file = "/keys/id"
known_hosts = "/keys/known_hosts"
"""
ONE = DEFAULTS + '[servers.ts01]\nhost = "10.0.0.1"\n'


def fails(text: str) -> InventoryError:
    with pytest.raises(InventoryError) as caught:
        parse_inventory(text, "fleet.toml")
    assert caught.value.path == "fleet.toml"
    return caught.value


# What is right


def test_the_defaults_are_those_of_the_design() -> None:
    fleet = parse_inventory(ONE)
    assert list(fleet.servers) == ["ts01"]
    server = fleet.servers["ts01"]
    assert (server.host, server.port, server.hostname, server.labels) == ("10.0.0.1", 22, "", ())
    assert (server.weight, server.drain) == (1.0, False)
    assert list(fleet.targets) == ["ts01"]
    target = fleet.targets["ts01"]
    assert (target.server, target.scope, target.command, target.hostname) == ("ts01", "server", "auto", "")
    assert (target.deadline_seconds, target.username) == (10.0, None)
    assert target.endpoint.user == "root"
    assert target.endpoint.key_file == "/keys/id"
    assert target.endpoint.known_hosts == "/keys/known_hosts"
    assert target.intervals == {Kind.SESSIONS: 5.0, Kind.LOAD: 5.0, Kind.DESKTOPS: 0.0, Kind.MOUNTS: 60.0}
    assert target.ttls == {Kind.SESSIONS: 15.0, Kind.LOAD: 15.0, Kind.DESKTOPS: 90.0, Kind.MOUNTS: 180.0}
    assert fleet.profiles == {}


def test_user_scope_has_other_intervals_and_no_load() -> None:
    target = parse_inventory(ONE + 'scope = "user"\nuser = "alice"\n').targets["alice@ts01"]
    assert (target.scope, target.username, target.server) == ("user", "alice", "ts01")
    assert target.intervals == {Kind.SESSIONS: 5.0, Kind.LOAD: 0.0, Kind.DESKTOPS: 30.0, Kind.MOUNTS: 60.0}


def test_a_server_overrides_every_default_for_itself_alone() -> None:
    fleet = parse_inventory(
        DEFAULTS
        + """
        port = 2200
        deadline = 20
        [servers.a]
        host = "h1"
        [servers.b]
        host = "h2"
        user = "poll"
        port = 2022
        key_file = "/other/id"
        known_hosts = "/other/known"
        command = "wrapper"
        deadline = 3.5
        hostname = "bbb"
        labels = ["mate", "fast"]
        weight = 2
        drain = true
        """
    )
    a, b = fleet.targets["a"], fleet.targets["b"]
    assert (a.endpoint.port, a.endpoint.user, a.command, a.deadline_seconds) == (2200, "root", "auto", 20.0)
    assert (b.endpoint.port, b.endpoint.user, b.command, b.deadline_seconds) == (2022, "poll", "wrapper", 3.5)
    assert (b.endpoint.key_file, b.endpoint.known_hosts, b.hostname) == ("/other/id", "/other/known", "bbb")
    server = fleet.servers["b"]
    assert (server.labels, server.weight, server.drain, server.hostname) == (("mate", "fast"), 2.0, True, "bbb")
    assert isinstance(server.weight, float)


def test_intervals_and_ttls_are_taken_over_and_ttls_follow_intervals() -> None:
    fleet = parse_inventory(
        "[intervals]\nsessions = 10\nload = 0\ndesktops = 40\nmounts = 0.5\n[ttls]\nmounts = 100\n" + ONE
    )
    target = fleet.targets["ts01"]
    assert target.intervals == {Kind.SESSIONS: 10.0, Kind.LOAD: 0.0, Kind.DESKTOPS: 40.0, Kind.MOUNTS: 0.5}
    assert target.ttls == {Kind.SESSIONS: 30.0, Kind.LOAD: 90.0, Kind.DESKTOPS: 120.0, Kind.MOUNTS: 100.0}


def test_profiles_by_servers_by_labels_and_for_a_user() -> None:
    fleet = parse_inventory(
        DEFAULTS
        + """
        [servers.ts01]
        host = "10.0.0.1"
        labels = ["mate", "fast"]
        [servers.ts02]
        host = "10.0.0.2"
        labels = ["xfce"]
        [servers.ts03]
        host = "10.0.0.3"
        labels = ["fast"]
        [profiles.named]
        servers = ["ts02", "ts01"]
        [profiles.labelled]
        labels = ["fast", "none has this"]
        [profiles."alice's desktop"]
        servers = ["ts01"]
        user = "alice"
        key_file = "/keys/alice"
        """
    )
    assert fleet.profiles == {
        "named": ("ts02", "ts01"),
        "labelled": ("ts01", "ts03"),
        "alice's desktop": ("alice@ts01",),
    }
    alice = fleet.targets["alice@ts01"]
    assert (alice.scope, alice.endpoint.user, alice.endpoint.key_file) == ("user", "alice", "/keys/alice")
    assert alice.endpoint.known_hosts == "/keys/known_hosts"
    assert set(fleet.targets) == {"ts01", "ts02", "ts03", "alice@ts01"}


def test_a_server_that_only_users_profiles_name_is_polled_as_those_users_alone() -> None:
    fleet = parse_inventory(ONE + '[profiles.p]\nservers = ["ts01"]\nuser = "alice"\n')
    assert set(fleet.targets) == {"alice@ts01"}
    assert set(fleet.servers) == {"ts01"}


def test_two_profiles_may_share_a_users_target() -> None:
    profile = '[profiles.{}]\nservers = ["ts01"]\nuser = "alice"\nkey_file = "/k"\n'
    fleet = parse_inventory(ONE + profile.format("p") + profile.format("q"))
    assert fleet.profiles == {"p": ("alice@ts01",), "q": ("alice@ts01",)}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("id", "{folder}/id"),
        ("keys/../id", "{folder}/keys/../id"),
        ("/abs/id", "/abs/id"),
        ("~/id", "{home}/id"),
        ("~root/id", "/root/id"),
    ],
)
def test_paths_are_relative_to_the_inventory_and_a_tilde_is_home(
    written: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    path = tmp_path / "fleet.toml"
    path.write_text(ONE.replace("/keys/id", written))
    target = load_inventory(path).targets["ts01"]
    assert target.endpoint.key_file == meant.format(folder=tmp_path, home="/home/somebody")


def test_a_relative_inventory_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fleet.toml").write_text(ONE.replace("/keys/id", "id"))
    assert load_inventory("fleet.toml").targets["ts01"].endpoint.key_file == str(tmp_path / "id")


@pytest.mark.parametrize("host", ["::1", "2001:db8::7", "fe80::1%eth0", "ts01.example.org", "10.0.0.1"])
def test_addresses(host: str) -> None:
    fleet = parse_inventory(ONE.replace("10.0.0.1", host))
    assert fleet.targets["ts01"].endpoint.host == host


def test_one_address_with_two_ports_is_two_servers() -> None:
    fleet = parse_inventory(ONE + '[servers.ts02]\nhost = "10.0.0.1"\nport = 2222\n')
    assert set(fleet.targets) == {"ts01", "ts02"}


def test_dotted_keys_and_inline_tables_are_toml_too() -> None:
    text = DEFAULTS + 'port = 2022\n[servers]\nts01 = {host = "10.0.0.1"}\nts02.host = "10.0.0.2"\n'
    assert set(parse_inventory(text).targets) == {"ts01", "ts02"}


# What is published


def published(text: str) -> Any:
    return parse_inventory(text).published()


def test_published_holds_what_readers_need_and_no_login() -> None:
    fleet = published(
        ONE + 'hostname = "bbb"\nlabels = ["mate"]\n[profiles.mate]\nlabels = ["mate"]\n'
        '[profiles.alice]\nservers = ["ts01"]\nuser = "alice"\n'
    )
    assert fleet.servers["ts01"].hostname == "bbb"
    assert fleet.targets["ts01"].kinds == {Kind.SESSIONS, Kind.LOAD, Kind.MOUNTS}
    assert fleet.targets["alice@ts01"].username == "alice"
    assert fleet.targets["alice@ts01"].kinds == {Kind.SESSIONS, Kind.DESKTOPS, Kind.MOUNTS}
    assert fleet.profiles == {"mate": ("ts01",), "alice": ("alice@ts01",)}
    assert "/keys" not in fleet.to_json()
    assert "10.0.0.1" not in fleet.to_json()


def test_rows_carry_the_id_where_no_hostname_is_given() -> None:
    assert published(ONE).servers["ts01"].hostname == "ts01"


@pytest.mark.parametrize(
    "changed",
    [
        ONE + 'labels = ["x"]\n',
        ONE + "drain = true\n",
        ONE + "weight = 2\n",
        ONE + 'hostname = "other"\n',
        ONE + '[servers.ts02]\nhost = "h"\n',
        ONE + '[profiles.p]\nservers = ["ts01"]\n',
        ONE + "[intervals]\nmounts = 0\n",
        ONE + 'scope = "user"\n',
        ONE + "deadline = 5\n",
        ONE + "port = 2022\n",
        ONE.replace("10.0.0.1", "10.0.0.2"),
        ONE + 'command = "wrapper"\n',
        "[intervals]\nload = 7\n" + ONE,
        "[ttls]\nload = 70\n" + ONE,
    ],
)
def test_the_version_changes_with_what_readers_see_and_with_how_servers_are_polled(changed: str) -> None:
    assert published(changed).version != published(ONE).version


@pytest.mark.parametrize(
    "same",
    [
        "# a comment\n" + ONE,
        ONE.replace("/keys/id", "/new/id"),
        ONE + "port = 22\n",
        ONE + "deadline = 10\n",
    ],
)
def test_the_version_stays_where_nothing_differs_but_places_of_keys(same: str) -> None:
    assert published(same).version == published(ONE).version != ""


def test_the_version_is_that_of_workers_that_know_no_listing() -> None:
    """Workers of two versions with the same file must not take each other's inventory for another one."""
    timed = "[intervals]\nsessions = 5\n" + ONE
    assert published(timed).version == published(timed + 'listing = "records"\n').version == "36726937b4d07a64"
    assert published(timed + 'listing = "command"\n').version != "36726937b4d07a64"


# What is wrong

LOGIN = 'user = "root"\nkey_file = "k"\nknown_hosts = "h"\n'

WRONG: dict[str, tuple[str, int | None, str, str, str]] = {
    # name: (text, line, key, words of the reason, words of the mend)
    "empty": ("", None, "servers", "there is no server", "[servers.ts01]"),
    "no servers": (DEFAULTS, None, "servers", "there is no server", "[servers.ts01]"),
    "broken": ("[defaults\n", 1, "", "no TOML", "toml.io"),
    "broken below": (DEFAULTS + "what is this\n", 5, "", "no TOML", "toml.io"),
    "cut short": ('[defaults]\nuser = "ro', 2, "", "no TOML", "toml.io"),
    "one key twice": (DEFAULTS + 'user = "x"\n', 5, "", "no TOML", "toml.io"),
    "no such day": ("[defaults]\nport = 1979-02-30\n", 2, "", "no TOML", "toml.io"),
    "5000 digits": ("[defaults]\nport = " + "9" * 5000 + "\n", None, "", "no TOML", "toml.io"),
    "5000 hex digits": (ONE + "port = 0x" + "f" * 5000 + "\n", 7, "servers.ts01.port", "thousands of digits", "65535"),
    "unknown import": ('[import]\nx2gobrok = "x"\n' + ONE, 2, "import.x2gobrok", "no setting", "'x2gobroker'"),
    "import a number": ("[import]\nx2gobroker = 1\n" + ONE, 2, "import.x2gobroker", "1 is no text", "quotes"),
    "import of nobody": (
        *('[import]\nx2gobroker = "~nobody-here/x"\n' + ONE, 2, "import.x2gobroker"),
        *("there is no such user", "without '~'"),
    ),
    "import no table": ('import = "x"\n' + ONE, 1, "import", "import is no table", "[import]"),
    "unknown table": ("[server.ts01]\n" + ONE, 1, "server", "no setting here", "did you mean 'servers'"),
    "unknown far off": ("[zzz]\n" + ONE, 1, "zzz", "no setting here", "known: defaults"),
    "unknown default": (DEFAULTS + 'keyfile = "x"\n', 5, "defaults.keyfile", "no setting here", "'key_file'"),
    "host in defaults": (DEFAULTS + 'host = "x"\n', 5, "defaults.host", "no setting here", "known: user"),
    "unknown of a server": (ONE + 'lables = ["x"]\n', 7, "servers.ts01.lables", "no setting here", "'labels'"),
    "unknown interval": ("[intervals]\nsession = 2\n" + ONE, 2, "intervals.session", "no setting", "'sessions'"),
    "unknown ttl": ("[ttls]\nmount = 99\n" + ONE, 2, "ttls.mount", "no setting here", "'mounts'"),
    "unknown of a profile": (ONE + '[profiles.p]\nserver = ["ts01"]\n', 8, "profiles.p.server", "no", "'servers'"),
    "defaults a list": ("defaults = 3\n", 1, "defaults", "defaults is no table", "[defaults]"),
    "servers a list": ('[[servers]]\nhost = "x"\n', 1, "servers", "servers is no table", "[servers]"),
    "a server a text": (DEFAULTS + '[servers]\nts01 = "x"\n', 6, "servers.ts01", "ts01 is no table", "[servers.ts01]"),
    "a profile a list": (ONE + '[profiles]\np = ["ts01"]\n', 8, "profiles.p", "p is no table", "[profiles.p]"),
    "host missing": (DEFAULTS + "[servers.ts01]\nport = 22\n", 5, "servers.ts01", "host is missing", "host ="),
    "user missing": ('[servers.a]\nhost = "h"\n', 1, "servers.a", "user is missing", 'user = "root"'),
    "key_file missing": ('[servers.a]\nhost = "h"\nuser = "u"\n', 1, "servers.a", "key_file is missing", "key_file"),
    "known_hosts missing": (
        *('[servers.a]\nhost = "h"\nuser = "u"\nkey_file = "k"\n', 1, "servers.a"),
        *("known_hosts is missing", "known_hosts"),
    ),
    "host a number": (DEFAULTS + "[servers.a]\nhost = 10\n", 6, "servers.a.host", "10 is no text", "quotes"),
    "host empty": (DEFAULTS + '[servers.a]\nhost = " "\n', 6, "servers.a.host", "is no text", "quotes"),
    "host with a port": (DEFAULTS + '[servers.a]\nhost = "h:22"\n', 6, "servers.a.host", "is no address", "port"),
    "host with a user": (DEFAULTS + '[servers.a]\nhost = "u@h"\n', 6, "servers.a.host", "is no address", "user"),
    "host in brackets": (DEFAULTS + '[servers.a]\nhost = "[::1]"\n', 6, "servers.a.host", "is no address", "alone"),
    "control characters": (DEFAULTS + '[servers.a]\nhost = "a\\u001bb"\n', 6, "servers.a.host", "no text", "quotes"),
    "port a text": (ONE + 'port = "22"\n', 7, "servers.ts01.port", "'22' is no port", "1 to 65535"),
    "port true": (ONE + "port = true\n", 7, "servers.ts01.port", "True is no port", "1 to 65535"),
    "port 0": (ONE + "port = 0\n", 7, "servers.ts01.port", "0 is no port", "1 to 65535"),
    "port too high": (ONE + "port = 65536\n", 7, "servers.ts01.port", "65536 is no port", "1 to 65535"),
    "default port": ("[defaults]\nport = -1\n[servers.a]\nhost='h'\n", 2, "defaults.port", "-1 is no port", "65535"),
    "inline port": (
        *(DEFAULTS + '[servers]\na = {host = "h", port = 0}\n', 6, "servers.a.port"),
        *("0 is no port", "1 to 65535"),
    ),
    "user a number": ("[defaults]\nuser = 0\n[servers.a]\nhost='h'\n", 2, "defaults.user", "0 is no text", "quotes"),
    "user with a space": (ONE + 'user = "a b"\n', 7, "servers.ts01.user", "'a b' is no user name", "getent passwd"),
    "user an option": (ONE + 'user = "-oProxy"\n', 7, "servers.ts01.user", "is no user name", "getent passwd"),
    "key_file a list": (ONE + 'key_file = ["k"]\n', 7, "servers.ts01.key_file", "is no text", "quotes"),
    "nobody's home": (ONE + 'key_file = "~no-such-user/k"\n', 7, "servers.ts01.key_file", "no such user", "'~'"),
    "scope": (ONE + 'scope = "all"\n', 7, "servers.ts01.scope", "'all' is no scope", '"server" or "user"'),
    "default scope": ("[defaults]\nscope = 1\n[servers.a]\nhost='h'\n", 2, "defaults.scope", "is no scope", "user"),
    "command": (ONE + 'command = "sudo"\n', 7, "servers.ts01.command", "no way to run the probe", "wrapper"),
    "deadline 0": (ONE + "deadline = 0\n", 7, "servers.ts01.deadline", "0 is no deadline", "1 to 300"),
    "deadline nan": (ONE + "deadline = nan\n", 7, "servers.ts01.deadline", "nan is no deadline", "1 to 300"),
    "deadline a text": (ONE + 'deadline = "5s"\n', 7, "servers.ts01.deadline", "is no deadline", "1 to 300"),
    "weight 0": (ONE + "weight = 0\n", 7, "servers.ts01.weight", "0 is no weight", "above 0"),
    "weight inf": (ONE + "weight = inf\n", 7, "servers.ts01.weight", "inf is no weight", "above 0"),
    "weight true": (ONE + "weight = true\n", 7, "servers.ts01.weight", "True is no weight", "above 0"),
    "drain a text": (ONE + 'drain = "yes"\n', 7, "servers.ts01.drain", "neither true nor false", "without quotes"),
    "hostname a number": (ONE + "hostname = 1\n", 7, "servers.ts01.hostname", "is no text", "quotes"),
    "labels a text": (ONE + 'labels = "mate"\n', 7, "servers.ts01.labels", "no list of texts", 'labels = ["mate"]'),
    "a label a number": (ONE + "labels = [1]\n", 7, "servers.ts01.labels", "no list of texts", 'labels = ["mate"]'),
    "server id with a space": (DEFAULTS + '[servers."a b"]\nhost = "h"\n', 5, "servers.a b", "no server id", "letters"),
    "server id with a brace": (DEFAULTS + '[servers."a}"]\nhost = "h"\n', 5, "servers.a}", "no server id", "letters"),
    "server id empty": (DEFAULTS + '[servers.""]\nhost = "h"\n', None, "servers.", "no server id", "letters"),
    "server id too long": (
        *(DEFAULTS + f"[servers.{'a' * 65}]\nhost = 'h'\n", 5, "servers." + "a" * 65),
        *("no server id", "letters"),
    ),
    "twins": (ONE + '[servers.b]\nhost = "10.0.0.1"\n', 8, "servers.b.host", "ts01 has the address", "own address"),
    "sessions off": ("[intervals]\nsessions = 0\n" + ONE, 2, "intervals.sessions", "can't be switched off", "2"),
    "interval a text": ("[intervals]\nload = '5'\n" + ONE, 2, "intervals.load", "no number of seconds", "86400"),
    "interval negative": ("[intervals]\nload = -1\n" + ONE, 2, "intervals.load", "no number of seconds", "86400"),
    "interval nan": ("[intervals]\nload = nan\n" + ONE, 2, "intervals.load", "no number of seconds", "86400"),
    "interval true": ("[intervals]\nload = true\n" + ONE, 2, "intervals.load", "no number of seconds", "86400"),
    "interval too short": ("[intervals]\nload = 0.01\n" + ONE, 2, "intervals.load", "too short", "0.1 s"),
    "interval a day and more": ("[intervals]\nload = 86401\n" + ONE, 2, "intervals.load", "no number", "86400"),
    "ttl 0": ("[ttls]\nload = 0\n" + ONE, 2, "ttls.load", "no number of seconds", "from 1"),
    "ttl below the interval": (
        *("[ttls]\nsessions = 30\n[intervals]\nsessions = 30\n" + ONE, 2, "ttls.sessions"),
        *("not longer than the interval of 30 s", "3 times"),
    ),
    "ttl below a default interval": ("[ttls]\nmounts = 60\n" + ONE, 2, "ttls.mounts", "not longer than", "3 times"),
    "profile of nothing": (ONE + "[profiles.p]\n", 7, "profiles.p", "one of servers and labels", 'servers = ["ts01"]'),
    "profile of both": (
        *(ONE + '[profiles.p]\nservers = ["ts01"]\nlabels = ["x"]\n', 7, "profiles.p"),
        *("one of servers and labels", 'servers = ["ts01"]'),
    ),
    "profile of no server": (
        ONE + "[profiles.p]\nservers = []\n",
        8,
        "profiles.p.servers",
        "no server",
        "least one",
    ),
    "ProxyJump": (ONE + 'proxy_jump = "gate"\n', 7, "servers.ts01.proxy_jump", "is not supported", "behind a gate"),
    "a bastion": (DEFAULTS + 'bastion = "gate"\n', 5, "defaults.bastion", "is not supported", "behind a gate"),
    "an ssh_config": (DEFAULTS + 'ssh-config = "c"\n', 5, "defaults.ssh-config", "is not supported", "behind a gate"),
    "profile of an unknown server": (
        *(ONE + '[profiles.p]\nservers = ["ts02"]\n', 8, "profiles.p.servers"),
        *("there is no server 'ts02'", "did you mean 'ts01'"),
    ),
    "profile names one twice": (
        *(ONE + '[profiles.p]\nservers = ["ts01", "ts01"]\n', 8, "profiles.p.servers"),
        *("named twice", "once"),
    ),
    "labels that match nothing": (
        *(ONE + '[profiles.p]\nlabels = ["gnome"]\n', 8, "profiles.p.labels"),
        *("the profile has no server", "a label that a server has"),
    ),
    "profile key without user": (
        *(ONE + '[profiles.p]\nservers = ["ts01"]\nkey_file = "k"\n', 9, "profiles.p.key_file"),
        *("needs a user", "whose key"),
    ),
    "profile user": (
        *(ONE + '[profiles.p]\nservers = ["ts01"]\nuser = "a b"\n', 9, "profiles.p.user"),
        *("'a b' is no user name", "getent passwd"),
    ),
    "one user, two keys": (
        ONE
        + '[profiles.p]\nservers = ["ts01"]\nuser = "a"\n'
        + '[profiles.q]\nservers = ["ts01"]\nuser = "a"\nkey_file = "/k2"\n',
        *(13, "profiles.q.key_file", "another key_file already (/keys/id)", "one key for one user"),
    ),
    "profile without a name": (
        ONE + '[profiles.""]\nservers = ["ts01"]\n',
        None,
        "profiles.",
        "no profile name",
        "print",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_is_told_with_line_key_reason_and_mend(name: str) -> None:
    text, line, key, reason, mend = WRONG[name]
    error = fails(text)
    assert (error.key, reason in error.reason, mend in error.mend) == (key, True, True), str(error)
    if line is not None:
        assert error.line == line, str(error)
        assert str(error).startswith(f"fleet.toml:{line}: ")
    assert "\n" not in str(error)
    assert len(str(error)) < 400


def test_deep_nesting_is_no_crash() -> None:
    assert "no TOML" in fails("x = " + "[" * 100_000).reason


def test_lines_are_counted_as_editors_count_them() -> None:
    assert fails("# \u2028 \x0c\u0085\r\n".replace("\x0c", "") + ONE + "port = 0\n").line == 8


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match=r"absent\.toml: there is no such file\. give one by --inventory"):
        load_inventory(tmp_path / "absent.toml")


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match=r"it is a directory, not a regular file\. name a regular file"):
        load_inventory(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("x2gofleet.files.os.open", refuse)
    with pytest.raises(InventoryError, match=r"can't be read: Permission denied\. see that it is a file that uid \d+"):
        load_inventory(tmp_path / "fleet.toml")


def test_a_file_that_is_no_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_bytes(b"# one\n# two \xff\n")
    with pytest.raises(InventoryError) as caught:
        load_inventory(path)
    assert (caught.value.line, caught.value.reason) == (2, "it is no UTF-8 text")
    assert "UTF-8" in caught.value.mend


# Whatever is in a file: a Fleet or an InventoryError

WORDS = """defaults intervals ttls servers profiles import user port key_file known_hosts scope command deadline host
hostname labels weight drain sessions load desktops mounts ts01 ts02 p alice ~x/y ~ 10.0.0.1 ::1 server wrapper auto"""
ODD = '0 1 22 -1 1e400 nan inf true false 1979-05-27 0.5 ""'
words = st.sampled_from(WORDS.split())
scalars = st.one_of(
    words.map(lambda word: f'"{word}"'),
    st.sampled_from(
        ["0", "1", "22", "-1", "1e400", "nan", "inf", "true", "false", "1979-05-27", "0.5", '""', "0x" + "f" * 4000]
    ),
    st.integers().map(str),
    st.text(max_size=8).map(lambda text: "'''" + text.replace("'", "").replace("\r", "") + "'''"),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]"),
        st.dictionaries(words.filter(str.isalnum), inner, max_size=3).map(
            lambda items: "{" + ", ".join(f"{key} = {value}" for key, value in items.items()) + "}"
        ),
    ),
    max_leaves=4,
)
lines = st.one_of(
    st.tuples(words, words).map(lambda pair: f'["{pair[0]}"."{pair[1]}"]'),
    words.map(lambda word: f'["{word}"]'),
    st.tuples(words, values).map(lambda pair: f'"{pair[0]}" = {pair[1]}'),
    st.text(max_size=10),
)


def judged(text: str) -> None:
    """Pass whatever is a Fleet or an InventoryError that says something; any other error is the test's."""
    try:
        fleet: Fleet | None = parse_inventory(text)
        error: InventoryError | None = None
    except InventoryError as exc:
        fleet, error = None, exc
    if error is not None:
        assert error.reason
        assert error.mend
        assert error.line is None or 1 <= error.line <= text.count("\n") + 1
    if fleet is not None:
        assert fleet.targets
        assert fleet.published().version


@settings(max_examples=300)
@given(st.lists(lines, max_size=12))
def test_made_up_files_give_a_fleet_or_an_inventory_error(made_up: list[str]) -> None:
    judged("\n".join(made_up))


@settings(max_examples=300)
@given(st.sampled_from(["[defaults]", "[intervals]", "[ttls]", "[servers.ts01]", "[profiles.p]"]), words, values)
def test_made_up_settings_in_a_good_file_give_a_fleet_or_an_inventory_error(table: str, key: str, value: str) -> None:
    good = ONE + '[profiles.p]\nservers = ["ts01"]\n[intervals]\n[ttls]\n'
    judged(good.replace(f"{table}\n", f'{table}\n"{key}" = {value}\n', 1))


@settings(max_examples=200)
@given(st.text(max_size=200))
def test_any_text_gives_a_fleet_or_an_inventory_error(text: str) -> None:
    judged(text)
