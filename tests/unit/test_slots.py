"""Which node of a Cluster is asked what, in how many round trips, and how redirections are followed; no server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from x2gofleet.connection.discovery import Address
from x2gofleet.connection.slots import MAP_COMMANDS, Batches, SlotMap, Talk, Told, key_of, slot_of

A: Address = ("10.0.0.1", 7000)
B: Address = ("10.0.0.2", 7000)
C: Address = ("10.0.0.3", 7000)
SLOTS = 16384


def told(*ranges: tuple[int, int, int, Address]) -> Told:
    return Told(ranges, tuple(address for *_, address in ranges))


def thirds() -> SlotMap:
    return SlotMap.merged([told((0, 5460, 1, A), (5461, 10922, 2, B), (10923, SLOTS - 1, 3, C))])


def in_slots_of(address: Address, name: str = "key") -> str:
    """Return a key that ``thirds`` gives to a node."""
    slots = thirds()
    return next(key for n in range(1000) if slots.primary_of(slot_of(key := f"{{{n}}}:{name}")) == address)


def run(talk: Talk, commands: list[Any], answer: Callable[[Batches], Any], near: str | None = None) -> tuple[Any, int]:
    """Drive a talk; return its replies and how many rounds it took."""
    steps = talk.run(commands, near)
    batches, rounds = next(steps), 0
    while True:
        rounds += 1
        try:
            batches = steps.send(answer(batches))
        except StopIteration as stop:
            return stop.value, rounds


def echo(batches: Batches) -> dict[Address, list[Any]]:
    """Answer each command with the node and itself."""
    return {address: [(address, command) for command in batch] for address, batch in batches.items()}


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "a"), "a"),
        (("hgetall", b"b"), b"b"),
        (("EVALSHA", "ab12", 2, "one", "two", "x"), "one"),
        (("EVAL", "return 1", 0), None),
        (("EVAL", "return 1", "0", "argument"), None),
        (("XREAD", "COUNT", 5, "BLOCK", 100, "STREAMS", "changes", "$"), "changes"),
        (("XREADGROUP", "GROUP", "g", "me", "streams", "s", ">"), "s"),
        (("XREAD",), None),
        (("OBJECT", "FREQ", "a"), "a"),
        (("XINFO", "STREAM", "s"), "s"),
        (("BLPOP", "queue", 0.2), "queue"),
        (("TIME",), None),
        (("PING",), None),
        (("SCRIPT", "LOAD", "return 1"), None),
    ],
)
def test_first_key_of_a_command(command: tuple[Any, ...], key: str | bytes | None) -> None:
    assert key_of(command) == key


def test_keys_of_one_target_share_a_slot() -> None:
    assert slot_of("x2gofleet:{ts01}:sessions") == slot_of(b"x2gofleet:{ts01}:lease") == slot_of("ts01")
    assert slot_of("123456789") == 12739, "the example of the Cluster specification"


def test_all_nodes_in_one_round_and_replies_in_order() -> None:
    a, b, c = (in_slots_of(address) for address in (A, B, C))
    commands = [("GET", c), ("GET", a), ("GET", b), ("HGET", c, "f"), ("GET", a)]
    replies, rounds = run(Talk(thirds()), commands, echo)
    assert replies == [(C, commands[0]), (A, commands[1]), (B, commands[2]), (C, commands[3]), (A, commands[4])]
    assert rounds == 1


def test_a_command_without_a_key_goes_with_the_first_key() -> None:
    commands = [("TIME",), ("GET", in_slots_of(B)), ("GET", in_slots_of(A)), ("TIME",)]
    replies, _ = run(Talk(thirds()), commands, echo)
    assert [address for address, _ in replies] == [B, B, A, B]


def test_a_command_without_a_key_goes_near_what_is_named() -> None:
    commands = [("TIME",), ("GET", in_slots_of(B))]
    replies, _ = run(Talk(thirds()), commands, echo, near=in_slots_of(C))
    assert [address for address, _ in replies] == [C, B]


def test_a_command_without_any_key_goes_to_a_primary() -> None:
    replies, _ = run(Talk(thirds()), [("PING",)], echo)
    assert replies[0][0] in (A, B, C)


def test_moved_is_followed_once_and_remembered() -> None:
    slots = thirds()
    a, other = in_slots_of(A, "moved"), in_slots_of(B)
    key_slot = slot_of(a)

    def answer(batches: Batches) -> dict[Address, list[Any]]:
        return {
            address: [
                redis.exceptions.MovedError(f"{key_slot} 10.0.0.3:7000") if address == A else (address, command)
                for command in batch
            ]
            for address, batch in batches.items()
        }

    talk = Talk(slots)
    commands = [("GET", other), ("EVALSHA", "ab", 1, a, "x"), ("HGET", a, "f")]
    replies, rounds = run(talk, commands, answer)
    assert replies == [(B, commands[0]), (C, commands[1]), (C, commands[2])]
    assert rounds == 2
    assert talk.was_moved
    assert slots.primary_of(key_slot) == C
    assert run(Talk(slots), commands, answer) == (replies, 1)


def test_moved_to_where_it_was_asked_from() -> None:
    """An empty host is that of the node that was asked."""

    def answer(batches: Batches) -> dict[Address, list[Any]]:
        moved = redis.exceptions.MovedError(f"{slot_of(in_slots_of(A))} :7001")
        return {address: [moved if address == A else address for _ in batch] for address, batch in batches.items()}

    replies, _ = run(Talk(thirds()), [("GET", in_slots_of(A))], answer)
    assert replies == [("10.0.0.1", 7001)]


def test_a_second_moved_is_the_reply() -> None:
    def answer(batches: Batches) -> dict[Address, list[Any]]:
        moved = redis.exceptions.MovedError(f"{slot_of(in_slots_of(A))} 10.0.0.3:7000")
        return {address: [moved for _ in batch] for address, batch in batches.items()}

    replies, rounds = run(Talk(thirds()), [("GET", in_slots_of(A))], answer)
    assert isinstance(replies[0], redis.exceptions.MovedError)
    assert rounds == 2


def test_ask_is_followed_with_asking_and_not_remembered() -> None:
    slots, key = thirds(), in_slots_of(A)
    sent: list[Batches] = []

    def answer(batches: Batches) -> dict[Address, list[Any]]:
        sent.append(batches)
        ask = redis.exceptions.AskError(f"{slot_of(key)} 10.0.0.3:7000")
        return {A: [b"here", ask]} if A in batches else {C: [b"OK", b"there"]}

    talk = Talk(slots)
    assert run(talk, [("GET", key), ("HGET", key, "f")], answer) == ([b"here", b"there"], 2)
    assert sent[1] == {C: [("ASKING",), ("HGET", key, "f")]}
    assert not talk.was_moved
    assert slots.primary_of(slot_of(key)) == A


def test_error_replies_stay_at_their_place() -> None:
    down = redis.exceptions.ClusterDownError("The cluster is down")

    def answer(batches: Batches) -> dict[Address, list[Any]]:
        return {address: [down if address == B else address for _ in batch] for address, batch in batches.items()}

    commands = [("GET", in_slots_of(A)), ("GET", in_slots_of(B)), ("GET", in_slots_of(C))]
    assert run(Talk(thirds()), commands, answer) == ([A, down, C], 1)


def test_a_node_that_was_not_reached_is_replaced_by_its_successor() -> None:
    successor: Address = ("10.0.0.9", 7000)
    gone = redis.exceptions.ConnectionError("refused")
    talk = Talk(thirds())

    def answer(batches: Batches) -> dict[Address, Any]:
        if A in batches:
            talk.slots = SlotMap.merged([told((0, 5460, 4, successor), (5461, 10922, 2, B), (10923, SLOTS - 1, 3, C))])
        return {
            address: gone if address == A else [(address, command) for command in batch]
            for address, batch in batches.items()
        }

    commands = [("TIME",), ("GET", in_slots_of(A)), ("GET", in_slots_of(B))]
    replies, rounds = run(talk, commands, answer)
    assert replies == [(successor, commands[0]), (successor, commands[1]), (B, commands[2])]
    assert rounds == 2


def test_a_node_without_a_successor_is_an_error() -> None:
    gone = redis.exceptions.ConnectionError("refused")
    with pytest.raises(redis.exceptions.ConnectionError, match="refused"):
        run(Talk(thirds()), [("GET", in_slots_of(A))], lambda batches: dict.fromkeys(batches, gone))


def test_a_slot_that_nobody_serves() -> None:
    slots = SlotMap.merged([told((0, 100, 1, A))])
    key = next(str(n) for n in range(1000) if slot_of(str(n)) > 100)
    with pytest.raises(redis.exceptions.ClusterDownError, match=f"no node serves slot {slot_of(key)}"):
        run(Talk(slots), [("GET", key)], echo)
    with pytest.raises(redis.exceptions.ClusterDownError, match="no node serves any slot"):
        run(Talk(SlotMap.merged([])), [("TIME",)], echo)


def node_line(name: str, address: Address, epoch: int) -> str:
    return f"{name} {address[0]}:{address[1]}@17000 master - 0 1426238316232 {epoch} connected 0-100"


def test_what_a_node_tells() -> None:
    slots = [[0, 100, [b"10.0.0.1", 7000, b"aa"], [b"10.0.0.2", 7000, b"bb"]], [101, SLOTS - 1, [b"", 7001, b"cc"]]]
    nodes = "\n".join([node_line("aa", A, 7), node_line("bb", B, 7), node_line("cc", C, 9)]).encode()
    found = Told.from_replies(slots, nodes, ("seed", 7001))
    assert found.ranges == ((0, 100, 7, A), (101, SLOTS - 1, 9, ("seed", 7001)))
    assert found.nodes == (A, B, ("seed", 7001))


def test_what_a_node_tells_without_the_right_to_ask_for_nodes() -> None:
    refused = redis.exceptions.NoPermissionError("this user has no permissions to run the 'cluster|nodes' command")
    found = Told.from_replies([[0, 5, [None, 7000, b"aa", []]]], refused, A)
    assert found.ranges == ((0, 5, 0, A),)


def test_a_node_without_the_name_that_is_preferred_serves_nothing() -> None:
    found = Told.from_replies([[0, 5, [b"?", 7000, b"aa"]], [6, 9, [b"b.example", 7000, b"bb"]]], b"", A)
    assert found.ranges == ((6, 9, 0, ("b.example", 7000)),)


@pytest.mark.parametrize("reply", [b"OK", [[0]], [[0, 1, [b"h"]]], 7])
def test_what_is_no_map(reply: Any) -> None:
    with pytest.raises(ValueError, match="CLUSTER SLOTS"):
        Told.from_replies(reply, b"", A)


def test_where_nodes_differ_the_newer_epoch_is_right() -> None:
    """A primary that was deposed while it hung still claims its slots, as does whoever has not heard of it."""
    stale = told((0, 5460, 1, A), (5461, SLOTS - 1, 2, B))
    newer = told((0, 5460, 4, C), (5461, SLOTS - 1, 2, B))
    for tellings in ([stale, newer, stale], [newer, stale]):
        merged = SlotMap.merged(tellings)
        assert merged.primary_of(0) == C
        assert merged.primary_of(SLOTS - 1) == B
        assert set(merged.nodes) == {A, B, C}
        assert merged.primaries == (B, C)


def test_a_slot_that_moved_is_its_new_nodes() -> None:
    old = told((0, 9, 1, A), (10, 19, 2, B))
    new = told((0, 4, 1, A), (5, 5, 3, B), (6, 9, 1, A), (10, 19, 3, B))
    merged = SlotMap.merged([old, new])
    assert [merged.primary_of(slot) for slot in (4, 5, 6, 10)] == [A, B, A, B]


def test_the_map_is_asked_for_by_what_all_versions_know() -> None:
    assert MAP_COMMANDS == (("CLUSTER", "SLOTS"), ("CLUSTER", "NODES"))
