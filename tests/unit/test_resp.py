"""resp: what is sent, and replies taken apart however their bytes are cut; hiredis and Python agree."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from x2gofleet import resp
from x2gofleet.resp import MISSING, PythonReader, Reader, error_of, new_reader

READERS = {"python": PythonReader, "installed": new_reader}


@pytest.mark.parametrize("pack", [resp.pack, resp._pack_in_python], ids=["installed", "python"])
def test_commands_as_they_are_sent(pack: Any) -> None:
    assert pack([("SET", "a", b"\x00\xff"), ["EXPIRE", "ä", 10, 0.5]]) == (
        b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2\r\n\x00\xff\r\n*4\r\n$6\r\nEXPIRE\r\n$2\r\n\xc3\xa4\r\n$2\r\n10\r\n$3\r\n0.5\r\n"
    )


@pytest.mark.parametrize("value", [None, True, object()])
def test_what_redis_does_not_store_is_refused(value: object) -> None:
    with pytest.raises(redis.exceptions.DataError, match="use bytes, str or numbers"):
        resp.pack([("SET", "a", value)])


def replies_of(reader: Reader, data: bytes, cuts: list[int]) -> list[Any]:
    found, at = [], 0
    for cut in [*sorted(cuts), len(data)]:
        reader.feed(data[at:cut])
        at = cut
        while (reply := reader.gets()) is not MISSING:
            found.append(reply)
    return found


def encoded(reply: Any) -> bytes:
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    return b"*%d\r\n" % len(reply) + b"".join(map(encoded, reply))


ANY_REPLY = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=40),
    lambda each: st.lists(each, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("name", READERS)
@given(replies=st.lists(ANY_REPLY, max_size=5), data=st.data())
def test_replies_come_whole_however_they_are_cut(name: str, replies: list[Any], data: st.DataObject) -> None:
    sent = b"".join(map(encoded, replies))
    cuts = data.draw(st.lists(st.integers(0, len(sent)), max_size=6))
    assert replies_of(READERS[name](), sent, cuts) == replies


@pytest.mark.parametrize("name", READERS)
def test_words_errors_and_nothing(name: str) -> None:
    found = replies_of(READERS[name](), b"+OK\r\n-READONLY no\r\n*-1\r\n*2\r\n+a\r\n-ERR b\r\n", [3, 9])
    assert found[0] == b"OK"
    assert isinstance(found[1], redis.exceptions.ReadOnlyError)
    assert str(found[1]) == "no"
    assert found[2] is None
    assert found[3][0] == b"a"
    assert str(found[3][1]) == "ERR b"


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("sent", [b"HTTP/1.1 400 Bad Request\r\n", b":x\r\n", b"$x\r\n", b"*x\r\n"])
def test_what_is_no_redis_is_refused(name: str, sent: bytes) -> None:
    reader = READERS[name]()
    reader.feed(sent)
    with pytest.raises(redis.exceptions.InvalidResponse):
        reader.gets()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("NOAUTH Authentication required.", redis.exceptions.AuthenticationError),
        ("WRONGPASS invalid", redis.exceptions.AuthenticationError),
        ("NOPERM no", redis.exceptions.NoPermissionError),
        ("LOADING Redis is loading", redis.exceptions.BusyLoadingError),
        ("OOM command not allowed", redis.exceptions.OutOfMemoryError),
        ("MASTERDOWN Link", redis.exceptions.MasterDownError),
        ("CLUSTERDOWN x", redis.exceptions.ClusterDownError),
        ("ERR max number of clients reached", redis.exceptions.ConnectionError),
        ("WRONGTYPE x", redis.exceptions.ResponseError),
        ("ERR x", redis.exceptions.ResponseError),
    ],
)
def test_error_replies(text: str, kind: type[Exception]) -> None:
    assert type(error_of(text)) is kind


def test_a_moved_key_says_where_it_is() -> None:
    moved = error_of("MOVED 3999 127.0.0.1:6381")
    assert isinstance(moved, redis.exceptions.MovedError)
    assert (moved.slot_id, moved.host, moved.port) == (3999, "127.0.0.1", 6381)
