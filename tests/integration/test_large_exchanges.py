"""Exchanges that redis-py packs in several pieces: many commands, large values, both ways."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.waiting import PATIENT
from x2gofleet.connection import async_link_from_url, client_from_url, link_from_url, link_of
from x2gofleet.lookup import Command

SIZES = {"one small": (1, 3), "many small": (3000, 3), "one large": (1, 3_000_000), "several large": (5, 300_000)}


def exchanged(kind: str, url: str, commands: list[Command]) -> list[Any]:
    if kind == "asyncio":

        async def talk() -> list[Any]:
            link = async_link_from_url(url, **PATIENT)
            try:
                return await link.exchange(commands)
            finally:
                await link.aclose()

        return asyncio.run(talk())
    link = link_of(client_from_url(url, **PATIENT)) if kind == "client" else link_from_url(url, **PATIENT)
    try:
        return link.exchange(commands)
    finally:
        link.close()


@pytest.mark.parametrize("kind", ["blocking", "asyncio", "client"])
@pytest.mark.parametrize(("count", "length"), SIZES.values(), ids=SIZES)
def test_an_exchange_may_be_large(valkey_url: str, kind: str, count: int, length: int) -> None:
    texts = [b"%d " % number + b"x" * length for number in range(count)]
    assert exchanged(kind, valkey_url, [("ECHO", text) for text in texts]) == texts
