"""slots: which node of a Redis Cluster serves which key, and the talk with nodes that know better; without any I/O.

Formats: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from x2gofleet.connection.discovery import Address

Command = Sequence[Any]
Batches = dict[Address, list[Command]]
Answers = Mapping[Address, Sequence[Any] | Exception]

MAP_COMMANDS: tuple[tuple[str, ...], ...] = (("CLUSTER", "SLOTS"), ("CLUSTER", "NODES"))

_KEYLESS = frozenset(
    (
        *("ACL", "AUTH", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DBSIZE", "ECHO", "HELLO", "INFO", "PING"),
        *("PUBLISH", "ROLE", "SCAN", "SCRIPT", "TIME", "WAIT"),
    )
)
_AFTER_COUNT = frozenset(("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO"))
_AFTER_SUBCOMMAND = frozenset(("BITOP", "MEMORY", "OBJECT", "XGROUP", "XINFO"))
_AFTER_STREAMS = frozenset(("XREAD", "XREADGROUP"))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def key_of(command: Command) -> str | bytes | None:
    """Return the first key of a command, None where it has none."""
    name = _text(command[0]).upper()
    if name in _KEYLESS:
        return None
    at = 1
    if name in _AFTER_COUNT:
        if int(command[2]) == 0:
            return None
        at = 3
    elif name in _AFTER_SUBCOMMAND:
        at = 2
    elif name in _AFTER_STREAMS:
        at = next((n for n, word in enumerate(command) if _text(word).upper() == "STREAMS"), len(command)) + 1
    if at >= len(command):
        return None
    key: str | bytes = command[at]
    return key


def slot_of(key: str | bytes) -> int:
    """Return the hash slot of a key, 0 to 16383."""
    return key_slot(key if isinstance(key, bytes) else key.encode())


@dataclass(frozen=True, slots=True)
class Told:
    """What one node tells of the slots: (first slot, last slot, configuration epoch, address of the primary), sorted.

    ``nodes`` are all addresses that it names.
    """

    ranges: tuple[tuple[int, int, int, Address], ...]
    nodes: tuple[Address, ...]

    @classmethod
    def from_replies(cls, slots: Any, nodes: Any, asked: Address) -> Told:
        """Decode the replies of ``MAP_COMMANDS``; that of CLUSTER NODES may be an error.

        A node without a host is at the address that was ``asked``. Raises ValueError for other replies.
        """
        epochs = {} if isinstance(nodes, Exception) else _epochs(_text(nodes))
        ranges, named = [], []
        try:
            for first, last, *serving in slots:
                at = [_address(node, asked) for node in serving]
                named += [address for address in at if address is not None]
                if at and at[0] is not None:
                    epoch = epochs.get(_text(serving[0][2]), 0) if len(serving[0]) > 2 else 0
                    ranges.append((int(first), int(last), epoch, at[0]))
        except (TypeError, ValueError, IndexError) as exc:
            raise ValueError(f"this is no reply of CLUSTER SLOTS: {exc}") from exc
        return cls(tuple(sorted(ranges)), tuple(dict.fromkeys(named)))


def _address(node: Any, asked: Address) -> Address | None:
    host = "" if node[0] is None else _text(node[0])
    if host == "?":
        # It has no name, and names are what this Cluster tells.
        return None
    return host or asked[0], int(node[1])


def _epochs(nodes: str) -> dict[str, int]:
    """Return the configuration epochs of all nodes by id: the seventh word of their lines."""
    lines = [line.split(" ") for line in nodes.splitlines()]
    return {words[0]: int(words[6]) for words in lines if len(words) > 6 and words[6].isdecimal()}


class SlotMap:
    """The primary of each slot; ``nodes`` are the addresses of all nodes."""

    def __init__(self, primaries: list[Address | None], nodes: Iterable[Address]) -> None:
        self._primaries = primaries
        self.nodes = tuple(dict.fromkeys(nodes))
        self.primaries = tuple(sorted({address for address in primaries if address is not None}))

    @classmethod
    def merged(cls, tellings: Iterable[Told]) -> SlotMap:
        """Return what nodes tell together: where they differ, the newer configuration epoch is right."""
        told = list(dict.fromkeys(tellings))
        primaries: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        if len({each.ranges for each in told}) <= 1:
            for first, last, _, address in told[0].ranges if told else ():
                primaries[first : last + 1] = [address] * (last + 1 - first)
        else:
            epochs = [-1] * REDIS_CLUSTER_HASH_SLOTS
            for each in told:
                for first, last, epoch, address in each.ranges:
                    for slot in range(first, last + 1):
                        if epoch > epochs[slot]:
                            epochs[slot], primaries[slot] = epoch, address
        return cls(primaries, (node for each in told for node in each.nodes))

    def primary_of(self, slot: int) -> Address:
        """Return who serves a slot. Raises ClusterDownError where nobody does."""
        address = self._primaries[slot]
        if address is None:
            raise redis.exceptions.ClusterDownError(f"no node serves slot {slot}")
        return address

    def moved(self, slot: int, address: Address) -> None:
        """Take over what a MOVED told."""
        self._primaries[slot] = address
        if address not in self.primaries:
            self.primaries = tuple(sorted((*self.primaries, address)))

    def home_of(self, commands: Sequence[Command]) -> Address:
        """Return where commands without a key go: to the node of the first key among ``commands``, else any."""
        for command in commands:
            key = key_of(command)
            if key is not None:
                return self.primary_of(slot_of(key))
        if not self.primaries:
            raise redis.exceptions.ClusterDownError("no node serves any slot")
        return self.primaries[0]


@dataclass(slots=True)
class Talk:
    """How one exchange with a Cluster goes on; ``was_moved`` tells whether a node knew better than ``slots``."""

    slots: SlotMap
    was_moved: bool = False

    def run(self, commands: Sequence[Command], near: str | None = None) -> Generator[Batches, Answers, list[Any]]:
        """Yield what is to be sent to which node, be sent their replies (an error reply as an exception), and return
        the replies in the order of ``commands``.

        A node that could not be reached, and was sent nothing, has its error for an answer: who serves its slots in
        ``slots`` by then is asked. That, a MOVED and an ASK are followed once. Raises ClusterDownError where nobody
        serves a slot, and the error of a node that has no successor.
        """
        places = self._places(commands, near)
        answers = yield {address: [commands[n] for n in numbers] for address, numbers in places.items()}
        replies: list[Any] = [None] * len(commands)
        again: dict[Address, list[tuple[int, bool]]] = {}
        for address, numbers in places.items():
            answer = answers[address]
            if isinstance(answer, Exception):
                newer = self._places([commands[n] for n in numbers], near)
                if address in newer:
                    raise answer
                for target, positions in newer.items():
                    again.setdefault(target, []).extend((numbers[position], False) for position in positions)
                continue
            for number, reply in zip(numbers, answer, strict=True):
                replies[number] = reply
                # A MovedError is an AskError.
                if isinstance(reply, redis.exceptions.AskError):
                    target = (reply.host or address[0], int(reply.port))
                    moved = isinstance(reply, redis.exceptions.MovedError)
                    if moved:
                        self.slots.moved(int(reply.slot_id), target)
                        self.was_moved = True
                    again.setdefault(target, []).append((number, not moved))
        if again:
            answers = yield {address: _again(commands, asked) for address, asked in again.items()}
            for address, asked in again.items():
                answer = answers[address]
                if isinstance(answer, Exception):
                    raise answer
                told = iter(answer)
                for number, asking in asked:
                    if asking:
                        next(told)
                    replies[number] = next(told)
        return replies

    def _places(self, commands: Sequence[Command], near: str | None) -> dict[Address, list[int]]:
        """Return which commands go to which node, by their numbers."""
        found: dict[Address, list[int]] = {}
        home: Address | None = None
        for number, command in enumerate(commands):
            key = key_of(command)
            if key is None:
                if home is None:
                    home = self.slots.home_of(commands) if near is None else self.slots.primary_of(slot_of(near))
                address = home
            else:
                address = self.slots.primary_of(slot_of(key))
            found.setdefault(address, []).append(number)
        return found


def _again(commands: Sequence[Command], asked: Sequence[tuple[int, bool]]) -> list[Command]:
    found: list[Command] = []
    for number, asking in asked:
        if asking:
            found.append(("ASKING",))
        found.append(commands[number])
    return found
