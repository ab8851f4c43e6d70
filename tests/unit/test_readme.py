"""The README shows what is in the tree: its reader code is examples/read.py, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from x2gofleet import FleetCache

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_reader_code_is_the_example() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks == [(ROOT / "examples" / "read.py").read_text(encoding="utf-8")]


def test_the_asyncio_code_of_the_reader_s_page_is_the_example() -> None:
    page = (ROOT / "docs" / "reader.md").read_text(encoding="utf-8")
    assert (ROOT / "examples" / "read_async.py").read_text(encoding="utf-8") in re.findall(
        r"```python\n(.*?)```", page, re.S
    )


def test_the_reader_s_page_names_every_method() -> None:
    page = (ROOT / "docs" / "reader.md").read_text(encoding="utf-8")
    for name in vars(FleetCache):
        assert name.startswith("_") or re.search(rf"\b{name}\b", page), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"`?make ([a-z0-9-]+)`?", README))
    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.M), target
