"""Nothing in the tree says to install x2gofleet by its bare name: it is on no index, and anybody could register it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What a shell or pip would take for the project's name on an index; a path, a URL and a direct reference are not.
BARE_NAME = r"(?<![\w./@:-])x2gofleet(?:\[[\w,\s-]*\])?(?![\w./@:{*-])(?!\s+(?:@\s|from\s+its\s+wheel))"
INSTALLERS = r"(?:\bpip3?|\bpipx|\buv|\bpoetry|\bpdm|\bconda)\b"
WORDS = r"[^`|;&()]{0,160}?"
COMMAND = re.compile(rf"{INSTALLERS}{WORDS}\b(?:install|add|download|wheel|run|inject)\b{WORDS}{BARE_NAME}")
EXTRA = re.compile(r"(?<![\w./-])x2gofleet\[[a-z,]+\]")


def collapsed(text: str) -> str:
    """Return the text as one line, without comment marks and string quotes, so that no command hides in them.

    In a document's console block each line is a command.
    """
    text = re.sub(r"```console\n.*?```", lambda block: block[0].replace("\n", ";"), text, flags=re.S)
    return re.sub(r"[\s'\"#>\\]+", " ", text)


def source_files() -> list[Path]:
    """Return the files of the tree: what git knows or would add; without git, all but what is built."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False).stdout.decode()
    if listed:
        return [ROOT / name for name in listed.split("\0") if (ROOT / name).is_file()]
    skipped = {".git", ".venv", "__pycache__", "dist"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.relative_to(ROOT).parts)]


def texts() -> dict[str, str]:
    found = {}
    for path in source_files():
        if path != Path(__file__) and path.suffix not in (".svg", ".png"):
            found[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8", errors="replace")
    assert {"README.md", "docs/install.md", "docker-compose.yml", "x2gofleet/extras.py"} <= found.keys()
    return found


@pytest.mark.parametrize(
    "text",
    [
        "pip install x2gofleet",
        'pip install "x2gofleet[worker]"',
        "pip install 'x2gofleet[cli]', then",
        "/opt/x2gofleet/bin/pip\n  install x2gofleet`, and start",
        "/opt/x2gofleet/bin/pip install x2gofleet\n",
        "pip install --target /opt/x2gofleet/lib x2gofleet`",
        "python3 -m pip install --upgrade x2gofleet",
        "pip download x2gofleet",
        "pip install x2gofleet==0.1.0",
        "pip install --no-index --find-links dist x2gofleet",
        "pipx install x2gofleet",
        "uv pip install x2gofleet",
        "uv tool run x2gofleet",
        "'the simulator needs asyncssh: pip install '\n    'x2gofleet[demo]'",
        "```console\n# python3 -m venv x\n# pip install x2gofleet\n```",
        "# A broker needs only\n    # `pip install\n    # x2gofleet`.",
    ],
)
def test_a_bare_name_is_found(text: str) -> None:
    assert COMMAND.search(collapsed(text))


@pytest.mark.parametrize(
    "text",
    [
        "/opt/x2gofleet/bin/pip install dist/x2gofleet-0.1.0-py3-none-any.whl",
        "/opt/x2gofleet/bin/pip install 'dist/x2gofleet-0.1.0-py3-none-any.whl[worker]'",
        "pip install .`; x2gofleet is on no index",
        "pip install '.[worker]'",
        "/opt/x2gofleet/bin/pip install 'rich>=14.3'",
        "`x2gofleet @ file:///srv/wheels/x2gofleet-0.1.0-py3-none-any.whl`",
    ],
)
def test_a_path_is_none(text: str) -> None:
    assert not COMMAND.search(collapsed(text))


def test_no_text_says_to_install_the_bare_name() -> None:
    found = {name: [hit[0] for hit in COMMAND.finditer(collapsed(text))] for name, text in texts().items()}
    assert {name: hits for name, hits in found.items() if hits} == {}


def test_no_text_names_an_extra_of_the_bare_name() -> None:
    found = {name: EXTRA.findall(text) for name, text in texts().items()}
    # There an extra that is made of others names them; the metadata that is built of it has their packages.
    assert {name for name, hits in found.items() if hits} <= {"pyproject.toml"}
