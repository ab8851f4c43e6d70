"""The comparison of records with X2Go's own query: equal, differs, or nothing that can be said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from x2gofleet_workers.probe.records import Record
from x2gofleet_workers.probe.reference import Agreement, compare_with_reference
from x2gofleet_workers.probe.requests import SectionKind
from x2gofleet_workers.probe.sections import ErrorCode, Section, SectionError, SectionStatus

from .test_proof import ALICE, ALICE_ROW, BOB, BOB_ROW


def reference(*records: Record, lines: bytes, exit_status: int = 0) -> Section:
    return Section(
        kind=SectionKind.REFERENCE,
        backend="sqlite",
        host="ts01",
        records=records,
        lines=lines,
        exit_status=exit_status,
    )


BOTH = ALICE_ROW + b"\n" + BOB_ROW + b"\n"
FINISHED = replace(BOB, session=b"bob-52", status=b"F")


@pytest.mark.parametrize(
    ("records", "lines", "agreement"),
    [
        ((ALICE, BOB), BOTH, Agreement.EQUAL),
        ((ALICE, BOB), BOB_ROW + b"\n" + ALICE_ROW + b"\n", Agreement.EQUAL),
        ((), b"", Agreement.EQUAL),
        ((), b"\n", Agreement.EQUAL),
        ((ALICE, BOB), BOTH.replace(b"|12|", b"|99|"), Agreement.EQUAL),
        ((ALICE, BOB, FINISHED), BOTH, Agreement.EQUAL),
        ((replace(ALICE, state=b"SUSPENDED"), BOB), BOTH, Agreement.EQUAL),
        ((replace(ALICE, foreign_agent=b"eve"), BOB), BOTH, Agreement.EQUAL),
        ((ALICE,), BOTH, Agreement.DIFFERS),
        ((ALICE, BOB), ALICE_ROW + b"\n", Agreement.DIFFERS),
        ((ALICE, BOB), b"", Agreement.DIFFERS),
        ((ALICE, BOB), BOTH + b"an error\n", Agreement.DIFFERS),
        ((ALICE, BOB), BOTH.replace(b"10.1.2.3", b"10.1.2.4"), Agreement.DIFFERS),
        ((ALICE, BOB), BOTH.replace(b"|-1|-1", b""), Agreement.DIFFERS),
        # A user can write such a record: whatever X2Go's query makes of it is no fault of the server.
        ((ALICE, replace(BOB, cookie=b"x\ny")), ALICE_ROW + b"\nBOB|x\ny\n", Agreement.INCONCLUSIVE),
        ((ALICE, replace(BOB, cookie=b"x\ny")), b"", Agreement.INCONCLUSIVE),
    ],
)
def test_comparison(records: tuple[Record, ...], lines: bytes, agreement: Agreement) -> None:
    assert compare_with_reference(reference(*records, lines=lines)).agreement is agreement


def test_a_difference_is_named_without_a_cookie() -> None:
    other = BOTH.replace(b"0123456789abcdef0123456789abcdef", b"ffffffffffffffffffffffffffffffff")

    found = compare_with_reference(reference(ALICE, BOB, lines=other))

    assert found.text == "session alice-50-1763800000_stDMATE_dp24: field 6 (cookie) differs"


def test_a_difference_proves_nothing_where_records_were_left_out() -> None:
    section = replace(reference(ALICE, lines=BOTH), left_out=1)

    assert compare_with_reference(section).agreement is Agreement.INCONCLUSIVE


def test_a_query_that_failed_proves_nothing() -> None:
    failed = reference(ALICE, lines=b"", exit_status=255)
    error = replace(failed, status=SectionStatus.ERROR, error=SectionError(ErrorCode.BUSY, "changed three times"))

    for section in (failed, error):
        assert compare_with_reference(section).agreement is Agreement.INCONCLUSIVE
