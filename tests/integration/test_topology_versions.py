"""Sentinel groups and Clusters of each version: who serves is found out, by threads and by asyncio."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.servers import VERSIONS, Version
from tests.topologies import cluster, sentinel_group
from x2gofleet.connection import async_link_from_url, link_from_url

EACH_VERSION = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
# Far beyond what any of it takes: versions are told apart here, not speeds.
PATIENT: dict[str, Any] = {"connect_timeout_seconds": 5.0, "command_timeout_seconds": 5.0}


def ask_async(url: str, commands: list[tuple[Any, ...]]) -> list[Any]:
    async def ask() -> list[Any]:
        link = async_link_from_url(url, **PATIENT)
        try:
            return await link.exchange(commands)
        finally:
            await link.aclose()

    return asyncio.run(ask())


@EACH_VERSION
def test_a_sentinel_group(version: Version) -> None:
    with sentinel_group(binary=version.binary()) as group:
        link = link_from_url(group.url, **PATIENT)
        assert link.exchange([("SET", "x", "1"), ("GET", "x")]) == [b"OK", b"1"]
        assert ask_async(group.url, [("GET", "x"), ("ROLE",)])[0] == b"1"
        assert list(link.scan("*")) == [b"x"]
        link.close()


@EACH_VERSION
def test_a_cluster(version: Version) -> None:
    with cluster(replicas=0, binary=version.binary()) as nodes:
        link = link_from_url(nodes.url, **PATIENT)
        names = [f"{{{number}}}:x" for number in range(30)]
        assert {nodes.primary_of(name).port for name in names} == {node.port for node in nodes.nodes}
        assert link.exchange([("SET", name, name) for name in names]) == [b"OK"] * 30
        wanted = [name.encode() for name in names]
        assert link.exchange([("GET", name) for name in names]) == wanted
        assert ask_async(nodes.url, [("GET", name) for name in names]) == wanted
        assert sorted(link.scan("*")) == sorted(wanted)
        seconds, _ = link.exchange([("TIME",)], near=names[0])[0]
        assert abs(int(seconds) - time.time()) < 60
        link.close()
