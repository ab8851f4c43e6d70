"""A part of `make fuzz` in every test run, for known_hosts and keys, and that the fuzzing finds what it looks for."""

from __future__ import annotations

import os
from collections.abc import Callable

import paramiko
import pytest
from x2gofleet_workers.ssh import host_keys
from x2gofleet_workers.ssh.blobs import BadKey
from x2gofleet_workers.ssh.key_formats import KeyProblem, parse_key
from x2gofleet_workers.ssh.known_hosts import KnownHostsFile, match_pattern

from tests.fuzz import keys, known_hosts
from tests.fuzz.costs import growth

RUNS = int(os.environ.get("FUZZ_RUNS", "300"))
TIMES = 8
# A time that grows with the square is 64 times as long; what the machine does meanwhile makes less of a difference.
MOST = 4 * TIMES


def test_broken_known_hosts_files_are_read_and_cost_no_good_line() -> None:
    tally = known_hosts.fuzz(RUNS, seed=2)
    assert tally.failures == []
    assert (tally.runs, tally.failed) == (RUNS, 0)
    assert {"accepted", "refused", "HostKeyUnknown"} <= set(tally.outcomes)
    assert len(tally.refusals) > 6


def test_broken_key_files_are_keys_or_problems_with_a_remedy() -> None:
    tally = keys.fuzz(RUNS, seed=2)
    assert tally.failures == []
    assert (tally.runs, tally.failed) == (RUNS, 0)
    assert set(tally.outcomes) == {"a key", "refused", "a certificate", "no certificate"}
    assert len(tally.refusals) > 10


class StopsAtABadLine(KnownHostsFile):
    """Loses what comes after the first line that can't be read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        if self.bad:
            super().__init__(b"\n".join(data.split(b"\n")[: self.bad[0].number - 1]))


class Raises(KnownHostsFile):
    """Lets out what a line raises, as readers of other programs' formats do."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        if self.bad:
            raise BadKey(self.bad[0].reason)


@pytest.mark.parametrize(("faulty", "said"), [(StopsAtABadLine, "no key of good"), (Raises, "BadKey")])
def test_the_fuzzing_finds_a_reader_that_loses_lines(
    faulty: type[KnownHostsFile], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_keys, "KnownHostsFile", faulty)
    tally = known_hosts.fuzz(60, seed=2)
    assert tally.failed > 0
    assert any(said in failure for failure in tally.failures), tally.failures


def unchecked(data: bytes, path: str) -> paramiko.PKey:
    try:
        return parse_key(data, path)
    except KeyProblem as exc:
        if exc.__cause__ is not None:
            raise exc.__cause__ from None
        raise


def test_the_fuzzing_finds_a_reader_of_keys_that_raises_what_comes() -> None:
    assert keys.fuzz(100, seed=2, parse=unchecked).failed > 0


@pytest.mark.parametrize("shape", known_hosts.LONG_SHAPES)
def test_reading_and_searching_grow_with_the_lines(shape: str) -> None:
    def work(lines: int) -> Callable[[], object]:
        data = known_hosts.long_file(shape, lines)
        return lambda: KnownHostsFile(data).lines_of("[ts01.example.org]:2222")

    assert growth(work(1000), work(1000 * TIMES)) < MOST


@pytest.mark.parametrize(
    "piece",
    [
        b" ",
        b"-----BEGIN ",
        b"-----BEGIN PRIVATE KEY-----\n",
        b"-----BEGIN PRIVATE KEY-----\nA\n-----END ",
        b"\r\n",
        b"A",
    ],
    ids=["space", "half a header", "headers", "halves of ends", "CRLF", "letters"],
)
def test_reading_a_key_file_grows_with_its_size(piece: bytes) -> None:
    def work(size: int) -> Callable[[], object]:
        data = b"-----BEGIN RSA PRIVATE KEY-----\n" * (piece == b"A") + piece * (size // len(piece))

        def read() -> None:
            with pytest.raises(KeyProblem):
                parse_key(data, "/id")

        return read

    assert growth(work(100_000), work(100_000 * TIMES)) < MOST


def test_a_pattern_takes_no_more_steps_than_its_length_times_the_names() -> None:
    def work(stars: int) -> Callable[[], object]:
        return lambda: match_pattern(b"a" * 250, b"*a" * stars + b"b")

    assert growth(work(20), work(20 * TIMES)) < MOST
