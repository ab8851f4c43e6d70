"""The same files through x2gobroker's and python-x2go's own readers, run by the interpreter that Debian has them for.

Whatever ours accepts means the same to them: hosts, addresses and ports of each profile. Of what ours refuses, each
case that theirs read without a word as something else is shown to be one.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from x2gofleet_workers.importing import READERS, ImportedProfile, LeftOut

from tests.support.import_cases import described, faults, good
from tests.system_python import SYSTEM_PYTHON, require
from x2gofleet.errors import InventoryError

SEED = 20261123
GENERATED_FILES = 400

# Reads paths from stdin; prints what the original makes of each: {profile: {host name: [address, port]}}, or an error.
X2GOBROKER_SIDE = """
import json, sys
import x2gobroker.brokers.inifile_broker as inifile

def read(path):
    broker = inifile.X2GoBroker(profile_config_file=path)
    found = {}
    for name in broker.get_profile_ids():
        profile = broker.get_profile(name)
        found[name] = {
            host: [profile.get("host=" + host, host), int(profile.get("sshport=" + host, profile["sshport"]))]
            for host in profile["host"]
        }
    return found
"""
X2GOCLIENT_SIDE = """
import json, sys
import x2go.log
from x2go.backends.profiles.file import X2GoSessionProfiles

def read(path):
    profiles = X2GoSessionProfiles(config_files=[path], loglevel=x2go.log.loglevel_ERROR)
    return {
        profiles.to_profile_name(name): {
            host: [host, profiles.get_profile_config(name, "sshport")]
            for host in profiles.get_profile_config(name, "host")
        }
        for name in profiles.profile_ids
    }
"""
ANSWER = """
def attempt(path):
    try:
        return {"value": read(path)}
    except BaseException as exc:
        return {"raised": type(exc).__name__}

answers = [attempt(path) for path in json.load(sys.stdin)]
print("\\nANSWER " + json.dumps(answers))
"""
SIDES = {
    "x2gobroker": ("x2gobroker", "python3-x2gobroker", X2GOBROKER_SIDE),
    "x2goclient": ("x2go", "python3-x2go", X2GOCLIENT_SIDE),
}


def theirs(source: str, paths: list[Path], home: Path) -> list[dict[str, Any]]:
    package, debian, side = SIDES[source]
    require(package, debian)
    return answers_of(side, paths, home)


def answers_of(side: str, paths: list[Path], home: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [SYSTEM_PYTHON, "-W", "ignore", "-c", side + ANSWER],
        input=json.dumps([str(path) for path in paths]),
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "\nANSWER " in done.stdout, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout.rpartition("\nANSWER ")[2])
    return answers


def ours(source: str, path: Path) -> tuple[ImportedProfile, ...] | None:
    try:
        return READERS[source](str(path), None)
    except InventoryError:
        return None


def written(directory: Path, texts: list[str]) -> list[Path]:
    paths = [directory / f"file-{number}" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    return paths


GOOD_HOSTS = {
    "x2gobroker": (
        *("a", "ts01", "TS02.Example.org", "10.0.0.1", "2001:db8::5", "h_1", "3com.example.org", "localhost"),
        *(
            "b (10.0.0.2)",
            "c (10.0.0.3:2222)",
            "d.example.org (10.0.0.4)",
            "e (host.example.org:23)",
            "4u (10.0.0.5:1)",
        ),
        *(
            "v6 (2001:db8::1:2222)",
            "w6 (fe80::a)",
            "x6 (0:0:0:0:0:ffff:10.0.0.9:22)",
            "y6 (2001:db8::ff)",
            "z (localhost)",
        ),
    ),
    "x2goclient": ("a", "ts01", "TS02.Example.org", "10.0.0.1", "2001:db8::5", "h_1", "3com.example.org", "localhost"),
}
ODD_HOSTS = (
    *("", " ", "a(10.0.0.1)", "a  (10.0.0.1)", "a (10.0.0.1", "a ()", "a (ts01)", "a_b (10.0.0.1)", "a (10.0.1)"),
    *("a (2001:db8::1)", "a ([2001:db8::1]:22)", "a ([2001:db8::1])", "a (*:22)", "a (:22)", "a (10.0.0.1:99999)"),
    *(
        "a (10.0.0.1:-1)",
        "a (10.0.0.1:)",
        "a:22",
        "root@a",
        "a # x",
        "a ; x",
        "[::1]",
        "*",
        "a b",
        "1.2.3",
        "a (b (c))",
    ),
    *(
        "a (10.0.0.1:٣)",
        "a (10.0.0.1: 22)",
        "a (1:2:3)",
        "a (10.0.0.1:2_2)",
        "a\t(10.0.0.1)",
        "a (fe80::1%eth0)",
        "a (::ffff:10.0.0.9:22)",
        "a (::1)",
    ),
)
KEYS = ("sshport=22", "sshport=2222", "sshport = 1", "sshport: 65535")
ODD_KEYS = (
    "sshport=0",
    "sshport=x",
    "sshport=",
    "SSHPort=2222",
    "port=2222",
    "  sshport=2222",
    "sshport=70000",
    "Host=q",
)
OTHER = ("command=MATE", "user=BROKER_USER", "# a comment", "; another", "", "acl-users-allow=a,b", "rootless=false")


def generated(source: str, chance: random.Random, *, odd: bool) -> str:
    lines = []
    if source == "x2gobroker" and chance.random() < 0.3:
        lines += ["[DEFAULT]", chance.choice(KEYS if not odd or chance.random() < 0.8 else ODD_KEYS)]
    for number in range(chance.randrange(1, 4)):
        hosts = chance.sample(GOOD_HOSTS[source], chance.randrange(1, 4))
        if odd and chance.random() < 0.5:
            hosts.insert(chance.randrange(len(hosts) + 1), chance.choice(ODD_HOSTS))
        body = [
            f"name=profile {number}",
            "host" + chance.choice(("=", " = ", ":")) + chance.choice((",", ", ")).join(hosts),
        ]
        body += chance.sample(OTHER, 2)
        if chance.random() < 0.5:
            body.append(chance.choice(KEYS if not odd or chance.random() < 0.7 else ODD_KEYS))
        if not any(line.startswith("  ") for line in body):
            chance.shuffle(body)
        lines += [f"[p{number}]", *body]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("source", SIDES)
def test_every_valid_file_means_the_same(source: str, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    paths = written(tmp_path, [generated(source, chance, odd=False) for _ in range(GENERATED_FILES)])
    for path, answer in zip(paths, theirs(source, paths, tmp_path), strict=True):
        profiles = ours(source, path)
        assert profiles is not None, path.read_text()
        assert answer == {"value": described(profiles)}, path.read_text()


@pytest.mark.parametrize("source", SIDES)
def test_what_is_accepted_of_odd_files_means_the_same(source: str, tmp_path: Path) -> None:
    chance = random.Random(SEED + 1)
    paths = written(tmp_path, [generated(source, chance, odd=True) for _ in range(GENERATED_FILES)])
    counts = Counter[str]()
    for path, answer in zip(paths, theirs(source, paths, tmp_path), strict=True):
        profiles = ours(source, path)
        if profiles is None:
            counts["refused, read by the original" if "value" in answer else "refused by both"] += 1
            continue
        counts["accepted"] += 1
        assert answer == {"value": described(profiles)}, path.read_text()
    print(source, dict(counts))
    assert min(counts["accepted"], counts["refused, read by the original"]) > GENERATED_FILES // 20


def test_debian_s_own_sample_is_accepted(tmp_path: Path) -> None:
    sample = Path("/etc/x2go/broker/x2gobroker-sessionprofiles.conf")
    if not sample.exists():
        pytest.skip("no x2gobroker-common here: apt-get install x2gobroker-common")
    examples = "\n".join(
        line.removeprefix("#") if line.startswith(("#[", "#host=", "#name=")) else line
        for line in sample.read_text(encoding="utf-8").splitlines()
    )
    for path in written(tmp_path, [sample.read_text(encoding="utf-8"), examples]):
        profiles = ours("x2gobroker", path)
        assert profiles is not None
        assert theirs("x2gobroker", [path], tmp_path) == [{"value": described(profiles)}]
    assert {"pool-B-server-D-LXDE", "pool-C-XFCE"} <= {profile.name for profile in profiles}


# What ours refuses, and what the original silently makes of it.
SILENTLY = {
    "the name in the place of its address": ("[p]\nhost=a (ts01)\n", {"p": {"a": ["a", 22]}}),
    "no address of a bracketed one": ("[p]\nhost=a ([2001:db8::1]:2222)\n", {"p": {"a": ["a", 22]}}),
    "a port of an address's last group": ("[p]\nhost=a (2001:db8::1)\n", {"p": {"a": ["a", 22]}}),
    "no address of one that begins with ::": ("[p]\nhost=a (::2:3:22)\n", {"p": {"a": ["a", 22]}}),
    "any address of two blanks": ("[p]\nhost=a  (10.0.0.1)\n", {"p": {"a": ["0.0.0.0", 22]}}),
    "a port that is none": ("[p]\nhost=a (10.0.0.1:99999)\n", {"p": {"a": ["10.0.0.1", 99999]}}),
    "a comment as a name": ("[p]\nhost=a # x\n", {"p": {"a # x": ["a # x", 22]}}),
    "localhost of a wrong case": ("[p]\nHost=a\n", {"p": {"localhost": ["localhost", 22]}}),
    "no host": ("[p]\nhost=\n", {"p": {}}),
    "the default port of a wrong case": ("[p]\nhost=a\nSSHPort=2222\n", {"p": {"a": ["a", 22]}}),
    "the last of two addresses": ("[p]\nhost=a (10.0.0.1:23), a (10.0.0.1:24)\n", {"p": {"a": ["10.0.0.1", 24]}}),
    "a port as part of a name": ("[p]\nhost=a:2222\n", {"p": {"a:2222": ["a:2222", 22]}}),
    "a profile of defaults": (
        *("[DEFAULTS]\nsshport=2222\n[p]\nhost=a\n",),
        {"DEFAULTS": {"localhost": ["localhost", 2222]}, "p": {"a": ["a", 22]}},
    ),
}


@pytest.mark.parametrize("what", SILENTLY)
def test_what_the_original_reads_silently_wrong_is_refused(what: str, tmp_path: Path) -> None:
    text, read = SILENTLY[what]
    (path,) = written(tmp_path, [text])
    assert theirs("x2gobroker", [path], tmp_path) == [{"value": read}]
    assert ours("x2gobroker", path) is None


def test_the_program_in_a_file_is_run_by_the_original_alone(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (path,) = written(tmp_path, [f"[p]\nhost=[open('{mark}', 'w').name]\n"])
    assert ours("x2gobroker", path) is None
    assert not mark.exists()
    theirs("x2gobroker", [path], tmp_path)
    assert mark.exists()


@pytest.mark.parametrize("source", SIDES)
def test_what_the_tables_accept_means_the_same(source: str, tmp_path: Path) -> None:
    texts = [case.text for case in good() if case.source == source and case.original]
    texts += [fault.fixed for fault in faults() if fault.source == source and fault.fixed]
    # With QSettings' own quotes and escapes python-x2go reads other names.
    texts = [text for text in texts if source == "x2gobroker" or not set('"\\') & set(text)]
    paths = written(tmp_path, texts)
    for path, answer in zip(paths, theirs(source, paths, tmp_path), strict=True):
        profiles = ours(source, path)
        assert profiles is not None, path.read_text()
        assert answer == {"value": described(profiles)}, path.read_text()
    assert len(paths) > 5


# Reads paths from stdin; prints name, user, key, host and port of each section as X2Go Client's QSettings has them.
QSETTINGS_SIDE = """
import json, sys
from PySide2.QtCore import QSettings

def read(path):
    settings = QSettings(path, QSettings.IniFormat)
    found = {}
    for group in settings.childGroups():
        values = [settings.value(group + "/" + key) for key in ("name", "user", "key", "host", "sshport")]
        if values[0] is not None and values[3] is not None:
            found[values[0]] = values
    return found
"""
GENERATED_NAMES = 300


def qsettings(paths: list[Path], home: Path, side: str = QSETTINGS_SIDE) -> list[dict[str, Any]]:
    require("PySide2.QtCore", "python3-pyside2.qtcore")
    return answers_of(side, paths, home)


def as_qsettings(profiles: tuple[ImportedProfile, ...]) -> dict[str, list[str]]:
    return {
        profile.name: [profile.user or "", profile.key or "", profile.hosts[0].address, str(profile.hosts[0].port)]
        for profile in profiles
    }


def test_qsettings_reads_what_the_tables_say(tmp_path: Path) -> None:
    cases = [case for case in good() if case.source == "x2goclient" and case.settings]
    texts = [case.text for case in cases]
    texts += [fault.fixed for fault in faults() if fault.source == "x2goclient" and fault.fixed]
    # QSettings takes hosts that are split by commas for a list.
    texts = [text for text in texts if "," not in text.partition("host=")[2].partition("\n")[0]]
    paths = written(tmp_path, texts)
    for path, answer in zip(paths, qsettings(paths, tmp_path), strict=True):
        profiles = ours("x2goclient", path)
        assert profiles is not None, path.read_text()
        read = {name: [each or "" for each in values[1:4]] for name, values in answer["value"].items()}
        assert read == {name: values[:3] for name, values in as_qsettings(profiles).items()}, path.read_text()
    assert len(paths) > 10


# Writes sessions files as X2Go Client does, with names and users of all sorts.
QSETTINGS_WRITER = """
import json, random, sys
from PySide2.QtCore import QSettings

def read(path):
    chance = random.Random(path)
    settings = QSettings(path, QSettings.IniFormat)
    pieces = ["a", "B", "0", "f", " ", chr(92), '"', ";", ",", "=", "@", "(", ")", "ü", "ß", "東", "😀", "x", "#", "'"]
    names = {}
    for number in range(10):
        name = "".join(chance.choice(pieces) for _ in range(chance.randrange(1, 9))).strip()
        if name and name not in names.values():
            names[str(number)] = name
            settings.setValue(str(number) + "/name", name)
            settings.setValue(str(number) + "/host", "ts%d.example.org" % number)
            settings.setValue(str(number) + "/user", "CORP" + chr(92) + "user%d" % number)
    settings.sync()
    return names
"""


def test_what_qsettings_writes_is_read(tmp_path: Path) -> None:
    paths = [tmp_path / f"sessions-{number}" for number in range(GENERATED_NAMES // 10)]
    read = 0
    for path, answer in zip(paths, qsettings(paths, tmp_path, QSETTINGS_WRITER), strict=True):
        left_out: list[LeftOut] = []
        profiles = READERS["x2goclient"](str(path), left_out)
        names = set(answer["value"].values())
        assert {profile.name for profile in profiles} | {each.name for each in left_out} == names, path.read_text()
        assert {profile.user[:5] for profile in profiles} <= {"CORP\\"}
        read += len(profiles)
    assert read > GENERATED_NAMES // 2
