"""[import]: what session profiles of x2gobroker and X2Go Client come to, and that what is wrong with them is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from x2gofleet_workers.importing import READERS, ImportedProfile
from x2gofleet_workers.inventory import Fleet, parse_inventory

from x2gofleet.errors import InventoryError

DEFAULTS = """\
[defaults]
user = "root"
key_file = "/keys/id"
known_hosts = "/keys/known_hosts"
"""


class Files:
    """A fleet.toml and the files that it imports."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def fleet(self, *, broker: str | bytes | None = None, client: str | bytes | None = None, toml: str = "") -> Fleet:
        lines = ["[import]"]
        for key, text in (("x2gobroker", broker), ("x2goclient", client)):
            if text is not None:
                (self.directory / key).write_bytes(text if isinstance(text, bytes) else text.encode())
                lines.append(f'{key} = "{key}"')
        text = "\n".join([*lines, "" if "[defaults]" in toml else DEFAULTS, toml])
        return parse_inventory(text, str(self.directory / "fleet.toml"))

    def fails(self, **files: str | bytes) -> InventoryError:
        with pytest.raises(InventoryError) as caught:
            self.fleet(**files)  # type: ignore[arg-type]
        return caught.value


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def addresses(fleet: Fleet) -> dict[str, tuple[str, int]]:
    return {server.id: (server.host, server.port) for server in fleet.servers.values()}


# What is right

BROKER = """\
[DEFAULT]
command=MATE
sshport=2200

[pool-a]
name=MATE 100% - pool A
user=BROKER_USER
host=ts01 (10.0.0.1:2222), ts02 (10.0.0.2), ts03.example.org

[pool-v6]
host=v6a (2001:db8::1:2222),v6b (fe80::a), 2001:db8::7
sshport=22

[pool-again]
; the same servers once more
host = ts02 (10.0.0.2)

[listed]
host = ['ts04', 'ts02 (10.0.0.2)']

[rdp]
directrdp = true
host = windows_server:3389
"""


def test_session_profiles_of_x2gobroker(files: Files) -> None:
    fleet = files.fleet(broker=BROKER)
    assert addresses(fleet) == {
        "ts01": ("10.0.0.1", 2222),
        "ts02": ("10.0.0.2", 2200),
        "ts03": ("ts03.example.org", 2200),
        "v6a": ("2001:db8::1", 2222),
        "v6b": ("fe80::a", 22),
        "2001-db8--7": ("2001:db8::7", 22),
        "ts04": ("ts04", 2200),
    }
    assert fleet.profiles == {
        "pool-a": ("ts01", "ts02", "ts03"),
        "pool-v6": ("v6a", "v6b", "2001-db8--7"),
        "pool-again": ("ts02",),
        "listed": ("ts04", "ts02"),
    }
    target = fleet.targets["ts01"]
    assert (target.scope, target.endpoint.user, target.endpoint.key_file) == ("server", "root", "/keys/id")
    assert fleet.imported == (str(files.directory / "x2gobroker"),)


CLIENT = """\
[20261122190000001]
name=Alice's desktop
host=ts01.example.org
user=alice
key=/home/alice/.ssh/id_ed25519
sshport=2222
export="/home/alice/100%:1;"

[20261122190000002]
name=Any of two
host=ts01.example.org, 10.0.0.2
sshport=2222
user=bob

[embedded]
width=800
"""


def test_the_sessions_of_x2goclient(files: Files) -> None:
    fleet = files.fleet(client=CLIENT)
    assert addresses(fleet) == {"ts01": ("ts01.example.org", 2222), "10.0.0.2": ("10.0.0.2", 2222)}
    assert fleet.profiles == {"Alice's desktop": ("alice@ts01",), "Any of two": ("ts01", "10.0.0.2")}
    alice = fleet.targets["alice@ts01"]
    assert (alice.scope, alice.username, alice.endpoint.key_file) == ("user", "alice", "/home/alice/.ssh/id_ed25519")
    # Without a key a user can't be polled as: the server's own login tells.
    assert fleet.targets["ts01"].endpoint.user == "root"


def test_profiles_with_user_and_key_need_no_other_login(files: Files) -> None:
    client = CLIENT.partition("[20261122190000002]")[0]
    fleet = files.fleet(client=client, toml='[defaults]\nknown_hosts = "/k"\n')
    assert list(fleet.targets) == ["alice@ts01"]
    second = client + "[2]\nname=Bob\nhost=ts01.example.org\nsshport=2222\nuser=bob\nkey=~/bob\n"
    fleet = files.fleet(client=second, toml='[defaults]\nknown_hosts = "/k"\n')
    assert set(fleet.targets) == {"alice@ts01", "bob@ts01"}
    assert fleet.profiles == {"Alice's desktop": ("alice@ts01",), "Bob": ("bob@ts01",)}
    whole = files.fleet(client=client, toml='[profiles.all]\nservers = ["ts01"]\n')
    assert whole.profiles["all"] == ("ts01",)
    assert set(whole.targets) == {"ts01", "alice@ts01"}


def test_both_at_once_and_what_stands_in_fleet_toml(files: Files) -> None:
    fleet = files.fleet(
        broker="[pool]\nhost=ts01 (10.0.0.1:2222), ts02\n",
        client="[1]\nname=mine\nhost=ts02\n",
        toml='[servers.own]\nhost = "10.0.0.9"\n[profiles.mixed]\nservers = ["own", "ts02"]\n',
    )
    assert set(fleet.servers) == {"own", "ts01", "ts02"}
    assert fleet.profiles == {"mixed": ("own", "ts02"), "pool": ("ts01", "ts02"), "mine": ("ts02",)}


@pytest.mark.parametrize(
    ("host", "toml", "expected"),
    [
        # by id, with and without the domain
        ("ts01", '[servers.ts01]\nhost = "192.0.2.1"\n', {"ts01": ("192.0.2.1", 22)}),
        ("ts01.example.org", '[servers.ts01]\nhost = "192.0.2.1"\n', {"ts01": ("192.0.2.1", 22)}),
        ("ts01 (10.0.0.1:2222)", '[servers.ts01]\nhost = "192.0.2.1"\n', {"ts01": ("192.0.2.1", 22)}),
        ("TS01", '[servers.ts01]\nhost = "192.0.2.1"\n', {"ts01": ("192.0.2.1", 22)}),
        # by host name
        ("ts01", '[servers.a]\nhost = "192.0.2.1"\nhostname = "ts01.example.org"\n', {"a": ("192.0.2.1", 22)}),
        # by address and port
        ("ts01 (10.0.0.1)", '[servers.a]\nhost = "10.0.0.1"\n', {"a": ("10.0.0.1", 22)}),
        ("10.0.0.1", '[servers.a]\nhost = "10.0.0.1"\n', {"a": ("10.0.0.1", 22)}),
        # another port is another server
        (
            "ts01 (10.0.0.1:2222)",
            '[servers.a]\nhost = "10.0.0.1"\n',
            {"a": ("10.0.0.1", 22), "ts01": ("10.0.0.1", 2222)},
        ),
        # what a server does not say itself is imported
        ("ts01 (10.0.0.1:2222)", "[servers.ts01]\nweight = 2.0\n", {"ts01": ("10.0.0.1", 2222)}),
        ("ts01 (10.0.0.1:2222)", "[servers.ts01]\nport = 2200\n", {"ts01": ("10.0.0.1", 2200)}),
    ],
)
def test_settings_of_fleet_toml_win(files: Files, host: str, toml: str, expected: dict[str, tuple[str, int]]) -> None:
    fleet = files.fleet(broker=f"[p]\nhost={host}\n", toml=toml)
    assert addresses(fleet) == expected
    assert len(fleet.profiles["p"]) == 1


def test_names_that_differ_in_their_domain_are_ids_whole(files: Files) -> None:
    fleet = files.fleet(broker="[p]\nhost=ts01.a.org, ts01.b.org, ts02.a.org\n")
    assert list(fleet.servers) == ["ts01.a.org", "ts01.b.org", "ts02"]


def test_what_is_read_is_part_of_the_version(files: Files) -> None:
    one, same = files.fleet(broker="[p]\nhost=ts01\n"), files.fleet(broker="# another word\n[p]\nhost = ts01\n")
    other = files.fleet(broker="[p]\nhost=ts01\nsshport=2222\n")
    assert one == same
    assert one.published().version == same.published().version
    assert one.published().version != other.published().version


# What is wrong

# name: (text, line, key, words of the reason, words of the mend)
WRONG_BROKER: dict[str, tuple[str | bytes, int | None, str, str, str]] = {
    "no section": ("host=a\n", 1, "", "no [section] before it", "[id]"),
    "no ini": ("[p]\nhost=a\nwhat is this\n", 3, "", "neither [section] nor key=value", "comment"),
    "a section twice": ("[p]\nhost=a\n[p]\nhost=b\n", 3, "[p]", "twice", "one"),
    "a key twice": ("[p]\nhost=a\nhost=b\n", 3, "[p] host", "twice", "take one out"),
    "a byte order mark": (b"\xef\xbb\xbf[p]\nhost=a\n", 1, "", "byte order mark", "without one"),
    "no utf-8": (b"[p]\nhost=a\nname=B\xfcro\n", 3, "", "no UTF-8", "UTF-8"),
    "[default]": ("[default]\nsshport=2222\n[p]\nhost=a\n", 1, "[default]", "as a profile", "[DEFAULT]"),
    "[DEFAULTS]": ("[DEFAULTS]\nsshport=2222\n[p]\nhost=a\n", 1, "[DEFAULTS]", "as a profile", "[DEFAULT]"),
    "a section called host": ("[p]\nhost=a\n[host]\nhost=b\n", 3, "[host]", "ignores the key", "another id"),
    "a section with spaces": ("[ p ]\nhost=a\n", 1, "[ p ]", "no name for a section", "without spaces"),
    "Host": ("[p]\nname=x\nHost=a\n", 3, "[p] Host", "nobody reads", "'host'"),
    "SSHPort": ("[p]\nhost=a\nSSHPort=2222\n", 3, "[p] SSHPort", "nobody reads", "'sshport'"),
    "sshPort of all": ("[DEFAULT]\nsshPort=2222\n[p]\nhost=a\n", 2, "[p] sshPort", "nobody reads", "'sshport'"),
    "hosts": ("[p]\nhosts=a\n", 2, "[p] hosts", "nobody reads", "'host'"),
    "port": ("[p]\nhost=a\nport=2222\n", 3, "[p] port", "nobody reads", "'sshport'"),
    "host missing": ("[p]\nname=x\n", 1, "[p] host", "takes localhost", "host="),
    "host empty": ("[p]\nname=x\nhost=\n", 3, "[p] host", "is empty", "host="),
    "host of commas": ("[p]\nhost=,\n", 2, "[p] host", "is empty", "host="),
    "a comma too many": ("[p]\nhost=a,,b\n", 2, "[p] host", "an empty host", "comma"),
    "a comma at the end": ("[p]\nhost=a,b,\n", 2, "[p] host", "an empty host", "comma"),
    "host twice": ("[p]\nhost=a, b, A\n", 2, "[p] host", "named twice", "once"),
    "one host, two ports": ("[p]\nhost=a (10.0.0.1:22), a (10.0.0.1:23)\n", 2, "[p] host", "named twice", "once"),
    "one address, two names": ("[p]\nhost=a (10.0.0.1), b (10.0.0.1)\n", 2, "[p] host", "named twice", "once"),
    "a comment behind": ("[p]\nhost=a # the first\n", 2, "[p] host", "neither a host name", "line of its own"),
    "no blank": ("[p]\nhost=a(10.0.0.1)\n", 2, "[p] host", "reads no address", "one space"),
    "two blanks": ("[p]\nhost=a  (10.0.0.1)\n", 2, "[p] host", "reads no address", "one space"),
    "blanks inside": ("[p]\nhost=a ( 10.0.0.1 )\n", 2, "[p] host", "reads no address", "one space"),
    "an open parenthesis": ("[p]\nhost=a (10.0.0.1\n", 2, "[p] host", "don't match", "name (address:port)"),
    "a closed parenthesis": ("[p]\nhost=a 10.0.0.1)\n", 2, "[p] host", "don't match", "name (address:port)"),
    "empty parentheses": ("[p]\nhost=a ()\n", 2, "[p] host", "reads no address", "one space"),
    "an address alone": ("[p]\nhost=(10.0.0.1)\n", 2, "[p] host", "reads no address", "one space"),
    "port 0": ("[p]\nhost=a (10.0.0.1:0)\n", 2, "[p] host", "0 is no port", "65535"),
    "port too high": ("[p]\nhost=a (10.0.0.1:99999)\n", 2, "[p] host", "99999 is no port", "65535"),
    "port negative": ("[p]\nhost=a (10.0.0.1:-1)\n", 2, "[p] host", "'-1' is no port", "65535"),
    "port a word": ("[p]\nhost=a (10.0.0.1:ssh)\n", 2, "[p] host", "'ssh' is no port", "65535"),
    "port empty": ("[p]\nhost=a (10.0.0.1:)\n", 2, "[p] host", "'' is no port", "65535"),
    "port of other digits": ("[p]\nhost=a (10.0.0.1:٣)\n", 2, "[p] host", "is no port", "65535"),
    "a port alone": ("[p]\nhost=a (:2222)\n", 2, "[p] host", "is no address", "IP address"),
    "any address": ("[p]\nhost=a (*:2222)\n", 2, "[p] host", "is no address", "IP address"),
    "a short address": ("[p]\nhost=a (10.0.1)\n", 2, "[p] host", "is no address", "IP address"),
    "an address with a digit": ("[p]\nhost=a (ts01)\n", 2, "[p] host", "is no address", "IP address"),
    "a name with _": ("[p]\nhost=a_b (10.0.0.1)\n", 2, "[p] host", "no name with which", "letters"),
    "ipv6 in brackets": ("[p]\nhost=a ([2001:db8::1]:22)\n", 2, "[p] host", "brackets", "2001:db8::1:22"),
    "ipv6 without a port": ("[p]\nhost=a (2001:db8::1)\n", 2, "[p] host", "for a port", "2001:db8::1:22"),
    "ipv6 from ::": ("[p]\nhost=a (::ffff:10.0.0.9:22)\n", 2, "[p] host", "at its beginning", "write the address"),
    "port behind a name": ("[p]\nhost=a:2222\n", 2, "[p] host", "neither a host name", "name (address:port)"),
    "a user before a name": ("[p]\nhost=root@a\n", 2, "[p] host", "neither a host name", "user="),
    "a range": ("[p]\nhost=ts[01-20]\n", 2, "[p] host", "neither a host name", "each server"),
    "any host": ("[p]\nhost=*\n", 2, "[p] host", "neither a host name", "each server"),
    "a list that is none": ("[p]\nhost=[a, b]\n", 2, "[p] host", "as Python", "without brackets"),
    "a program": ("[p]\nhost=[__import__('os').getpid()]\n", 2, "[p] host", "as Python", "without brackets"),
    "a list with spaces": ("[p]\nhost=['a ']\n", 2, "[p] host", "spaces around", "take them out"),
    "sshport a word": ("[p]\nhost=a\nsshport=ssh\n", 3, "[p] sshport", "'ssh' is no port", "65535"),
    "sshport empty": ("[p]\nhost=a\nsshport=\n", 3, "[p] sshport", "'' is no port", "65535"),
    "sshport 0": ("[p]\nhost=a\nsshport=0\n", 3, "[p] sshport", "'0' is no port", "65535"),
    "sshport of all": ("[DEFAULT]\nsshport=70000\n[p]\nhost=a\n", 2, "[p] sshport", "is no port", "65535"),
    "sshport indented": ("[p]\nhost=a\n  sshport=2222\n", 3, "[p] host", "is indented", "without a space"),
    "host indented": ("[p]\nacl-users-allow=a\n  host=b\nhost=c\n", 3, "[p] acl-users-allow", "indented", "space"),
    "a section indented": ("[p]\nhost=a\ncommand=X\n  [q]\n", 4, "[p] command", "indented", "without a space"),
    "directrdp a word": ("[p]\nhost=a\ndirectrdp=perhaps\n", 3, "[p] directrdp", "neither true nor", "true or false"),
    "an address changed": (
        *("[p]\nhost=a (10.0.0.1)\n[q]\nhost=a (10.0.0.2)\n", 4, "[q] host"),
        *("the id a, which a (10.0.0.1 port 22) has", "[servers.ID]"),
    ),
}

WRONG_CLIENT: dict[str, tuple[str | bytes, int | None, str, str, str]] = {
    "no name": ("[1]\nhost=a\n", 1, "[1] name", "name is missing", "name="),
    "a name twice": ("[1]\nname=x\nhost=a\n[2]\nname=x\nhost=b\n", 5, "[2] name", "renames both", "its own name"),
    "host missing": ("[1]\nname=x\n", 1, "[1] host", "server.mydomain", "host="),
    "host empty": ("[1]\nname=x\nhost=\n", 3, "[1] host", "is empty", "host="),
    "a python list": ("[1]\nname=x\nhost=['a']\n", 3, "[1] host", "python-x2go alone", "without brackets"),
    "ipv6 in brackets": ("[1]\nname=x\nhost=[::1]\n", 3, "[1] host", "as Python", "without brackets"),
    "a port": ("[1]\nname=x\nhost=a:22\n", 3, "[1] host", "neither a host name", "sshport"),
    "an address behind": ("[1]\nname=x\nhost=a (10.0.0.1)\n", 3, "[1] host", "neither a host name", "by itself"),
    "interpolation": ("[1]\nname=100% x\nhost=a\n", 2, "[1] name", "python-x2go replaces", "without"),
    "a reference": ("[1]\nname=x\nhost=%(name)s\n", 3, "[1] host", "python-x2go replaces", "without"),
    "quotes": ('[1]\nname="x, y"\nhost=a\n', 2, "[1] name", "only X2Go Client takes it away", "without"),
    "an escape": ("[1]\nname=B\\xfcro\nhost=a\n", 2, "[1] name", "for an escape", "without"),
    "defaults": ("[DEFAULT]\nsshport=22\n[1]\nname=x\nhost=a\n", 1, "[DEFAULT]", "as a session", "write its keys"),
    "a part of a word": ("[bed]\nname=x\nhost=a\n", 1, "[bed]", "for a profile", "rename"),
    "none": ("[none]\nname=x\nhost=a\n", 1, "[none]", "for a profile", "rename"),
    "sshport": ("[1]\nname=x\nhost=a\nsshport=x\n", 4, "[1] sshport", "is no port", "65535"),
    "Name": ("[1]\nName=x\nname=y\nhost=a\n", 2, "[1] Name", "nobody reads", "'name'"),
    "a user": ("[1]\nname=x\nhost=a\nuser=a b\nkey=/k\n", 4, "[1] user", "is no user name", "letters"),
    "a relative key": ("[1]\nname=x\nhost=a\nuser=u\nkey=id\n", 5, "[1] key", "no full path", "from /"),
}


@pytest.mark.parametrize("name", WRONG_BROKER)
def test_what_x2gobroker_reads_wrong_is_said(files: Files, name: str) -> None:
    text, line, key, reason, mend = WRONG_BROKER[name]
    error = files.fails(broker=text)
    assert (error.path, error.line, error.key) == (str(files.directory / "x2gobroker"), line, key)
    assert reason in error.reason
    assert mend in error.mend


@pytest.mark.parametrize("name", WRONG_CLIENT)
def test_what_x2goclient_or_python_x2go_read_wrong_is_said(files: Files, name: str) -> None:
    text, line, key, reason, mend = WRONG_CLIENT[name]
    error = files.fails(client=text)
    assert (error.path, error.line, error.key) == (str(files.directory / "x2goclient"), line, key)
    assert reason in error.reason
    assert mend in error.mend


def test_collisions_of_names(files: Files) -> None:
    broker, client = "[pool]\nhost=a\n", "[1]\nname=pool\nhost=a\n"
    error = files.fails(broker=broker, client=client)
    assert (error.path, error.line) == (str(files.directory / "x2goclient"), 1)
    assert f"is a profile in {files.directory / 'x2gobroker'}:1 too" in error.reason
    error = files.fails(broker=broker, toml='[servers.b]\nhost = "b"\n[profiles.pool]\nservers = ["b"]\n')
    assert (error.path, error.line) == (str(files.directory / "x2gobroker"), 1)
    assert "[profiles] of the inventory" in error.reason
    two = '[servers.x]\nhost = "192.0.2.1"\nhostname = "a"\n[servers.y]\nhost = "192.0.2.2"\nhostname = "a"\n'
    error = files.fails(broker=broker, toml=two)
    assert "may be each of the servers x, y" in error.reason
    error = files.fails(broker="[p]\nhost=a (10.0.0.1)\n[q]\nhost=a (10.0.0.2)\n", toml="[servers.a]\nweight = 2.0\n")
    assert (error.line, error.reason) == (4, "a has the address 10.0.0.1 port 22 in another profile")


def test_a_mistake_in_fleet_toml_is_not_hidden_by_an_import(files: Files) -> None:
    error = files.fails(broker="[p]\nhost=ts01\n", toml='[servers]\nts01 = "x"\n')
    assert "would get the id ts01, which another server has" in error.reason
    error = files.fails(broker="[p]\nhost=ts01\n", toml="[servers.ts01]\nwheight = 2.0\n")
    assert (error.path, error.key) == (str(files.directory / "fleet.toml"), "servers.ts01.wheight")
    error = files.fails(broker="[p]\nhost=ts01\n", toml="[servers.ts02]\nweight = 2.0\n")
    assert (error.key, error.reason) == ("servers.ts02", "host is missing")


def test_a_login_that_is_missing_is_said_of_the_imported_file(files: Files) -> None:
    error = files.fails(broker="[p]\nname=x\nhost=a\n", toml='[defaults]\nuser = "root"\n')
    assert (error.path, error.line, error.key) == (str(files.directory / "x2gobroker"), 3, "p.host")
    assert error.reason == "as servers.a: key_file is missing"
    assert "[defaults]" in error.mend
    keys = "[%d]\nname=%s\nhost=a\nuser=alice\nkey=/keys/%s\n"
    error = files.fails(client=keys % (1, "x", "one") + keys % (2, "y", "two"))
    assert (error.path, error.line) == (str(files.directory / "x2goclient"), 6)
    assert "another key_file already (/keys/one)" in error.reason


def test_files_that_can_not_be_read(files: Files) -> None:
    text = '[import]\nx2gobroker = "nowhere/x"\n' + DEFAULTS
    with pytest.raises(InventoryError, match="there is no such file") as caught:
        parse_inventory(text, str(files.directory / "fleet.toml"))
    assert caught.value.path == str(files.directory / "nowhere" / "x")
    assert "[import]" in caught.value.mend
    with pytest.raises(InventoryError, match="it can't be read"):
        parse_inventory('[import]\nx2gobroker = "."\n' + DEFAULTS, str(files.directory / "fleet.toml"))


def test_without_a_profile_there_is_no_server(files: Files) -> None:
    error = files.fails(broker="# all taken out\n")
    assert error.path == str(files.directory / "fleet.toml")
    assert error.reason.startswith(f"there is no server, nor a profile with one in {files.directory}")


def test_python_in_a_file_is_never_run(files: Files) -> None:
    mark = files.directory / "ran"
    error = files.fails(broker=f"[p]\nhost=[open('{mark}', 'w').name]\n")
    assert "as Python" in error.reason
    assert not mark.exists()


# Whatever is in a file: profiles, or an InventoryError that says something

PIECES = st.sampled_from(
    [
        *("[p]", "[DEFAULT]", "[1]", "host=", "host = a", "name=x", "sshport=22", "  ", "a (10.0.0.1)", ",", "(", ")"),
        *("[", "]", ":2222", "::1", "%", "#", ";", "=", "\n", "\n", "\n", "\ufeff", "\0", "\r", "'", "[embedded]"),
        *("user=u", "key=/k"),
    ]
)


def judged(reader: str, path: Path) -> tuple[ImportedProfile, ...] | InventoryError:
    try:
        return READERS[reader](str(path))
    except InventoryError as exc:
        return exc


@given(
    text=st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=30).map("".join), reader=st.sampled_from([*READERS])
)
@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_is_in_a_file(tmp_path: Path, text: str, reader: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    found = judged(reader, path)
    if isinstance(found, InventoryError):
        assert found.reason
        assert found.mend
        assert found.line is None or 1 <= found.line <= text.replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1
        return
    for profile in found:
        assert profile.name
        assert profile.hosts
        assert all(1 <= host.port <= 65535 for host in profile.hosts)
