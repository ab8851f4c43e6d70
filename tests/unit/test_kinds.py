"""Kind: the words that are part of keys, of the API and of fleet.toml."""

from __future__ import annotations

import pytest

from x2gofleet.kinds import Kind


def test_the_kinds_and_their_order() -> None:
    assert [kind.value for kind in Kind] == ["sessions", "desktops", "mounts", "load"]


@pytest.mark.parametrize("kind", list(Kind))
def test_parse_takes_the_word_and_the_kind(kind: Kind) -> None:
    assert Kind.parse(kind.value) is kind
    assert Kind.parse(kind) is kind


@pytest.mark.parametrize("text", ["", "Sessions", "session", "sessions ", "x2golistsessions"])
def test_parse_names_the_known_ones(text: str) -> None:
    with pytest.raises(ValueError, match="known: sessions, desktops, mounts, load") as caught:
        Kind.parse(text)
    assert repr(text) in str(caught.value)
