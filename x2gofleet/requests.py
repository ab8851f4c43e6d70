"""requests: what brokers ask of workers through Redis, and how workers answer (the contract is docs/schema.md).

Whoever may write to the lists can write anything into them. Decoding is bounded and raises nothing but RequestRefused
and AnswerRefused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from x2gofleet.keys import server_of, target_id, user_of
from x2gofleet.kinds import Kind
from x2gofleet.usernames import is_username

VERSION = 1
MAX_REQUEST_BYTES = 8192
MAX_ANSWER_BYTES = 4 << 20
MAX_TEXT = 2000
NOT_OWNED = "its worker does not own it any more"
_ID = re.compile(r"[0-9a-zA-Z]{1,64}\Z")


class Operation(StrEnum):
    """What a worker is asked to do."""

    REFRESH = "refresh"
    DELETE = "delete"
    CHECK = "check"


class AnswerCode(StrEnum):
    """What came of a request."""

    DONE = "done"
    FAILED = "failed"
    NOT_OWNED = "not_owned"
    REFUSED = "refused"
    BUSY = "busy"


class RequestRefused(ValueError):
    """A request that no worker acts on. ``request_id`` is where an answer goes, "" where none can go anywhere."""

    def __init__(self, reason: str, request_id: str = "", target: str = "") -> None:
        super().__init__(reason)
        self.request_id, self.target = request_id, target


class AnswerRefused(ValueError):
    """An answer that is none of a worker's."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to one worker: to poll ``kinds`` of a target now, to delete what is cached of it, or to check the keys.

    ``username``: whose desktops are asked for, None for everybody's.
    """

    id: str
    operation: Operation
    target: str = ""
    kinds: tuple[Kind, ...] = ()
    username: str | None = None

    def encode(self) -> bytes:
        """Return the request as it is pushed."""
        fields: dict[str, Any] = {"version": VERSION, "id": self.id, "operation": self.operation.value}
        if self.operation is not Operation.CHECK:
            kinds = [kind.value for kind in self.kinds]
            fields |= {"target": self.target, "kinds": kinds, "username": self.username}
        return json.dumps(fields).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """Return what was pushed. Raises RequestRefused."""
        try:
            fields = _object(data, MAX_REQUEST_BYTES)
        except ValueError as exc:
            raise RequestRefused(f"the request is not understood: {exc}") from exc
        request_id = fields.get("id")
        if not isinstance(request_id, str) or not _ID.match(request_id):
            raise RequestRefused("the request's id is not 1 to 64 letters and digits")
        target = fields.get("target", "")
        try:
            return cls._of(request_id, fields)
        except ValueError as exc:
            known = target if isinstance(target, str) and _is_target(target) else ""
            raise RequestRefused(str(exc), request_id, known) from exc

    @classmethod
    def _of(cls, request_id: str, fields: dict[str, Any]) -> Request:
        version = fields.get("version", 0)
        if type(version) is not int or not 0 <= version <= VERSION:
            raise ValueError(f"the request's version is not one of 0 to {VERSION}: upgrade this worker first")
        known = {operation.value: operation for operation in Operation}
        operation = known.get(str(fields.get("operation")))
        if operation is None:
            raise ValueError(f"the request's operation is unknown; known: {', '.join(known)}")
        if operation is Operation.CHECK:
            return cls(request_id, operation)
        target, kinds, username = fields.get("target"), fields.get("kinds", []), fields.get("username")
        if not isinstance(target, str) or not _is_target(target):
            raise ValueError("the request's target is not the id of a target")
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            raise ValueError("the request's kinds are not a list of texts")
        if username is not None and not (isinstance(username, str) and is_username(username)):
            raise ValueError("the request's username is not a user name")
        return cls(request_id, operation, target, _kinds(kinds), username)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker answers about one target: what it stored, or why it did not; ``dropped`` keys of a check."""

    target: str
    code: AnswerCode = AnswerCode.DONE
    text: str = ""
    stored: tuple[tuple[str, Kind], ...] = ()
    dropped: int = field(default=0)

    def encode(self) -> bytes:
        """Return the answer as it is pushed. Readers of earlier versions read ``error`` alone."""
        error = NOT_OWNED if self.code is AnswerCode.NOT_OWNED else self.text[:MAX_TEXT]
        if self.code is not AnswerCode.DONE:
            error = error or self.code.value
        fields = {
            "version": VERSION,
            "target": self.target,
            "code": self.code.value,
            "error": error,
            "stored": [[name, kind.value] for name, kind in self.stored],
            "dropped": self.dropped,
        }
        return json.dumps(fields).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Answer:
        """Return what was pushed. Raises AnswerRefused.

        A code of a later version is read as ``failed``, unless the error is empty.
        """
        try:
            fields = _object(data, MAX_ANSWER_BYTES)
            target, error, dropped = fields.get("target", ""), fields.get("error", ""), fields.get("dropped", 0)
            if not isinstance(target, str) or not isinstance(error, str) or type(dropped) is not int:
                raise ValueError("its target or error is not a text, or dropped is not a number")
            stored = tuple(_stored(fields.get("stored", [])))
            return cls(target, _code(fields.get("code"), error), error, stored, dropped)
        except ValueError as exc:
            raise AnswerRefused(f"the answer is not understood: {exc}") from exc


def _object(data: bytes, limit: int) -> dict[str, Any]:
    """Return a JSON object; raises ValueError, whatever the bytes are."""
    if len(data) > limit:
        raise ValueError(f"it is longer than {limit} bytes")
    try:
        # A number of thousands of digits is refused with ValueError, deep nesting with RecursionError.
        found = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    return found


def _is_target(text: str) -> bool:
    try:
        return target_id(server_of(text), user_of(text)) == text
    except ValueError:
        return False


def _kinds(names: Iterable[str]) -> tuple[Kind, ...]:
    known = {kind.value for kind in Kind}
    wanted = set(names)
    if not wanted <= known:
        raise ValueError(f"the request names an unknown kind; known: {', '.join(sorted(known))}")
    return tuple(kind for kind in Kind if kind.value in wanted)


def _code(code: object, error: str) -> AnswerCode:
    known = {each.value: each for each in AnswerCode}
    if isinstance(code, str) and code in known:
        return known[code]
    # A worker of an earlier version, or of a later one.
    if error == NOT_OWNED:
        return AnswerCode.NOT_OWNED
    return AnswerCode.FAILED if error else AnswerCode.DONE


def _stored(found: object) -> Iterable[tuple[str, Kind]]:
    if not isinstance(found, list):
        raise ValueError("what was stored is not a list")
    for item in found:
        match item:
            case [str(target), str(kind)] if _is_target(target):
                yield target, Kind(kind)
            case _:
                raise ValueError("what was stored is not a list of targets and kinds")
