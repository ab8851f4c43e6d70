"""Prints pip constraints that pin each requirement of pyproject.toml to its lowest version, for `make test-lowest`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def requirements() -> Iterator[tuple[str, str, str]]:
    """Yield the name, the version bounds and the marker of each requirement, those of extras included."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    for requirement in chain(project["dependencies"], *project["optional-dependencies"].values()):
        package, _, marker = requirement.partition(";")
        found = re.fullmatch(r"([\w.-]+)(?:\[[^]]*\])?(.*)", package.strip())
        assert found, f"not understood: {requirement}"
        if found[1] != project["name"]:
            yield found[1], found[2], marker.strip()


def constraints() -> dict[str, str]:
    """Return the constraint of each requirement that has a lower bound, by its name."""
    found = {}
    for name, bounds, marker in requirements():
        lower = re.search(r">=([0-9.]+)", bounds)
        if lower:
            found[name] = f"{name}=={lower[1]}" + (f"; {marker}" if marker else "")
    return found


if __name__ == "__main__":
    print("\n".join(sorted(constraints().values())))
