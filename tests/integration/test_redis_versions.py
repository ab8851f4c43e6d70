"""Callers' clients on each version of redis-py that may be installed, with hiredis and without: one contract for all.

The versions are installed in virtual environments below the one that runs the tests, once; all else comes from there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from .reader import OwnValkey

ROOT = Path(__file__).parents[2]
CONTRACT = ("tests/integration/test_own_clients.py",)
# The lowest that is allowed, then the last but one of each line; pip installs the newest of all.
VERSIONS = {
    "5.3.0": ("redis==5.3.0", "hiredis==3.2.0"),
    "6.4.0": ("redis==6.4.0", "hiredis"),
    "7.1.0": ("redis==7.1.0", "hiredis"),
    "8.1.0": ("redis==8.1.0", "hiredis"),
}

PROGRAM = """
import sys

version, hiredis, *arguments = sys.argv[1:]
if hiredis == "without":
    sys.modules["hiredis"] = None
import redis
from redis.utils import HIREDIS_AVAILABLE

assert (redis.__version__, HIREDIS_AVAILABLE) == (version, hiredis == "with"), (redis.__version__, HIREDIS_AVAILABLE)
import pytest

sys.exit(pytest.main(arguments))
"""


def environment_of(version: str) -> Path:
    """Return the Python of a virtual environment with a version of redis-py, which is made where there is none yet."""
    made = Path(sys.prefix, "redis-versions", f"{version}-{sysconfig.get_python_version()}")
    if not made.exists():
        building = made.with_name(f"{made.name}.{os.getpid()}")
        venv.create(building, with_pip=False)
        python = building / "bin" / "python"
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *VERSIONS[version]]
        done = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            shutil.rmtree(building)
            lacking = f"redis-py {version} can't be installed: {done.stderr.strip()[-500:]}"
            if os.environ.get("X2GOFLEET_REQUIRE_E2E") == "1":
                pytest.fail(lacking, pytrace=False)
            pytest.skip(lacking)
        (site,) = building.glob("lib/python*/site-packages")
        # What is not in the environment itself is found in the one that runs this.
        (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
        try:
            building.rename(made)
        except OSError:
            # Another process was quicker.
            shutil.rmtree(building)
    return made / "bin" / "python"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnValkey]:
    """Listens on TCP: RESP3 over a unix socket is beyond redis-py 7."""
    with OwnValkey(tmp_path_factory.mktemp("valkey")) as valkey:
        yield valkey


@pytest.mark.parametrize("hiredis", ["with", "without"])
@pytest.mark.parametrize("version", VERSIONS)
def test_clients_of_each_version(version: str, hiredis: str, server: OwnValkey) -> None:
    python = environment_of(version)
    done = subprocess.run(
        [python, "-c", PROGRAM, version, hiredis, "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *CONTRACT],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'workers'}", "X2GOFLEET_TEST_REDIS_URL": server.url},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"^(\d+) passed in ", done.stdout, re.MULTILINE)
    assert passed is not None, f"not all passed, or some were skipped: {done.stdout[-500:]}"
    assert int(passed[1]) > 40
