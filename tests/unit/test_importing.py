"""[import]: what session profiles of x2gobroker and X2Go Client come to, and that what is wrong with them is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from x2gofleet_workers.importing import READERS, ImportedProfile
from x2gofleet_workers.inventory import Fleet, parse_inventory

from tests.support.import_cases import Fault, Good, described, faults, good
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

FAULTS, GOOD = faults(), good()
BESIDE = {
    "x2gobroker": "\n[beside]\nhost=beside.example.org\nsshport=22\nusesshproxy=false\ndirectrdp=false\n",
    "x2goclient": "\n[99]\nname=beside\nhost=beside.example.org\nsshport=22\n",
}
OTHER_SERVER = '[servers.own]\nhost = "own.example.org"\n'


def imports(files: Files, source: str, raw: bytes, toml: str = "") -> Fleet:
    return files.fleet(**{"broker" if source == "x2gobroker" else "client": raw}, toml=toml)  # type: ignore[arg-type]


def is_said(files: Files, fault: Fault, error: InventoryError) -> None:
    assert (error.path, error.line, error.key) == (str(files.directory / fault.source), fault.line, fault.key)
    assert fault.reason in error.reason
    assert fault.remedy in error.mend


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.source}: {fault.name}")
def test_a_profile_at_fault_is_left_out_until_it_is_fixed(files: Files, fault: Fault) -> None:
    if fault.name == "no section":
        with pytest.raises(InventoryError) as caught:
            imports(files, fault.source, fault.raw, OTHER_SERVER)
        is_said(files, fault, caught.value)
    else:
        fleet = imports(files, fault.source, fault.raw, OTHER_SERVER)
        assert len(fleet.left_out) >= len(fleet.warnings) > 0
        assert f"{files.directory / fault.source}:{fault.line}: {fault.key}" in fleet.warnings[0]
        assert fault.reason in fleet.warnings[0]
        assert fault.remedy in fleet.warnings[0]
        assert fleet.warnings[0].endswith(" is left out")
        assert not fleet.left_out & set(fleet.profiles)
        assert fleet.published().left_out == fleet.left_out
        strictly = f'[import]\nstrict = true\n{fault.source} = "{fault.source}"\n{DEFAULTS}{OTHER_SERVER}'
        with pytest.raises(InventoryError) as caught:
            parse_inventory(strictly, str(files.directory / "fleet.toml"))
        is_said(files, fault, caught.value)
    # The remedy, applied.
    fixed = imports(files, fault.source, (fault.fixed or fault.text).encode(), OTHER_SERVER + fault.toml)
    assert (fixed.warnings, fixed.left_out) == ((), frozenset())
    assert fixed.profiles
    assert imports(files, fault.source, (fault.fixed or fault.text).encode(), OTHER_SERVER + fault.toml) == fixed


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.source}: {fault.name}")
def test_where_no_server_is_left_the_fault_is_the_error(files: Files, fault: Fault) -> None:
    if fault.name in KEEPS_OTHERS:
        return
    with pytest.raises(InventoryError) as caught:
        imports(files, fault.source, fault.raw)
    is_said(files, fault, caught.value)


# The file has another profile that is used.
KEEPS_OTHERS = (
    *("[default]", "[DEFAULTS]", "an address changed", "an address changed, and both are meant"),
    *("one user with two keys",),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.source}: {fault.name}")
def test_one_odd_profile_costs_no_other(files: Files, fault: Fault) -> None:
    concerns_all = fault.name in ("no section", "defaults", "a section called host", "a section indented")
    if concerns_all or "[DEFAULT]" in fault.text:
        return
    fleet = imports(files, fault.source, fault.raw + BESIDE[fault.source].encode())
    assert fleet.profiles["beside"] == ("beside",)
    assert addresses(fleet)["beside"] == ("beside.example.org", 22)
    assert fleet.targets["beside"].endpoint.host == "beside.example.org"
    assert "beside" not in fleet.left_out
    assert len(fleet.warnings) >= 1


@pytest.mark.parametrize("case", GOOD, ids=lambda case: f"{case.source}: {case.name}")
def test_what_reads_as_it_looks_is_read(files: Files, case: Good) -> None:
    fleet = imports(files, case.source, case.text.encode())
    assert fleet.warnings == ()
    assert addresses(fleet) == case.servers
    assert set(fleet.profiles) == set(case.profiles)
    found = READERS[case.source](str(files.directory / case.source), None)
    assert described(found) == case.profiles
    assert {profile.name: (profile.user, profile.key) for profile in found if profile.name in case.users} == case.users


def test_a_profile_of_fleet_toml_is_taken_from_there(files: Files) -> None:
    toml = '[servers.b]\nhost = "b"\n[profiles.pool]\nservers = ["b"]\n'
    fleet = files.fleet(broker="[pool]\nhost=a\n[other]\nhost=c\n", toml=toml)
    assert (fleet.profiles, fleet.warnings) == ({"pool": ("b",), "other": ("c",)}, ())
    assert "a" not in fleet.servers


def test_a_server_whose_address_a_profile_that_is_left_out_says(files: Files) -> None:
    broker = "[p]\nhost=ts01\nusesshproxy=true\n[q]\nhost=ts02\n"
    fleet = files.fleet(broker=broker, toml="[servers.ts01]\nweight = 2.0\n")
    assert (set(fleet.servers), set(fleet.profiles)) == ({"ts02"}, {"q"})
    assert len(fleet.warnings) == 2
    assert "servers.ts01: host is missing" in fleet.warnings[1]
    assert "'ts01' is left out" in fleet.warnings[1]


def test_strict_is_a_boolean(files: Files) -> None:
    with pytest.raises(InventoryError) as caught:
        parse_inventory(f'[import]\nstrict = "yes"\n{DEFAULTS}', str(files.directory / "fleet.toml"))
    assert (caught.value.key, caught.value.line) == ("import.strict", 2)
    assert "true or false" in caught.value.mend


def test_one_name_of_two_profiles_is_neither(files: Files) -> None:
    broker, client = "[pool]\nhost=a\n[rest]\nhost=c\n", "[1]\nname=pool\nhost=b\n"
    fleet = files.fleet(broker=broker, client=client)
    assert (set(fleet.profiles), fleet.left_out, set(fleet.servers)) == ({"rest"}, {"pool"}, {"c"})
    (warning,) = fleet.warnings
    assert f"{files.directory / 'x2goclient'}:1: [pool] name: 'pool' is a profile in" in warning
    assert f"{files.directory / 'x2gobroker'}:1 too. rename one of them" in warning
    fleet = files.fleet(broker="[pool]\nhost=a\nusesshproxy=true\n[rest]\nhost=c\n", client=client)
    assert (set(fleet.profiles), fleet.left_out) == ({"rest"}, {"pool"})


def test_collisions_of_servers(files: Files) -> None:
    two = '[servers.x]\nhost = "192.0.2.1"\nhostname = "a"\n[servers.y]\nhost = "192.0.2.2"\nhostname = "a"\n'
    fleet = files.fleet(broker="[pool]\nhost=a\n", toml=two)
    assert "may be each of the servers x, y" in fleet.warnings[0]
    assert (
        files.fleet(broker="[pool]\nhost=a\n", toml=two.replace('2"\nhostname = "a"', '2"\nhostname = "b"')).warnings
        == ()
    )
    broker = "[p]\nhost=a (10.0.0.1)\n[q]\nhost=a (10.0.0.2)\n"
    fleet = files.fleet(broker=broker, toml="[servers.a]\nweight = 2.0\n")
    assert ":4: [q] host: a has the address 10.0.0.1 port 22 in another profile" in fleet.warnings[0]
    assert addresses(fleet) == {"a": ("10.0.0.1", 22)}
    fleet = files.fleet(broker=broker, toml='[servers.a]\nhost = "10.0.0.2"\nweight = 2.0\n')
    assert (addresses(fleet), set(fleet.profiles), fleet.warnings) == ({"a": ("10.0.0.2", 22)}, {"p", "q"}, ())
    toml = '[servers.a]\nweight = 2.0\n[servers.b]\nhost = "10.0.0.1"\n'
    fleet = files.fleet(broker="[p]\nhost=a (10.0.0.1)\n[q]\nhost=b\n", toml=toml)
    assert "a would have the address 10.0.0.1 port 22, which b has" in fleet.warnings[0]
    assert set(fleet.servers) == {"b"}


def test_a_mistake_in_fleet_toml_is_not_hidden_by_an_import(files: Files) -> None:
    error = files.fails(broker="[p]\nhost=ts01\n", toml='[servers]\nts01 = "x"\n')
    assert (error.key, error.reason) == ("servers.ts01", "ts01 is no table")
    error = files.fails(broker="[p]\nhost=ts01\n", toml="[servers.ts01]\nwheight = 2.0\n")
    assert (error.path, error.key) == (str(files.directory / "fleet.toml"), "servers.ts01.wheight")
    error = files.fails(broker="[p]\nhost=ts01\n", toml="[servers.ts02]\nweight = 2.0\n")
    assert (error.key, error.reason) == ("servers.ts02", "host is missing")


def test_a_login_that_is_missing_is_said_of_the_imported_file(files: Files) -> None:
    error = files.fails(broker="[p]\nname=x\nhost=a\n", toml='[defaults]\nuser = "root"\n')
    assert (error.path, error.line, error.key) == (str(files.directory / "x2gobroker"), 3, "p.host")
    assert error.reason == "as servers.a: key_file is missing"
    assert "[defaults]" in error.mend


def test_files_that_can_not_be_read(files: Files) -> None:
    text = '[import]\nx2gobroker = "nowhere/x"\n' + DEFAULTS
    with pytest.raises(InventoryError, match="there is no such file") as caught:
        parse_inventory(text, str(files.directory / "fleet.toml"))
    assert caught.value.path == str(files.directory / "nowhere" / "x")
    assert "[import]" in caught.value.mend
    with pytest.raises(InventoryError, match="it is a directory, not a regular file"):
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
        return READERS[reader](str(path), None)
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
