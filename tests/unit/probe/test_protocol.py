"""The decoder of answers: whole answers in any pieces, notices around them, and everything that is not an answer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x2gofleet_workers.probe.decoding import Begin
from x2gofleet_workers.probe.encoding import encode_begin, encode_done, encode_notice, encode_refusal, encode_section
from x2gofleet_workers.probe.frames import MAX_DATA_BYTES, MAX_WORDS_BYTES, encode_frame
from x2gofleet_workers.probe.protocol import (
    MAX_ANSWER_BYTES,
    MAX_ANSWER_FRAMES,
    AnswerDecoder,
    ErrorCode,
    Listing,
    Request,
    Scope,
    Section,
    SectionKind,
    SectionRequest,
    SectionStatus,
)
from x2gofleet_workers.probe.sections import NO_FACTS, DatabaseFacts

from tests.support.probe_streams import (
    EVERYTHING,
    SAME,
    Conversation,
    conversations,
    cut_at,
    fed,
    session_record,
)
from x2gofleet.errors import NotProven


@settings(deadline=None)
@given(conversations(), st.data())
def test_every_answer_comes_back_as_it_was_sent_in_any_pieces(talk: Conversation, data: st.DataObject) -> None:
    stream = talk.stream()
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    decoder = AnswerDecoder(talk.request)
    assert tuple(fed(decoder, cut_at(stream, cuts))) == talk.sections
    assert (decoder.done, decoder.uid, decoder.host) == (True, talk.uid, talk.host)


@pytest.mark.parametrize("talk", [EVERYTHING, SAME])
def test_an_answer_split_at_every_byte_and_byte_by_byte_is_the_same(talk: Conversation) -> None:
    stream = talk.stream()
    for at in range(len(stream)):
        decoder = AnswerDecoder(talk.request)
        assert tuple(fed(decoder, (stream[:at], stream[at:]))) == talk.sections
        assert decoder.done
    decoder = AnswerDecoder(talk.request)
    assert tuple(fed(decoder, cut_at(stream, range(len(stream))))) == talk.sections


@pytest.mark.parametrize("talk", [EVERYTHING, SAME])
def test_a_truncated_answer_is_never_done(talk: Conversation) -> None:
    stream = talk.stream()
    for at in range(len(stream)):
        decoder = AnswerDecoder(talk.request)
        sections = fed(decoder, [stream[:at]])
        assert not decoder.done
        assert tuple(sections) == talk.sections[: len(sections)]
        assert len(sections) <= stream[:at].count(b"status=")


def request(*sections: SectionRequest, scope: Scope = Scope.SERVER, watch: bool = False) -> Request:
    return Request(scope, sections or (LISTING,), 9, watch)


def frame(kind: str, words: bytes, number: int = 1) -> bytes:
    return encode_frame(kind, number, words)


def section(kind: SectionKind, end: bytes, *data: bytes, begin: Begin | None = None, number: int = 1) -> bytes:
    frames = (frame("D", payload, number) for payload in data)
    return b"".join((encode_begin(begin or Begin(kind), number), *frames, frame("E", end, number)))


LISTING = SectionRequest(SectionKind.SESSIONS, "a.1")
COMMAND = SectionRequest(SectionKind.SESSIONS, "a.1", Listing.COMMAND)
LOAD = SectionRequest(SectionKind.LOAD)
DESKTOPS = SectionRequest(SectionKind.DESKTOPS)
MOUNTS = SectionRequest(SectionKind.MOUNTS)
SESSIONS_BEGIN = Begin(SectionKind.SESSIONS, "sqlite", "ts01")
GOOD_END = b"status=ok records=0 signature=a.2 source=records"
DONE = encode_done(0, "ts01", 1)
LOAD_OK = section(SectionKind.LOAD, b"status=ok", b"x")


def listing(end: bytes, *data: bytes) -> bytes:
    return section(SectionKind.SESSIONS, end, *data, begin=SESSIONS_BEGIN)


def lines(end: bytes) -> bytes:
    return encode_begin(SESSIONS_BEGIN, 1) + frame("L", b"x|y\n") + frame("E", end)


BROKEN: dict[str, tuple[bytes, tuple[SectionRequest, ...], str]] = {
    # Framing
    "noise": (b"Can't locate DBI.pm in @INC", (LOAD,), "header of a frame .*0x43"),
    "lower-case type": (b"b0000000100000000", (LOAD,), "header of a frame"),
    "upper-case hex": (b"B0000000A00000000", (LOAD,), "header of a frame"),
    "a sign in the length": (b"B00000001+0000001", (LOAD,), "header of a frame"),
    "a space in the number": (b"B 000000100000000", (LOAD,), "header of a frame"),
    "unknown type": (b"A0000000100000000", (LOAD,), "header of a frame"),
    "a type for the probe": (b"Q0000000100000000", (LOAD,), "header of a frame"),
    "data over the cap": (b"D00000001%08x" % (MAX_DATA_BYTES + 1), (LOAD,), "at most 1048576 bytes"),
    "lines over the cap": (b"L00000001%08x" % (MAX_DATA_BYTES + 1), (LOAD,), "at most 1048576 bytes"),
    "words over the cap": (b"E00000001%08x" % (MAX_WORDS_BYTES + 1), (LOAD,), "at most 65536 bytes"),
    "the greatest length": (b"D00000001ffffffff", (LOAD,), "at most 1048576 bytes"),
    # Order and numbers
    "another request": (section(SectionKind.LOAD, b"status=ok", number=2), (LOAD,), "request 1, got .* B of request 2"),
    "no request": (encode_begin(Begin(SectionKind.LOAD), 0), (LOAD,), "request 1, got .* of request 0"),
    "data of another request": (
        encode_begin(Begin(SectionKind.LOAD), 1) + frame("D", b"x", 2),
        (LOAD,),
        "request 1, got .* D of request 2",
    ),
    "data first": (frame("D", b"x"), (LOAD,), "expected the section load, got a frame of type D"),
    "lines first": (frame("L", b"x"), (LOAD,), "expected the section load, got a frame of type L"),
    "an end first": (frame("E", b"status=ok"), (LOAD,), "expected the section load, got a frame of type E"),
    "the answer's end first": (DONE, (LOAD,), "expected the section load, got the end of the answer"),
    "a section too few": (LOAD_OK + DONE, (LOAD, DESKTOPS), "expected the section desktops, got the end"),
    "a section too many": (LOAD_OK * 2, (LOAD,), "expected the end of the answer, got the section load"),
    "sections in another order": (LOAD_OK, (DESKTOPS, LOAD), "expected the section desktops, got the section load"),
    "a section in a section": (
        encode_begin(Begin(SectionKind.LOAD), 1) * 2,
        (LOAD, LOAD),
        "expected the rest of the section load, got a frame of type B",
    ),
    "the answer's end in a section": (
        encode_begin(Begin(SectionKind.LOAD), 1) + DONE,
        (LOAD,),
        "expected the rest of the section load, got a frame of type Z",
    ),
    "data after the end": (LOAD_OK + DONE + frame("D", b""), (LOAD,), "nothing but notices after the answer, got .* D"),
    "an answer after the end": (LOAD_OK + DONE + LOAD_OK, (LOAD,), "nothing but notices after the answer, got .* B"),
    "two ends": (LOAD_OK + DONE * 2, (LOAD,), "nothing but notices after the answer, got .* Z"),
    # Beginnings
    "no words": (frame("B", b""), (LOAD,), "expected key=value"),
    "no kind": (frame("B", b"backend=sqlite"), (LOAD,), "section of a known kind"),
    "unknown kind": (frame("B", b"kind=printers"), (LOAD,), "section of a known kind"),
    "unknown word": (frame("B", b"kind=load colour=red"), (LOAD,), "got 'colour'"),
    "a word twice": (frame("B", b"kind=load kind=load"), (LOAD,), "got 'kind' twice"),
    "two spaces": (frame("B", b"kind=load  fields=14"), (LOAD,), r"a word that is not \(word 2\)"),
    "a newline": (frame("B", b"kind=load\n"), (LOAD,), "a word that is not"),
    "a raw byte": (frame("B", b"kind=load host=\xe9"), (LOAD,), "a word that is not"),
    "half an escape": (frame("B", b"kind=load host=%4"), (LOAD,), "a word that is not"),
    "lower-case escape": (frame("B", b"kind=load host=%c3%a9"), (LOAD,), "a word that is not"),
    "too many words": (frame("B", b" ".join([b"kind=load"] * 17)), (LOAD,), "at most 16 words, got 17"),
    "host not in UTF-8": (frame("B", b"kind=load host=%FF"), (LOAD,), "host as a name in UTF-8"),
    "an empty host": (frame("B", b"kind=load host="), (LOAD,), "host as a name in UTF-8"),
    "fifteen fields": (frame("B", b"kind=load fields=15"), (LOAD,), "fields=14 or fields=16, got 15"),
    "no number of fields": (frame("B", b"kind=load fields=x"), (LOAD,), "fields as a number"),
    # Ends
    "no status": (section(SectionKind.LOAD, b"exit=0"), (LOAD,), "expected status ok, same or error"),
    "unknown status": (section(SectionKind.LOAD, b"status=good"), (LOAD,), "expected status ok, same or error"),
    "a word of another status": (section(SectionKind.LOAD, b"status=ok error=busy"), (LOAD,), "expected no error with"),
    "an error without code": (section(SectionKind.LOAD, b"status=error text=x"), (LOAD,), "one of the error codes"),
    "an unknown error": (section(SectionKind.LOAD, b"status=error error=ufo"), (LOAD,), "one of the error codes"),
    "no exit status of a command": (
        section(SectionKind.DESKTOPS, b"status=ok"),
        (DESKTOPS,),
        "exit as a number .*none",
    ),
    "exit status 256": (section(SectionKind.DESKTOPS, b"status=ok exit=256"), (DESKTOPS,), "exit as a number from 0"),
    "exit status of 5000 digits": (
        section(SectionKind.DESKTOPS, b"status=ok exit=" + b"1" * 5000),
        (DESKTOPS,),
        "exit as a number .*got 5000 bytes",
    ),
    "exit status below zero": (section(SectionKind.DESKTOPS, b"status=ok exit=-1"), (DESKTOPS,), "got '-1'"),
    "uid of another alphabet": (
        LOAD_OK + frame("Z", b"uid=%C2%B2 host=a"),
        (LOAD,),
        "uid as a number from 0 to 4294967295",
    ),
    "uid over 32 bits": (LOAD_OK + frame("Z", b"uid=4294967296 host=a"), (LOAD,), "uid as a number"),
    "no uid": (LOAD_OK + frame("Z", b"host=a"), (LOAD,), "uid as a number .*none"),
    "no host": (LOAD_OK + frame("Z", b"uid=0"), (LOAD,), "host as a name in UTF-8, got none"),
    "more after uid and host": (LOAD_OK + frame("Z", b"uid=0 host=a user=root"), (LOAD,), "got 'user'"),
    # Sessions and mounts in server scope
    "sessions without origin": (section(SectionKind.SESSIONS, GOOD_END), (LISTING,), "expected backend and host"),
    "mounts without origin": (
        section(SectionKind.MOUNTS, b"status=ok records=0"),
        (MOUNTS,),
        "expected backend and host",
    ),
    "mounts without a number": (
        section(SectionKind.MOUNTS, b"status=ok", begin=Begin(SectionKind.MOUNTS, "sqlite", "ts01")),
        (MOUNTS,),
        "records as a number",
    ),
    "sessions without a number": (listing(b"status=ok signature=- source=records"), (LISTING,), "records as a number"),
    "fewer records than were counted": (
        listing(b"status=ok records=1 signature=- source=records"),
        (LISTING,),
        "expected 1 records, as its end says, got 0",
    ),
    "no signature": (listing(b"status=ok records=0 source=records"), (LISTING,), "expected a signature"),
    "a signature with a space": (
        listing(b"status=ok records=0 source=records signature=a%20b"),
        (LISTING,),
        "expected a signature",
    ),
    "no source": (listing(b"status=ok records=0 signature=-"), (LISTING,), "expected source records or command"),
    "unknown source": (listing(b"status=ok records=0 signature=- source=x"), (LISTING,), "expected source records or"),
    "a command that was not requested": (
        listing(b"status=ok records=0 signature=- source=command exit=0"),
        (LISTING,),
        "expected source records, as requested",
    ),
    "a command without exit status": (
        listing(b"status=ok records=0 signature=- source=command"),
        (COMMAND,),
        "exit as a number",
    ),
    "lines that were not requested": (lines(GOOD_END), (LISTING,), "expected no raw lines, got some"),
    "lines of records": (lines(GOOD_END), (COMMAND,), "expected no raw lines with source records"),
    "data after lines": (
        encode_begin(SESSIONS_BEGIN, 1) + frame("L", b"") + frame("D", b""),
        (COMMAND,),
        "expected no data after raw lines",
    ),
    "same as another listing": (listing(b"status=same signature=a.2"), (LISTING,), "with the signature of the request"),
    "same without signature": (listing(b"status=same"), (LISTING,), "expected a signature"),
    "same with data": (
        encode_section(
            Section(kind=SectionKind.SESSIONS, backend="sqlite", host="a", records=(session_record(),)), Scope.SERVER, 1
        ).partition(b"E00000001")[0]
        + frame("E", b"status=same signature=a.1"),
        (LISTING,),
        "expected no data with status same",
    ),
    "same that was not offered": (
        listing(b"status=same signature=-"),
        (SectionRequest(SectionKind.SESSIONS),),
        "not offered in the request",
    ),
    "same load": (section(SectionKind.LOAD, b"status=same signature=a.1"), (LOAD,), "not offered in the request"),
    "a source of load": (section(SectionKind.LOAD, b"status=ok source=records"), (LOAD,), "expected no source"),
    # Records
    "half a length": (listing(GOOD_END, b"\0\0"), (LISTING,), "expected a record of 20 columns, got 0 and the end"),
    "half a record": (listing(GOOD_END, b"\0\0\0\0" * 19), (LISTING,), "expected a record of 20 columns, got 19"),
    "half a column": (listing(GOOD_END, b"\0\0\0\5abc"), (LISTING,), "expected 5 bytes in column 0 of a record, got 3"),
    "a record over two frames": (
        listing(GOOD_END, b"\0\0\0\0" * 10, b"\0\0\0\0" * 10),
        (LISTING,),
        "expected a record of 20 columns, got 10",
    ),
    "a column over the cap": (
        listing(GOOD_END, b"\0\0\0\0\0\0\4\1" + b"x" * 1025),
        (LISTING,),
        "at most 1024 bytes in column 1, got 1025",
    ),
    "a column of 4 GB": (listing(GOOD_END, b"\xff\xff\xff\xff"), (LISTING,), "at most 1024 bytes in column 0"),
    "no numbers of columns": (
        listing(GOOD_END, b"\0\0\0\1x" + b"\0\0\0\0" * 19),
        (LISTING,),
        "expected numbers of columns in the first column",
    ),
    "a mount with the columns of a session": (
        section(
            SectionKind.MOUNTS,
            b"status=ok records=1",
            b"\0\0\0\0" * 21,
            begin=Begin(SectionKind.MOUNTS, "sqlite", "ts01"),
        ),
        (MOUNTS,),
        "expected a record of 4 columns, got 1",
    ),
    # Refusals and notices
    "refused": (
        encode_refusal(ErrorCode.REQUEST, "unknown\x1b section", 1),
        (LOAD,),
        r"got a refusal of the request \(request\): unknown\ufffd section",
    ),
    "refused without a number": (encode_refusal(ErrorCode.REQUEST, "no frame"), (LOAD,), "refusal .*: no frame"),
    "another request refused": (encode_refusal(ErrorCode.REQUEST, "x", 2), (LOAD,), "got a refusal of request 2"),
    "refused in the middle": (LOAD_OK + encode_refusal(ErrorCode.BUSY, "x", 1), (LOAD,), "got a refusal of request 1"),
    "refused without a code": (frame("X", b"text=no"), (LOAD,), "one of the error codes"),
    "a notice at once": (encode_notice(), (LOAD,), "at most one notice for each request that asks for one"),
    "a notice that nobody asked for": (LOAD_OK + DONE + encode_notice(), (LOAD,), "at most one notice for each"),
    "a notice in an answer": (LOAD_OK + encode_notice(), (LOAD,), "expected the end of the answer, got a notice"),
    "a notice with a number": (
        frame("N", b"changed=sessions"),
        (LOAD,),
        "to belong to request 0, got one of request 1",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_what_is_not_an_answer_is_not_proven(name: str, step: int) -> None:
    stream, sections, text = BROKEN[name]
    decoder = AnswerDecoder(request(*sections))
    with pytest.raises(NotProven, match=text):
        fed(decoder, cut_at(stream, range(0, len(stream), step)))
    with pytest.raises(NotProven, match=text):
        list(decoder.feed(LOAD_OK + DONE))


def test_a_section_comes_as_soon_as_it_is_complete() -> None:
    decoder = AnswerDecoder(request(LOAD, LOAD))
    assert [each.kind for each in decoder.feed(LOAD_OK)] == ["load"]
    assert list(decoder.feed(LOAD_OK[:-1])) == []
    assert [each.stdout for each in decoder.feed(LOAD_OK[-1:])] == [b"x"]
    assert not decoder.done


def test_sections_that_were_not_fetched_are_not_lost() -> None:
    decoder = AnswerDecoder(request(LOAD, LOAD))
    decoder.feed(LOAD_OK)
    assert len(list(decoder.feed(LOAD_OK + DONE))) == 2
    assert decoder.done


def test_user_scope_has_raw_text_and_no_records() -> None:
    sections = (SectionRequest(SectionKind.SESSIONS), MOUNTS)
    decoder = AnswerDecoder(request(*sections, scope=Scope.USER))
    stream = section(SectionKind.SESSIONS, b"status=ok exit=1 stderr=no%20way", b"a|b\n", b"c")
    stream += section(SectionKind.MOUNTS, b"status=ok exit=0")
    sessions, mounts = decoder.feed(stream + DONE)
    assert (sessions.stdout, sessions.exit_status, sessions.stderr) == (b"a|b\nc", 1, "no way")
    assert (mounts.stdout, mounts.mounts, mounts.records) == (b"", (), ())


def test_what_a_user_s_login_says_of_databases_is_dropped() -> None:
    begin = encode_begin(Begin(SectionKind.SESSIONS, "postgres", "victim", database=DatabaseFacts("7.1", "db", 9)), 1)
    decoder = AnswerDecoder(request(SectionRequest(SectionKind.SESSIONS), scope=Scope.USER))
    (found,) = decoder.feed(begin + encode_frame("E", 1, b"status=ok exit=0") + DONE)
    assert found.database == NO_FACTS


def test_the_data_of_a_failed_section_are_void() -> None:
    decoder = AnswerDecoder(request())
    (failed,) = decoder.feed(listing(b"status=error error=locked text=database%20is%20locked", b"\0\0\0\0" * 20) + DONE)
    assert failed.status is SectionStatus.ERROR
    assert failed.error is not None
    assert (failed.error.code, failed.error.text) == (ErrorCode.LOCKED, "database is locked")
    assert (failed.records, failed.same) == ((), False)


def test_records_come_alone_where_the_command_would_be_unsafe() -> None:
    (found,) = AnswerDecoder(request(COMMAND)).feed(listing(GOOD_END) + DONE)
    assert (found.source, found.exit_status, found.lines) == (Listing.RECORDS, None, b"")


def test_notices_come_between_answers_once_for_each_request_that_asks() -> None:
    first = AnswerDecoder(request(LOAD, watch=True))
    assert len(list(first.feed(LOAD_OK + DONE + encode_notice()))) == 1
    assert first.notices == ["sessions"]
    with pytest.raises(NotProven, match="at most one notice"):
        list(first.feed(encode_notice()))


def test_a_notice_may_cross_the_next_request() -> None:
    first = AnswerDecoder(request(LOAD, watch=True))
    notice = encode_notice()
    list(first.feed(LOAD_OK + DONE + notice[:9]))
    second = AnswerDecoder(request(LOAD), after=first)
    assert second.request_frame().startswith(b"Q00000002")
    answer = section(SectionKind.LOAD, b"status=ok", number=2) + encode_done(0, "ts01", 2)
    assert len(list(second.feed(notice[9:] + answer))) == 1
    assert (first.notices, second.notices, second.done) == ([], ["sessions"], True)
    # The second request asked for none, and the first one's has come.
    with pytest.raises(NotProven, match="at most one notice"):
        list(second.feed(notice))


def test_a_request_is_numbered_after_the_one_before_it_and_waits_for_its_answer() -> None:
    decoder = AnswerDecoder(request(LOAD))
    with pytest.raises(ValueError, match="complete"):
        AnswerDecoder(request(LOAD), after=decoder)
    list(decoder.feed(LOAD_OK + DONE))
    decoder.number = 0xFFFFFFFF
    assert AnswerDecoder(request(LOAD), after=decoder).number == 1


def test_no_repr_or_message_has_a_cookie() -> None:
    cookie = b"deadbeef" * 4
    record = session_record(cookie=cookie)
    found = Section(kind=SectionKind.SESSIONS, records=(record,), stdout=cookie, lines=cookie)
    assert "deadbeef" not in repr((record, found))
    # A stream that lost its framing: the next header is read from the middle of a cookie.
    decoder = AnswerDecoder(request(LOAD))
    with pytest.raises(NotProven) as caught:
        list(decoder.feed(cookie))
    assert "dead" not in str(caught.value)


def test_an_answer_has_an_end() -> None:
    decoder = AnswerDecoder(request(DESKTOPS))
    data = encode_frame("D", 1, b"x" * MAX_DATA_BYTES)
    with pytest.raises(NotProven, match=f"at most {MAX_ANSWER_BYTES} bytes"):
        fed(decoder, (encode_begin(Begin(SectionKind.DESKTOPS), 1), *([data] * 64)))


def test_empty_frames_without_end_have_an_end() -> None:
    decoder = AnswerDecoder(request(DESKTOPS))
    frames = encode_frame("D", 1, b"") * MAX_ANSWER_FRAMES
    with pytest.raises(NotProven, match=f"in {MAX_ANSWER_FRAMES} frames"):
        fed(decoder, (encode_begin(Begin(SectionKind.DESKTOPS), 1), frames))
