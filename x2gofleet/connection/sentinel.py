"""sentinel: links to the master of a group that sentinels watch: whoever that is now.

Who the master is, is found out in background threads, and each connection proves that it talks to a master (ROLE): a
master that was deposed while it hung, and does not know yet, is left as soon as the sentinels agree on another.
Protocol: https://redis.io/docs/latest/develop/reference/sentinel-clients/
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import redis
from redis.sentinel import MasterNotFoundError

from x2gofleet.connection.aiolink import AsyncNodeLink
from x2gofleet.connection.discovery import ASK_SECONDS, WAIT_SECONDS, Address, Discovery, ask_all, text_of
from x2gofleet.connection.failures import is_unsent
from x2gofleet.connection.link import NodeLink
from x2gofleet.connection.node import Command, Node
from x2gofleet.connection.urls import Credentials

REFRESH_SECONDS = 0.5
NOBODY = Credentials()

_MOVES_ON = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
)
AnyLink = TypeVar("AnyLink", bound=NodeLink | AsyncNodeLink)


class NoMaster(Exception):
    """A sentinel answered, but names no master that is up."""


@dataclass(frozen=True, slots=True, order=True)
class Named:
    """The master that one sentinel names; the greater ``epoch`` is the newer knowledge."""

    epoch: int
    address: Address


def questions(service: str) -> list[Command]:
    """Return what a sentinel is asked."""
    return [("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service), ("SENTINEL", "MASTER", service)]


def named(replies: Sequence[Any], service: str) -> Named:
    """Decode the replies to ``questions``. Raises NoMaster where they name none that is up."""
    address, told = replies
    if address is None or isinstance(told, Exception):
        why = f": {told}" if isinstance(told, Exception) and "No such master" not in str(told) else ""
        raise NoMaster(f"knows no service {service!r}{why}")
    if isinstance(address, Exception):
        raise NoMaster(str(address))
    items = iter(told)
    facts = {name.decode(): value.decode("utf-8", "replace") for name, value in zip(items, items, strict=True)}
    host, port = address[0].decode(), int(address[1])
    epoch = int(facts.get("config-epoch", "0"))
    if (host, str(port)) != (facts.get("ip"), facts.get("port")):
        # A failover has chosen its new master, whose epoch is told once it is over.
        return Named(epoch + 1, (host, port))
    down = [flag for flag in facts.get("flags", "").split(",") if flag in ("s_down", "o_down")]
    if down:
        raise NoMaster(f"sees the master {text_of((host, port))} down ({', '.join(down)})")
    return Named(epoch, (host, port))


class _Group(Generic[AnyLink]):
    """What both links share: who the master is, and the link to it."""

    def __init__(
        self,
        kind: Callable[[Node], AnyLink],
        sentinels: Sequence[Address],
        service: str,
        node: Node,
        credentials: Credentials,
    ) -> None:
        self._kind, self._service = kind, service
        self._node = replace(node, path="", master_only=True)
        asking = replace(
            node,
            path="",
            database=0,
            credentials=credentials,
            connect_timeout_seconds=ASK_SECONDS,
            command_timeout_seconds=ASK_SECONDS,
            max_connections=None,
        )
        self._sentinels = [NodeLink(replace(asking, host=host, port=port)) for host, port in sentinels]
        self._places = ", ".join(text_of(address) for address in sentinels)
        self._masters = Discovery(self._find, refresh_seconds=REFRESH_SECONDS, nothing_yet=self._nothing_yet)
        self._lock = threading.Lock()
        self._link: tuple[Address, AnyLink] | None = None

    def after_fork(self) -> None:
        """Forget the parent's lock."""
        self._lock = threading.Lock()

    def _find(self) -> Address:
        def ask(sentinel: NodeLink) -> Named:
            until = time.monotonic() + ASK_SECONDS
            return named(sentinel.replies(questions(self._service), deadline=until), self._service)

        answers, failures = ask_all(self._sentinels, ask)
        if answers:
            return max(answers).address
        said = "; ".join(
            f"{sentinel.node.place} {exc}" if isinstance(exc, NoMaster) else str(exc)
            for sentinel, exc in failures.items()
        )
        silent = [each.node.place for each in self._sentinels if each not in failures]
        if silent:
            said = "; ".join(filter(None, (said, f"{', '.join(silent)} did not answer in time")))
        raise MasterNotFoundError(f"no sentinel names a master of the service {self._service!r}: {said}")

    def _nothing_yet(self) -> Exception:
        return MasterNotFoundError(
            f"no sentinel named a master of the service {self._service!r} in time; asked were {self._places}"
        )

    def _link_to(self, address: Address) -> AnyLink:
        """Return the link to the master; that to another one is left."""
        current = self._link
        if current is not None and current[0] == address:
            return current[1]
        with self._lock:
            current = self._link
            if current is not None and current[0] == address:
                return current[1]
            host, port = address
            made = self._kind(replace(self._node, host=host, port=port))
            self._link = address, made
        if current is not None:
            current[1].disconnect()
        return made

    def _goes_on(self, exc: Exception) -> bool:
        """Whether commands may be sent again, to another master: nothing of them was done."""
        if not isinstance(exc, _MOVES_ON):
            return False
        self._masters.renew()
        return is_unsent(exc) or isinstance(exc, redis.exceptions.ReadOnlyError)

    def _disconnect(self) -> None:
        for sentinel in self._sentinels:
            sentinel.close()
        if self._link is not None:
            self._link[1].disconnect()


def _wait_until(deadline: float | None) -> float:
    return time.monotonic() + WAIT_SECONDS if deadline is None else deadline


class SentinelLink(_Group[NodeLink]):
    """A Link to the master of ``service``, named by ``sentinels``; ``node`` says how it is talked to.

    TLS is used for the sentinels too, but the credentials of ``node`` are for the servers, ``credentials`` for the
    sentinels.
    """

    one_clock = True

    def __init__(
        self, sentinels: Sequence[Address], service: str, node: Node, credentials: Credentials = NOBODY
    ) -> None:
        super().__init__(NodeLink, sentinels, service, node, credentials)

    def exchange(
        self, commands: Sequence[Command], *, deadline: float | None = None, near: str | None = None
    ) -> list[Any]:
        """Do what ``NodeLink.exchange`` does; raises MasterNotFoundError where no sentinel names a master.

        Where the master proves to be another one before anything was done, that one is asked.
        """
        until = _wait_until(deadline)
        address = self._masters.get(until)
        try:
            return self._link_to(address).exchange(commands, deadline=deadline)
        except redis.exceptions.RedisError as exc:
            if not self._goes_on(exc):
                raise
            newer = self._masters.renewed(until)
            if newer == address:
                raise
        return self._link_to(newer).exchange(commands, deadline=deadline)

    def scan(self, match: str, *, deadline: float | None = None) -> Iterator[bytes]:
        """Yield the keys of a glob pattern; one may come twice. Raises what ``exchange`` raises."""
        return self._link_to(self._masters.get(_wait_until(deadline))).scan(match, deadline=deadline)

    def close(self) -> None:
        """Close the connections, those to the sentinels too."""
        self._disconnect()


class AsyncSentinelLink(_Group[AsyncNodeLink]):
    """A SentinelLink for asyncio."""

    one_clock = True

    def __init__(
        self, sentinels: Sequence[Address], service: str, node: Node, credentials: Credentials = NOBODY
    ) -> None:
        super().__init__(AsyncNodeLink, sentinels, service, node, credentials)

    async def exchange(
        self, commands: Sequence[Command], *, deadline: float | None = None, near: str | None = None
    ) -> list[Any]:
        """Do what ``SentinelLink.exchange`` does."""
        until = _wait_until(deadline)
        address = await self._masters.get_async(until)
        try:
            return await self._link_to(address).exchange(commands, deadline=deadline)
        except redis.exceptions.RedisError as exc:
            if not self._goes_on(exc):
                raise
            newer = await self._masters.renewed_async(until)
            if newer == address:
                raise
        return await self._link_to(newer).exchange(commands, deadline=deadline)

    async def scan(self, match: str, *, deadline: float | None = None) -> AsyncIterator[bytes]:
        """Do what ``SentinelLink.scan`` does."""
        address = await self._masters.get_async(_wait_until(deadline))
        async for key in self._link_to(address).scan(match, deadline=deadline):
            yield key

    async def aclose(self) -> None:
        """Close the connections, those to the sentinels too."""
        self._disconnect()
        await asyncio.sleep(0)
