"""cluster: links to a Redis Cluster: each command to the node that serves its key, all nodes at once.

Which node serves which key is found out in background threads (slots.py says how), from any node that answers.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import redis

from x2gofleet.connection.aiolink import AsyncNodeLink
from x2gofleet.connection.discovery import ASK_SECONDS, WAIT_SECONDS, Address, Discovery, ask_all, text_of
from x2gofleet.connection.failures import LinkFailed, LinkTimeout, is_unsent
from x2gofleet.connection.link import NodeLink, Opened
from x2gofleet.connection.node import Command, Node, settled
from x2gofleet.connection.slots import MAP_COMMANDS, Answers, Batches, SlotMap, Talk, Told
from x2gofleet.errors import Unavailable

REFRESH_SECONDS = 15.0
_MOST_ASKED = 6

_RENEWS = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.AskError,
)
AnyLink = TypeVar("AnyLink", bound=NodeLink | AsyncNodeLink)


class _Nodes(Generic[AnyLink]):
    """What both links share: the map of the slots, and a link to each node."""

    def __init__(self, kind: Callable[[Node], AnyLink], seeds: Sequence[Address], node: Node) -> None:
        self._kind, self._seeds = kind, tuple(seeds)
        self._node = replace(node, path="", database=0)
        self._asking = replace(
            self._node,
            connect_timeout_seconds=ASK_SECONDS,
            command_timeout_seconds=ASK_SECONDS,
            max_connections=None,
        )
        self._links: dict[Address, AnyLink] = {}
        self._maps = Discovery(self._find, refresh_seconds=REFRESH_SECONDS, nothing_yet=self._nothing_yet)

    def _find(self) -> SlotMap:
        known = self._maps.known
        others: list[Address] = [address for address in (known.nodes if known else ()) if address not in self._seeds]
        asked = [*self._seeds, *random.sample(others, min(len(others), _MOST_ASKED))]
        answers, failures = ask_all(asked, self._ask)
        if not answers:
            raise self._unanswered(failures)
        found = SlotMap.merged(answers)
        for address in set(self._links) - {*found.nodes, *found.primaries}:
            self._links.pop(address).disconnect()
        return found

    def _ask(self, address: Address) -> Told:
        host, port = address
        link = NodeLink(replace(self._asking, host=host, port=port))
        try:
            slots, nodes = link.replies(MAP_COMMANDS, deadline=time.monotonic() + ASK_SECONDS)
        finally:
            link.close()
        if isinstance(slots, Exception):
            raise slots
        return Told.from_replies(slots, nodes, address)

    def _unanswered(self, failures: dict[Address, Exception]) -> Exception:
        refused = next((exc for exc in failures.values() if "cluster support disabled" in str(exc)), None)
        if refused is not None:
            return LinkFailed("this Redis is no Cluster: use redis://HOST:PORT/DB", Unavailable.OTHER)
        for exc in failures.values():
            if not isinstance(exc, (LinkFailed, LinkTimeout)):
                return exc
        said = "; ".join(str(exc) for exc in failures.values()) or "nobody answered in time"
        reasons = {exc.reason for exc in failures.values() if isinstance(exc, LinkFailed)}
        reason = reasons.pop() if len(reasons) == 1 else Unavailable.UNREACHABLE
        return LinkFailed(f"no node of the Cluster tells who serves what: {said}", reason)

    def _nothing_yet(self) -> Exception:
        asked = ", ".join(text_of(address) for address in self._seeds)
        return LinkTimeout(f"no node of the Cluster told in time who serves what; asked were {asked}")

    def _link_to(self, address: Address) -> AnyLink:
        link = self._links.get(address)
        if link is None:
            host, port = address
            link = self._links.setdefault(address, self._kind(replace(self._node, host=host, port=port)))
        return link

    def _settled(self, talk: Talk, replies: list[Any]) -> list[Any]:
        if talk.was_moved or any(isinstance(reply, _RENEWS) for reply in replies):
            self._maps.renew()
        return settled(replies)

    def _disconnect(self) -> None:
        for link in list(self._links.values()):
            link.disconnect()


def _wait_until(deadline: float | None) -> float:
    return time.monotonic() + WAIT_SECONDS if deadline is None else deadline


class ClusterLink(_Nodes[NodeLink]):
    """A Link to a Cluster some of whose nodes are ``seeds``; ``node`` says how all of them are talked to."""

    one_clock = False

    def __init__(self, seeds: Sequence[Address], node: Node) -> None:
        super().__init__(NodeLink, seeds, node)

    def exchange(
        self, commands: Sequence[Command], *, deadline: float | None = None, near: str | None = None
    ) -> list[Any]:
        """Do what ``NodeLink.exchange`` does: one round trip per node, all nodes at once.

        A command without a key goes to the node of ``near``, else of the first key among ``commands``. Where another
        node serves a key by now (MOVED, ASK, or its node can't be reached and has a successor) that one is asked.
        """
        if not commands:
            return []
        talk = Talk(self._maps.get(_wait_until(deadline)))
        steps = talk.run(commands, near)
        batches = next(steps)
        while True:
            answers = self._answers(batches, deadline)
            if any(isinstance(answer, Exception) for answer in answers.values()):
                talk.slots = self._maps.renewed(_wait_until(deadline))
            try:
                batches = steps.send(answers)
            except StopIteration as stop:
                return self._settled(talk, stop.value)

    def _answers(self, batches: Batches, deadline: float | None) -> Answers:
        """Talk to all nodes at once; one that can't be reached has its error for an answer, and nothing was sent."""
        answers: dict[Address, list[Any] | Exception] = {}
        opened: dict[Address, Opened] = {}
        try:
            for address in batches:
                try:
                    opened[address] = self._link_to(address).open(deadline=deadline)
                except redis.exceptions.RedisError as exc:
                    answers[address] = exc
            for address, connection in opened.items():
                connection.send(batches[address])
            while opened:
                address = next(iter(opened))
                answers[address] = opened[address].receive()
                del opened[address]
        except redis.exceptions.RedisError:
            self._maps.renew()
            raise
        finally:
            for connection in opened.values():
                connection.abandon()
        return answers

    def scan(self, match: str, *, deadline: float | None = None) -> Iterator[bytes]:
        """Yield the keys of a glob pattern on every primary; one may come twice. Raises what ``exchange`` raises."""
        for address in self._maps.get(_wait_until(deadline)).primaries:
            yield from self._link_to(address).scan(match, deadline=deadline)

    def close(self) -> None:
        """Close the connections."""
        self._disconnect()


class AsyncClusterLink(_Nodes[AsyncNodeLink]):
    """A ClusterLink for asyncio."""

    one_clock = False

    def __init__(self, seeds: Sequence[Address], node: Node) -> None:
        super().__init__(AsyncNodeLink, seeds, node)

    async def exchange(
        self, commands: Sequence[Command], *, deadline: float | None = None, near: str | None = None
    ) -> list[Any]:
        """Do what ``ClusterLink.exchange`` does."""
        if not commands:
            return []
        talk = Talk(await self._maps.get_async(_wait_until(deadline)))
        steps = talk.run(commands, near)
        batches = next(steps)
        while True:
            answers = await self._answers(batches, deadline)
            if any(isinstance(answer, Exception) for answer in answers.values()):
                talk.slots = await self._maps.renewed_async(_wait_until(deadline))
            try:
                batches = steps.send(answers)
            except StopIteration as stop:
                return self._settled(talk, stop.value)

    async def _answers(self, batches: Batches, deadline: float | None) -> Answers:
        """Talk to all nodes at once; one that can't be reached has its error for an answer, and nothing was sent."""
        replies = await asyncio.gather(
            *(self._link_to(address).replies(batch, deadline=deadline) for address, batch in batches.items()),
            return_exceptions=True,
        )
        answers: dict[Address, list[Any] | Exception] = {}
        for address, reply in zip(batches, replies, strict=True):
            if isinstance(reply, BaseException) and not (isinstance(reply, Exception) and is_unsent(reply)):
                self._maps.renew()
                raise reply
            answers[address] = reply
        return answers

    async def scan(self, match: str, *, deadline: float | None = None) -> AsyncIterator[bytes]:
        """Do what ``ClusterLink.scan`` does."""
        for address in (await self._maps.get_async(_wait_until(deadline))).primaries:
            async for key in self._link_to(address).scan(match, deadline=deadline):
                yield key

    async def aclose(self) -> None:
        """Close the connections."""
        self._disconnect()
        await asyncio.sleep(0)
