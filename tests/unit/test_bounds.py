"""The bounds of pyproject.toml: each has a lowest version that `make test-lowest` runs with, some have a highest."""

from __future__ import annotations

import pytest

from tests.lowest import constraints, requirements

WITHOUT_LOWER_BOUND = {"types-paramiko", "types-psutil"}


def test_each_requirement_has_one_lower_bound() -> None:
    assert {name for name, _, _ in requirements()} - set(constraints()) == WITHOUT_LOWER_BOUND
    for name, bounds, _ in requirements():
        if name not in WITHOUT_LOWER_BOUND:
            lower = bounds.partition(",")[0].removeprefix(">=")
            assert constraints()[name].partition(";")[0] == f"{name}=={lower}", "it is the same in each extra"


@pytest.mark.parametrize("name", ["redis", "paramiko", "apscheduler"])
def test_where_private_attributes_are_used_there_is_an_upper_bound(name: str) -> None:
    found = [bounds for each, bounds, _ in requirements() if each == name]
    assert found
    assert all(",<" in bounds for bounds in found)
