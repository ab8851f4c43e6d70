"""The decoder of answers: whole answers in any pieces, notices around them, and everything that is not an answer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x2gofleet_workers.probe.encoding import encode_begin, encode_done, encode_notice, encode_refusal, encode_section
from x2gofleet_workers.probe.decoding import Begin
from x2gofleet_workers.probe.frames import MAX_DATA_BYTES, MAX_WORDS_BYTES, encode_frame
from x2gofleet_workers.probe.protocol import (
    MAX_ANSWER_BYTES,
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
