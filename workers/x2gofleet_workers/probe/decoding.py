"""decoding: one section of an answer, from the frames between its beginning and its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from x2gofleet.errors import NotProven
from x2gofleet_workers.probe.records import MAX_RECORDS, MountRecord, Record, decode_mounts, decode_records
from x2gofleet_workers.probe.requests import (
    NO_SIGNATURE,
    Listing,
    Scope,
    SectionKind,
    SectionRequest,
    is_signature,
)
from x2gofleet_workers.probe.sections import (
    FEWER_FIELDS,
    MORE_FIELDS,
    NO_FACTS,
    DatabaseFacts,
    ErrorCode,
    Section,
    SectionError,
    SectionStatus,
)
from x2gofleet_workers.probe.words import decode_words, name_of, number_of, text_of

MAX_EXIT_STATUS = 255
MAX_COUNT = 9_999_999_999
MAX_OTHER_HOSTS = 200
_Item = TypeVar("_Item")
_DATABASE_WORDS = ("database", "address", "connections", "reserved", "role_limit", "tls")
_BEGIN_WORDS = ("kind", "backend", "host", "fields", *_DATABASE_WORDS)
_END_WORDS: Mapping[str, tuple[str, ...]] = {
    SectionStatus.OK: (
        "status",
        "records",
        "others",
        "other_hosts",
        "left_out",
        "signature",
        "source",
        "exit",
        "stderr",
    ),
    SectionStatus.SAME: ("status", "signature"),
    SectionStatus.ERROR: ("status", "error", "text", "exit", "stderr"),
}
_ALL_END_WORDS = tuple(dict.fromkeys(word for words in _END_WORDS.values() for word in words))


@dataclass(frozen=True, slots=True)
class Begin:
    """What the probe says where a section begins."""

    kind: SectionKind
    backend: str = ""
    host: str = ""
    fields: int = MORE_FIELDS
    database: DatabaseFacts = NO_FACTS

    @classmethod
    def decode(cls, payload: bytes) -> Begin:
        """Return the beginning of a section; raises NotProven."""
        words = decode_words(payload, "the beginning of a section", _BEGIN_WORDS)
        try:
            kind = SectionKind(text_of(words, "kind"))
        except ValueError:
            raise NotProven(f"expected a section of a known kind ({', '.join(SectionKind)}), got another") from None
        where = f"the beginning of the section {kind}"
        host = name_of(words, "host", where) if "host" in words else ""
        fields = number_of(words, "fields", where, most=MORE_FIELDS) if "fields" in words else MORE_FIELDS
        if fields not in (FEWER_FIELDS, MORE_FIELDS):
            raise NotProven(f"{where}: expected fields=14 or fields=16, got {fields}")
        return cls(kind, text_of(words, "backend"), host, fields, _database_facts(words, where))


def _database_facts(words: Mapping[str, bytes], where: str) -> DatabaseFacts:
    if not any(word in words for word in _DATABASE_WORDS):
        return NO_FACTS

    def number(word: str) -> int | None:
        return number_of(words, word, where, most=MAX_COUNT) if word in words else None

    return DatabaseFacts(
        identity=text_of(words, "database"),
        address=text_of(words, "address"),
        connections=number("connections"),
        reserved=number("reserved") or 0,
        role_limit=number("role_limit"),
        tls=text_of(words, "tls"),
    )


class SectionDecoder:
    """Collects the frames of one section. Each method raises NotProven for what may not come there."""

    def __init__(self, request: SectionRequest, scope: Scope, begin: Begin) -> None:
        kind, in_server_scope = request.kind, scope is Scope.SERVER
        self._request, self._begin = request, begin
        self._where = f"the section {kind}"
        self._has_records = kind is SectionKind.REFERENCE or (kind is SectionKind.SESSIONS and in_server_scope)
        self._has_mounts = kind is SectionKind.MOUNTS and in_server_scope
        self._is_listing = kind is SectionKind.SESSIONS and in_server_scope
        self._may_have_lines = kind is SectionKind.REFERENCE or (
            self._is_listing and request.listing is Listing.COMMAND
        )
        self._is_of_a_command = kind is not SectionKind.LOAD and not (self._is_listing or self._has_mounts)
        # Where a login answers for one user, what it says of databases is that user's word.
        self._database = begin.database if self._is_listing and begin.backend == "postgres" else NO_FACTS
        self._records: list[Record] = []
        self._mounts: list[MountRecord] = []
        self._stdout: list[bytes] = []
        self._lines: list[bytes] = []
        self._data_is_over = False

    def data(self, payload: bytes) -> None:
        """Take in a frame of data."""
        if self._data_is_over:
            raise NotProven(f"{self._where}: expected no data after raw lines, got some")
        if self._has_records:
            self._collect(self._records, payload, decode_records)
        elif self._has_mounts:
            self._collect(self._mounts, payload, decode_mounts)
        else:
            self._stdout.append(payload)

    def _collect(self, found: list[_Item], payload: bytes, decode: Callable[[bytes], Iterable[_Item]]) -> None:
        for record in decode(payload):
            found.append(record)
            if len(found) > MAX_RECORDS:
                raise NotProven(f"{self._where}: expected at most {MAX_RECORDS} records, got more")

    def lines(self, payload: bytes) -> None:
        """Take in a frame of raw lines."""
        if not self._may_have_lines:
            raise NotProven(f"{self._where}: expected no raw lines, got some")
        self._data_is_over = True
        self._lines.append(payload)

    def end(self, payload: bytes) -> Section:
        """Return the section, complete with its end."""
        words = decode_words(payload, f"the end of {self._where}", _ALL_END_WORDS)
        try:
            status = SectionStatus(text_of(words, "status"))
        except ValueError:
            raise NotProven(f"{self._where}: expected status ok, same or error, got another or none") from None
        for word in words:
            if word not in _END_WORDS[status]:
                raise NotProven(f"{self._where}: expected no {word} with status {status}, got one")
        match status:
            case SectionStatus.OK:
                return self._good(words)
            case SectionStatus.SAME:
                return self._same(words)
            case SectionStatus.ERROR:
                return self._failed(words)

    def _good(self, words: Mapping[str, bytes]) -> Section:
        begin, request = self._begin, self._request
        self._require_origin()
        self._require_all_records(words)
        source = self._source(words)
        return Section(
            kind=request.kind,
            user=request.user,
            backend=begin.backend,
            host=begin.host,
            fields=begin.fields,
            database=self._database,
            signature=self._signature(words),
            source=source,
            others=number_of(words, "others", self._where, most=MAX_COUNT) if "others" in words else 0,
            other_hosts=self._other_hosts(words),
            left_out=number_of(words, "left_out", self._where, most=MAX_COUNT) if "left_out" in words else 0,
            exit_status=self._exit_status(words, required=source is Listing.COMMAND or self._is_of_a_command),
            stderr=text_of(words, "stderr"),
            records=tuple(self._records),
            mounts=tuple(self._mounts),
            stdout=b"".join(self._stdout),
            lines=b"".join(self._lines),
        )

    def _same(self, words: Mapping[str, bytes]) -> Section:
        request = self._request
        if not self._is_listing or request.signature == NO_SIGNATURE:
            raise NotProven(f"{self._where}: expected data, got status same, which was not offered in the request")
        if self._signature(words) != request.signature:
            raise NotProven(f"{self._where}: expected status same with the signature of the request, got another one")
        if self._records or self._data_is_over:
            raise NotProven(f"{self._where}: expected no data with status same, got some")
        self._require_origin()
        begin = self._begin
        return Section(
            kind=request.kind,
            status=SectionStatus.SAME,
            backend=begin.backend,
            host=begin.host,
            fields=begin.fields,
            database=self._database,
            signature=request.signature,
        )

    def _failed(self, words: Mapping[str, bytes]) -> Section:
        begin, stderr = self._begin, text_of(words, "stderr")
        exit_status = self._exit_status(words, required=False)
        error = SectionError(error_code(words, self._where), text_of(words, "text"), exit_status, stderr)
        return Section(
            kind=self._request.kind,
            status=SectionStatus.ERROR,
            user=self._request.user,
            backend=begin.backend,
            host=begin.host,
            fields=begin.fields,
            database=self._database,
            exit_status=exit_status,
            stderr=stderr,
            error=error,
        )

    def _require_origin(self) -> None:
        if (self._has_records or self._has_mounts) and not (self._begin.backend and self._begin.host):
            raise NotProven(f"{self._where}: expected backend and host of its records, got none")

    def _require_all_records(self, words: Mapping[str, bytes]) -> None:
        """Compare the number of records: a lost frame of them must not look like fewer sessions."""
        came = len(self._records) + len(self._mounts)
        if not (self._has_records or self._has_mounts):
            return
        expected = number_of(words, "records", self._where, most=MAX_COUNT)
        if came != expected:
            raise NotProven(f"{self._where}: expected {expected} records, as its end says, got {came}")

    def _source(self, words: Mapping[str, bytes]) -> Listing:
        if not self._is_listing:
            if "source" in words:
                raise NotProven(f"{self._where}: expected no source, got one")
            return Listing.RECORDS
        try:
            source = Listing(text_of(words, "source"))
        except ValueError:
            raise NotProven(f"{self._where}: expected source records or command, got another or none") from None
        # Where it would be unsafe to run the command, the records come alone though the command was requested.
        if source is Listing.COMMAND and not self._may_have_lines:
            raise NotProven(f"{self._where}: expected source records, as requested, got command")
        if source is Listing.RECORDS and self._data_is_over:
            raise NotProven(f"{self._where}: expected no raw lines with source records, got some")
        return source

    def _signature(self, words: Mapping[str, bytes]) -> str:
        if not self._is_listing and "signature" not in words:
            return NO_SIGNATURE
        signature = text_of(words, "signature")
        if not is_signature(signature):
            raise NotProven(f"{self._where}: expected a signature of 1 to 64 of 0-9 a-z . -, got another or none")
        return signature

    def _exit_status(self, words: Mapping[str, bytes], *, required: bool) -> int | None:
        if "exit" not in words and not required:
            return None
        return number_of(words, "exit", self._where, most=MAX_EXIT_STATUS)

    def _other_hosts(self, words: Mapping[str, bytes]) -> tuple[str, ...]:
        hosts = text_of(words, "other_hosts").split(",", MAX_OTHER_HOSTS)
        return tuple(host for host in hosts[:MAX_OTHER_HOSTS] if host)


def error_code(words: Mapping[str, bytes], where: str) -> ErrorCode:
    """Return the code in the word ``error``; raises NotProven for one that is not in the set, or none."""
    try:
        return ErrorCode(text_of(words, "error"))
    except ValueError:
        raise NotProven(f"{where}: expected one of the error codes of protocol 2, got another or none") from None
