"""When the host name of a server on PostgreSQL is recorded, and what follows from another server that has the same."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace

import pytest
import redis
from x2gofleet_workers.polling.host_names import AGAIN_SECONDS, HostNames
from x2gofleet_workers.probe.protocol import ErrorCode, Section, SectionError, SectionKind, SectionStatus
from x2gofleet_workers.probe.sections import DatabaseFacts

from tests.support.clocks import ManualClock
from x2gofleet.errors import CacheUnavailable, HostNameShared

LISTED = Section(kind=SectionKind.SESSIONS, backend="postgres", host="ts01", database=DatabaseFacts("1.2"))
SAME = replace(LISTED, status=SectionStatus.SAME)


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self.others: tuple[str, ...] = ()
        self.error: Exception | None = None

    def record_host_name(self, server: str, host_name: str, database: str, *, valid_ms: int) -> tuple[str, ...]:
        self.calls.append((server, host_name, database))
        if self.error is not None:
            raise self.error
        return self.others


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def names(recorder: Recorder, clock: ManualClock) -> HostNames:
    return HostNames("ts01", recorder, clock)  # type: ignore[arg-type]


def test_polls_of_an_unchanged_listing_record_nothing_for_ten_seconds(
    names: HostNames, recorder: Recorder, clock: ManualClock
) -> None:
    names.require_sole(LISTED)
    for _ in range(5):
        names.require_sole(SAME)
    assert recorder.calls == [("ts01", "ts01", "1.2")]
    clock.now += AGAIN_SECONDS
    names.require_sole(SAME)
    assert len(recorder.calls) == 2


@pytest.mark.parametrize(
    "section",
    [
        replace(LISTED, backend="sqlite", database=DatabaseFacts()),
        replace(LISTED, error=SectionError(ErrorCode.PG_CONNECT)),
    ],
    ids=["no identity", "failed"],
)
def test_nothing_is_recorded_without_a_database(names: HostNames, recorder: Recorder, section: Section) -> None:
    names.require_sole(section)
    assert recorder.calls == []


@pytest.mark.parametrize("changed", [{"host": "renamed"}, {"database": DatabaseFacts("3.4")}])
def test_a_change_is_recorded_at_once(names: HostNames, recorder: Recorder, changed: dict[str, object]) -> None:
    names.require_sole(LISTED)
    recorder.others = ("ts02",)
    # Without a listing, which is proven, it is the server's word alone.
    names.require_sole(replace(SAME, **changed))  # type: ignore[arg-type]
    assert len(recorder.calls) == 1
    with pytest.raises(HostNameShared):
        names.require_sole(replace(LISTED, **changed))  # type: ignore[arg-type]


def test_a_shared_name_fails_each_poll_until_it_is_shared_no_more(names: HostNames, recorder: Recorder) -> None:
    recorder.others = ("ts02",)
    for _ in range(2):
        with pytest.raises(HostNameShared, match=r"the host name ts01 .* \(ts01, ts02\)"):
            names.require_sole(SAME)
        with pytest.raises(HostNameShared):
            names.require_none_known()
    recorder.others = ()
    names.require_sole(SAME)
    names.require_none_known()
    assert len(recorder.calls) == 3


@pytest.mark.parametrize("cause", [redis.exceptions.NoPermissionError, redis.exceptions.ResponseError])
def test_a_refusal_is_a_warning_and_an_outage_is_not(
    names: HostNames, recorder: Recorder, caplog: pytest.LogCaptureFixture, cause: type[Exception]
) -> None:
    recorder.error = CacheUnavailable("no right")
    recorder.error.__cause__ = cause("no right")
    with caplog.at_level(logging.WARNING):
        names.require_sole(LISTED)
        names.require_sole(LISTED)
    assert [record.getMessage() for record in caplog.records] == [
        "ts01: two servers of one host name cannot be found: no right"
    ]
    recorder.error = CacheUnavailable("down")
    names.require_sole(LISTED)
    with pytest.raises(CacheUnavailable):
        names.require_sole(replace(LISTED, host="another"))


@pytest.mark.parametrize("others", [(), ("ts02",)])
def test_in_an_outage_of_that_key_what_was_told_last_holds(
    names: HostNames, recorder: Recorder, clock: ManualClock, others: tuple[str, ...]
) -> None:
    recorder.others = others
    with pytest.raises(HostNameShared) if others else contextlib.nullcontext():
        names.require_sole(LISTED)
    recorder.error = CacheUnavailable("down")
    clock.now += AGAIN_SECONDS
    with pytest.raises(HostNameShared) if others else contextlib.nullcontext():
        names.require_sole(SAME)
