"""What may be in the lists of requests and answers, whoever wrote it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2gofleet.kinds import Kind
from x2gofleet.requests import (
    MAX_REQUEST_BYTES,
    MAX_TEXT,
    NOT_OWNED,
    Answer,
    AnswerCode,
    AnswerRefused,
    Operation,
    Request,
    RequestRefused,
)

REQUEST = {"version": 1, "id": "0a", "operation": "refresh", "target": "ts01", "kinds": ["sessions"], "username": None}
ANSWER = {"version": 1, "target": "ts01", "code": "done", "error": "", "stored": [["ts01", "sessions"]], "dropped": 0}


def request(**changed: Any) -> bytes:
    return json.dumps({**REQUEST, **changed}).encode()


def answer(**changed: Any) -> bytes:
    return json.dumps({**ANSWER, **changed}).encode()


NOT_OBJECTS = {
    "empty": b"",
    "no UTF-8": b"\xff",
    "not JSON": b"refresh",
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "200000 brackets": b"[" * 200_000,
    "4000 brackets": b"[" * 4000,
    "4000 objects": b'{"a":' * 1500,
    "cut": request()[:-1],
    "5000 digits": b'{"id": ' + b"9" * 5000 + b"}",
    "too long": request(more="x" * MAX_REQUEST_BYTES),
}
# Requests without an id that an answer may go to: nobody is answered.
WITHOUT_ID: dict[str, bytes] = NOT_OBJECTS | {
    "an empty object": b"{}",
    "no id": json.dumps({key: value for key, value in REQUEST.items() if key != "id"}).encode(),
    **{
        f"id {value!r}"[:30]: request(id=value)
        for value in ("", "a" * 65, "a:b", "a\nb", "\ud800", 7, None, ["a"], {"a": 1}, True, 1e400)
    },
}
REFUSED: dict[str, bytes] = {
    **{f"version {value!r}": request(version=value) for value in (2, -1, "1", None, 1.0, True, [], 10**30)},
    **{
        f"operation {value!r}": request(operation=value)
        for value in ("", "restart", None, 3, ["refresh"], {}, "\ud800")
    },
    **{
        f"target {value!r}"[:30]: request(target=value)
        for value in ("", "a b", "x@y@", "@ts01", "{ts01}", "a" * 65, None, 3, ["ts01"], "\ud800", "ts01\n")
    },
    **{
        f"kinds {value!r}": request(kinds=value)
        for value in (5, "sessions", None, {"sessions": 1}, [3], [["sessions"]], ["printers"], ["\ud800"])
    },
    **{
        f"username {value!r}"[:30]: request(username=value)
        for value in ("", "x\npoll aa", "\ud800", 3, ["alice"], True)
    },
}


@pytest.mark.parametrize("data", WITHOUT_ID.values(), ids=WITHOUT_ID)
def test_a_request_without_an_id_is_answered_by_nobody(data: bytes) -> None:
    with pytest.raises(RequestRefused) as caught:
        Request.decode(data)
    assert (caught.value.request_id, caught.value.target) == ("", "")


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_a_request_that_is_not_understood_is_refused_with_its_id(data: bytes) -> None:
    with pytest.raises(RequestRefused) as caught:
        Request.decode(data)
    assert caught.value.request_id == "0a"
    # The answer can be sent, and says the reason in ASCII.
    sent = Answer.decode(Answer(caught.value.target, AnswerCode.REFUSED, str(caught.value)).encode())
    assert (sent.code, sent.text) == (AnswerCode.REFUSED, str(caught.value))
    assert sent.target in ("", "ts01")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (request(), Request("0a", Operation.REFRESH, "ts01", (Kind.SESSIONS,))),
        # Of readers of earlier versions.
        (
            json.dumps({key: value for key, value in REQUEST.items() if key != "version"}).encode(),
            Request("0a", Operation.REFRESH, "ts01", (Kind.SESSIONS,)),
        ),
        (b'{"id": "0a", "operation": "check"}', Request("0a", Operation.CHECK)),
        (request(operation="delete", kinds=[]), Request("0a", Operation.DELETE, "ts01")),
        (
            request(kinds=["mounts", "desktops", "mounts"], username="alice"),
            Request("0a", Operation.REFRESH, "ts01", (Kind.DESKTOPS, Kind.MOUNTS), "alice"),
        ),
        (request(target="alice@ts01", more=[1]), Request("0a", Operation.REFRESH, "alice@ts01", (Kind.SESSIONS,))),
    ],
)
def test_a_good_request_is_read(data: bytes, expected: Request) -> None:
    assert Request.decode(data) == expected
    assert Request.decode(expected.encode()) == expected


NO_ANSWERS: dict[str, bytes] = NOT_OBJECTS | {
    "too long": b" " * (4 << 20) + answer(),
    **{f"target {value!r}": answer(target=value) for value in (3, None, [], {})},
    **{f"error {value!r}": answer(error=value) for value in (3, None, [], {})},
    **{f"dropped {value!r}": answer(dropped=value) for value in ("3", None, [], True, 1.5)},
    **{
        f"stored {value!r}": answer(stored=value)
        for value in (
            *(3, None, {}, "ts01", ["ts01"], [["ts01"]], [["ts01", "sessions", 1]], [["ts01", "printers"]]),
            *([[3, "sessions"]], [["a b", "sessions"]], [["ts01", ["sessions"]]], [["\ud800", "sessions"]]),
        )
    },
}


@pytest.mark.parametrize("data", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_what_is_not_an_answer_is_refused(data: bytes) -> None:
    with pytest.raises(AnswerRefused):
        Answer.decode(data)


@pytest.mark.parametrize("code", list(AnswerCode))
def test_an_answer_is_read_as_it_was_written(code: AnswerCode) -> None:
    written = Answer("alice@ts01", code, "" if code is AnswerCode.DONE else "Unreachable: x", (("ts01", Kind.LOAD),), 3)
    read = Answer.decode(written.encode())
    assert (read.target, read.code, read.stored, read.dropped) == ("alice@ts01", code, (("ts01", Kind.LOAD),), 3)
    # What a reader of an earlier version compares.
    assert (json.loads(written.encode())["error"] == NOT_OWNED) == (code is AnswerCode.NOT_OWNED)
    assert (json.loads(written.encode())["error"] == "") == (code is AnswerCode.DONE)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"target": "ts01", "stored": [], "error": ""}, AnswerCode.DONE),
        ({"target": "ts01", "stored": [], "error": NOT_OWNED}, AnswerCode.NOT_OWNED),
        ({"target": "ts01", "stored": [], "error": "Unreachable: x"}, AnswerCode.FAILED),
        ({"target": "ts01", "code": "later", "error": "x"}, AnswerCode.FAILED),
        ({"target": "ts01", "code": ["done"], "error": "x"}, AnswerCode.FAILED),
        ({"target": "", "dropped": 4}, AnswerCode.DONE),
    ],
)
def test_answers_of_other_versions_are_read(fields: dict[str, Any], code: AnswerCode) -> None:
    assert Answer.decode(json.dumps(fields).encode()).code is code


def test_a_long_error_is_cut() -> None:
    assert len(Answer.decode(Answer("ts01", AnswerCode.FAILED, "x" * 10_000).encode()).text) == MAX_TEXT


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([*REQUEST, "other"]), JSON)
def test_any_value_of_any_field_is_read_or_refused(name: str, value: Any) -> None:
    for decode, fields, refused in ((Request.decode, REQUEST, RequestRefused), (Answer.decode, ANSWER, AnswerRefused)):
        try:
            decode(json.dumps({**fields, name: value}).encode())
        except refused:
            pass


@given(st.binary(max_size=60), st.integers(0, 200))
def test_broken_bytes_are_read_or_refused(noise: bytes, at: int) -> None:
    for decode, data, refused in (
        (Request.decode, request(), RequestRefused),
        (Answer.decode, answer(), AnswerRefused),
    ):
        try:
            decode(data[:at] + noise + data[at + len(noise) :])
        except refused:
            pass
