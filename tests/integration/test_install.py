"""What is built has its license, and the commands of docs/install.md work: they are run below the test's own prefix."""

from __future__ import annotations

import email
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from x2gofleet_workers.simulator import running_simulation

from ..unit.test_no_index import source_files  # noqa: TID252

ROOT = Path(__file__).parents[2]
LICENSE = (ROOT / "LICENSE").read_bytes()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TIMEOUT_SECONDS = 300.0
pytestmark = pytest.mark.install
SYSTEM_PYTHON = Path("/usr/bin/python3")


def console_commands(document: str, section: str = "") -> list[str]:
    """Return the commands of a document's console blocks, in order; of one ``## section`` where that is given."""
    text = (ROOT / document).read_text(encoding="utf-8")
    if section:
        text = re.split(r"^## ", text.partition(f"## {section}\n")[2], maxsplit=1, flags=re.M)[0]
    blocks = re.findall(r"^ *```console\n(.*?)^ *```", text, re.M | re.S)
    return [line.strip()[2:] for block in blocks for line in block.splitlines() if line.strip()]


def environment(**more: str) -> dict[str, str]:
    """Return this environment without what would have pip or Python look elsewhere."""
    hidden = ("PYTHON", "VIRTUAL_ENV", "X2GOFLEET_")
    return {key: value for key, value in os.environ.items() if not key.startswith(hidden)} | more


class Machine:
    """A checkout to work in, and a prefix that stands for /opt, /etc and the like."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.checkout = folder, folder / "checkout"
        self.venv = folder / "opt" / "x2gofleet"
        for path in source_files():
            target = self.checkout / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)

    def translated(self, command: str) -> str:
        """Return a documented command for this prefix, this Python, and the user that runs the tests."""
        command = re.sub(r"(?<![\w/])/(opt|etc)/x2gofleet", rf"{self.folder}/\1/x2gofleet", command)
        command = re.sub(r"^python3 ", f"{shlex.quote(sys.executable)} ", command)
        command = re.sub(r"^useradd ", f"useradd --prefix {self.folder} ", command)
        command = re.sub(r"^runuser -u x2gofleet -- ", "", command)
        return re.sub(r"^(install .*)-g x2gofleet", rf"\1-g {os.getgid()}", command)

    def shell(self, command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout."""
        return subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.checkout,
            env=environment(**more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )

    def follow(self, commands: list[str]) -> str:
        """Run documented commands, each of which must succeed; return what the last one printed."""
        assert commands
        for command in commands:
            done = self.shell(self.translated(command))
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    @property
    def wheel(self) -> Path:
        (found,) = (self.checkout / "dist").glob("x2gofleet-*.whl")
        return found

    def reset(self) -> None:
        """Remove what was installed."""
        shutil.rmtree(self.folder / "opt", ignore_errors=True)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine on which the wheel has been built as documented."""
    machine = Machine(tmp_path_factory.mktemp("machine"))
    machine.follow(console_commands("docs/install.md", "Build the wheel"))
    return machine


@pytest.fixture(autouse=True)
def _nothing_installed(machine: Machine) -> None:
    machine.reset()


def metadata_of(text: bytes) -> Message:
    return email.message_from_bytes(text)


def check_metadata(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("x2gofleet", PROJECT["version"])
    assert (metadata["License-Expression"], metadata.get_all("License-File")) == ("MIT", ["LICENSE"])
    assert "Private :: Do Not Upload" in metadata.get_all("Classifier", [])
    # pip would look on an index for a requirement of that name.
    assert not [text for text in metadata.get_all("Requires-Dist", []) if text.startswith("x2gofleet")]


def test_the_wheel_has_the_license_and_nothing_but_the_packages(machine: Machine) -> None:
    assert machine.wheel.name == f"x2gofleet-{PROJECT['version']}-py3-none-any.whl"
    with zipfile.ZipFile(machine.wheel) as wheel:
        names = wheel.namelist()
        info = f"x2gofleet-{PROJECT['version']}.dist-info"
        assert {name.partition("/")[0] for name in names} == {"x2gofleet", "x2gofleet_entry", "x2gofleet_workers", info}
        assert wheel.read(f"{info}/licenses/LICENSE") == LICENSE
        check_metadata(metadata_of(wheel.read(f"{info}/METADATA")))
        folders = {
            "x2gofleet": "x2gofleet",
            "x2gofleet_entry": "x2gofleet_entry",
            "workers/x2gofleet_workers": "x2gofleet_workers",
        }
        wanted = {
            f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
            for folder, package in folders.items()
            for path in source_files()
            if path.is_relative_to(ROOT / folder)
        }
        assert wanted <= set(names)


def test_the_oldest_hatchling_that_is_allowed_builds_sdist_and_wheel(machine: Machine) -> None:
    """And the sdist has all that its tests need."""
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    (lowest,) = re.findall(r"hatchling>=([\d.]+)", requires[0])
    tool, out = machine.folder / "hatchling", machine.folder / "built"
    machine.follow([f"python3 -m venv {tool}", f"{tool}/bin/pip install hatchling~={lowest}.0 build"])
    machine.follow([f"{tool}/bin/python -m build --no-isolation --outdir {out} ."])
    top = f"x2gofleet-{PROJECT['version']}"
    with zipfile.ZipFile(out / machine.wheel.name) as wheel:
        check_metadata(metadata_of(wheel.read(f"{top}.dist-info/METADATA")))
    with tarfile.open(out / f"{top}.tar.gz") as archive:
        names = {name.removeprefix(f"{top}/") for name in archive.getnames()}
        license_file, metadata = archive.extractfile(f"{top}/LICENSE"), archive.extractfile(f"{top}/PKG-INFO")
        assert license_file is not None
        assert metadata is not None
        assert license_file.read() == LICENSE
        check_metadata(metadata_of(metadata.read()))
    outside = {".ci", ".dockerignore"}
    wanted = {path.relative_to(ROOT).as_posix() for path in source_files()}
    assert {name for name in wanted - names if name.partition("/")[0] not in outside} == set()


def test_a_reader_is_installed_as_documented(machine: Machine) -> None:
    assert machine.follow(console_commands("docs/install.md", "A reader")) == f"x2gofleet {PROJECT['version']}\n"
    installed = machine.shell(f"{machine.venv}/bin/pip list --format freeze").stdout
    assert re.search(r"^rich==", installed, re.M)
    assert not re.search(r"^paramiko==", installed, re.M)
    license_file = next(machine.venv.glob("lib/python*/site-packages/x2gofleet-*.dist-info/licenses/LICENSE"))
    assert license_file.read_bytes() == LICENSE
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    (requirement,) = re.findall(r"`(x2gofleet @ file://.*\.whl)`", text)
    (machine.folder / "requirements.txt").write_text(requirement.replace("/srv/wheels", str(machine.wheel.parent)))
    machine.follow([f"{machine.venv}/bin/pip install --dry-run --no-index -r {machine.folder}/requirements.txt"])
    redis = machine.shell(
        f"{machine.venv}/bin/python -c 'import x2gofleet; "
        'print(x2gofleet.FleetCache.from_url("redis://127.0.0.1:1/0").is_cached("mate"))\''
    )
    assert "CacheUnavailable" in redis.stderr


def test_a_worker_is_installed_as_documented_and_polls(machine: Machine) -> None:
    (machine.folder / "etc").mkdir(exist_ok=True)
    commands = console_commands("docs/install.md", "A worker")
    words = {command.split()[0] for command in commands}
    assert {"useradd", "install", "runuser"} <= words
    if os.getuid() != 0 or shutil.which("useradd") is None:
        commands = [command for command in commands if not command.startswith("useradd ")]
    else:
        for name in ("passwd", "group", "shadow", "gshadow"):
            (machine.folder / "etc" / name).touch()
    with running_simulation(2, 4) as simulation:
        made = machine.folder / "made"
        made.mkdir()
        simulation.write_inventory(made / "fleet.toml")
        text = (made / "fleet.toml").read_text()
        key, known_hosts = sorted(path for path in made.iterdir() if path.suffix in (".key", ".known_hosts"))
        text = text.replace(str(key), "id_x2gofleet").replace(str(known_hosts), "known_hosts")
        for source, name in ((key, "id_x2gofleet"), (known_hosts, "known_hosts")):
            text = text.replace(source.name, name)
            shutil.copy(source, machine.checkout / name)
        (machine.checkout / "fleet.toml").write_text(text)
        said = machine.follow(commands)
    assert said.splitlines()[-1] == "all 2 target(s) answer"
    if "useradd" in {command.split()[0] for command in commands}:
        assert re.search(r"^x2gofleet:.*:/usr/sbin/nologin$", (machine.folder / "etc" / "passwd").read_text(), re.M)
    assert os.stat(machine.folder / "etc" / "x2gofleet" / "id_x2gofleet").st_mode & 0o7777 == 0o640
    assert os.stat(machine.folder / "etc" / "x2gofleet").st_mode & 0o7777 == 0o750


def test_a_worker_is_installed_without_an_index(machine: Machine) -> None:
    collect, *install = console_commands("docs/install.md", "Where no index can be reached")
    machine.follow([collect])
    # What pip is configured for must not help.
    bare = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "", "PIP_CONSTRAINT": ""}
    for command in install:
        done = machine.shell(machine.translated(command), **bare)
        assert done.returncode == 0, done.stdout + done.stderr
    assert machine.follow(["/opt/x2gofleet/bin/x2gofleet-worker --version"]) == f"x2gofleet {PROJECT['version']}\n"


def test_it_is_installed_beside_the_system_s_python_as_documented(machine: Machine) -> None:
    commands = [command for command in console_commands("docs/x2gobroker.md") if "/opt/x2gofleet" in command]
    assert len(commands) == 2
    assert set(commands) <= set(console_commands("docs/python-x2go.md"))
    if not SYSTEM_PYTHON.exists() or machine.shell(f"{SYSTEM_PYTHON} -c 'import ensurepip'").returncode:
        pytest.skip("Debian's python3 and python3-venv are not installed")
    machine.follow(commands)
    said = machine.follow(["/opt/x2gofleet/bin/python -c 'import x2gofleet, redis; print(redis.__version__)'"])
    assert tuple(map(int, said.split(".")[:2])) >= (5, 3)
    assert (machine.venv / "bin" / "x2gofleet-x2gobroker").exists()


def test_the_unit_is_one(machine: Machine) -> None:
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    (unit,) = re.findall(r"^```ini\n(.*?)^```", text, re.M | re.S)
    assert "ExecStart=/opt/x2gofleet/bin/x2gofleet-worker run --inventory /etc/x2gofleet/fleet.toml\n" in unit
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    program = machine.venv / "bin" / "x2gofleet-worker"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = machine.folder / "x2gofleet-worker.service"
    # The user is of the machine that runs the test.
    path.write_text(unit.replace("/opt/x2gofleet", str(machine.venv)).replace("User=x2gofleet", "User=root"))
    done = machine.shell(f"systemd-analyze verify {path}")
    assert str(path.name) not in done.stderr, done.stderr


# Advice


def on_a_terminal(command: list[str]) -> str:
    """Run a command on a narrow terminal; return what it printed."""
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment(COLUMNS="40", LINES="20")
    )
    os.close(terminal)
    printed = b""
    try:
        while data := os.read(master, 65536):
            printed += data
            if b"q ends" in printed:
                os.write(master, b"q")
    except OSError:
        pass
    finally:
        os.close(master)
        process.kill()
        process.wait(TIMEOUT_SECONDS)
    return printed.decode().replace("\r\n", "\n")


def test_what_a_message_says_to_install_is_what_it_takes(
    machine: Machine, valkey_url: str, namespace: str, fleet: Any
) -> None:
    """Beginning with a reader alone, the command of each message is run; then the message does not come again."""
    machine.follow(["python3 -m venv /opt/x2gofleet", f"/opt/x2gofleet/bin/pip install {machine.wheel}"])
    fleet.publish({"mate": ["ts01"]})
    programs = machine.venv / "bin"

    def watch() -> str:
        return on_a_terminal([f"{programs}/x2gofleet", "watch", "--redis-url", valkey_url, "--namespace", namespace])

    def python(code: str) -> Callable[[], str]:
        return lambda: machine.shell(f"{programs}/python -c {shlex.quote(code)}").stderr

    embedded = "from x2gofleet_workers.embedded import EmbeddedValkey\nwith EmbeddedValkey(): pass"
    steps: list[tuple[str, str, Callable[[], str]]] = [
        ("", "the live view needs rich", watch),
        (
            "",
            "a worker needs more than a reader",
            lambda: machine.shell(f"{programs}/x2gofleet-worker --version").stderr,
        ),
        (
            "prometheus-client",
            "metrics need the package prometheus_client",
            python("from x2gofleet_workers.metrics import PrometheusMetrics; PrometheusMetrics()"),
        ),
        ("", "the embedded Valkey is not installed", python(embedded)),
        ("", "the simulator needs asyncssh", python("from x2gofleet_workers.simulator import Simulation")),
    ]
    for uninstalled, complaint, run in steps:
        if uninstalled:
            machine.follow([f"/opt/x2gofleet/bin/pip uninstall --yes {uninstalled}"])
        said = run()
        assert complaint in said
        advice = re.search(r"(\S+/python\S* -m pip install .*)$", said, re.M)
        assert advice, said
        machine.follow([advice[1]])
        again = run()
        assert complaint not in again
        assert "Traceback" not in again
