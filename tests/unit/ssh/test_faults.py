"""What exceptions say, and which of them are this worker's own lack of something."""

from __future__ import annotations

import errno
import socket

import pytest
from x2gofleet_workers.ssh.faults import describe, exhausted

from x2gofleet.errors import Unreachable, WorkerExhausted

LACKS: dict[str, tuple[BaseException, str]] = {
    "EMFILE": (OSError(errno.EMFILE, "Too many open files"), "file descriptors"),
    "ENFILE": (OSError(errno.ENFILE, "Too many open files in system"), "the file descriptors of its machine"),
    "ENOMEM": (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
    "ENOBUFS": (OSError(errno.ENOBUFS, "No buffer space available"), "memory"),
    "no thread": (RuntimeError("can't start new thread"), "threads"),
    "no memory": (MemoryError(), "memory"),
}
OTHERS: dict[str, BaseException] = {
    "refused": ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    "unreachable": OSError(errno.EHOSTUNREACH, "No route to host"),
    "no name": socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    "a bug": RuntimeError("dictionary changed size during iteration"),
    "said by the server": Unreachable("ts01: Too many open files"),
}


@pytest.mark.parametrize("name", LACKS)
def test_a_lack_of_the_workers_own_is_told_as_such(name: str) -> None:
    exc, resource = LACKS[name]
    found = exhausted(exc)
    assert isinstance(found, WorkerExhausted)
    assert found.message == f"this worker ran out of {resource}; nothing is known of the server"
    assert found.mend


def make_unreachable_of(exc: BaseException) -> None:
    """Wrap an exception as paramiko and dialing do: once with and once without saying what it came from."""
    try:
        raise exc
    except Exception:
        try:
            raise ValueError("the banner could not be read")
        except ValueError as wrapped:
            raise Unreachable("ts01 port 22: it does not speak SSH") from wrapped


@pytest.mark.parametrize("name", LACKS)
def test_a_lack_is_found_behind_what_was_made_of_it(name: str) -> None:
    with pytest.raises(Unreachable) as caught:
        make_unreachable_of(LACKS[name][0])
    found = exhausted(caught.value)
    assert found is not None
    assert LACKS[name][1] in str(found)
    assert exhausted(found) is found


@pytest.mark.parametrize("name", OTHERS)
def test_what_servers_and_networks_do_is_no_lack_of_the_worker(name: str) -> None:
    assert exhausted(OTHERS[name]) is None


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert exhausted(first) is None


def test_a_description_is_one_line_of_plain_text() -> None:
    assert describe(OSError("a\x1b[31m\nb")) == "a\ufffd[31m b"
    assert describe(EOFError()) == "EOFError"
