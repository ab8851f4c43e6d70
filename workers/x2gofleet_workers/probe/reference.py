"""reference: whether the rows made from records are those of X2Go's own query, which is the reference for them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum

from x2gofleet.text import show
from x2gofleet_workers.probe.proof import malformed, row_of
from x2gofleet_workers.probe.sections import Section

_STATUS, _AGE = 4, 12
_FIELD_NAMES = (
    *("agent_pid", "name", "display", "hostname", "status", "date_created", "cookie", "client", "graphics_port"),
    *("snd_port", "date_suspended", "username", "age", "sshfs_port", "tekictrl_port", "tekidata_port"),
)


class Agreement(StrEnum):
    """What a comparison with X2Go's own query came to."""

    EQUAL = "equal"
    DIFFERS = "differs"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Comparison:
    """An agreement, and in ``text`` the first difference or why nothing could be said; never a cookie.

    ``records_digest`` is equal for two comparisons of the same records.
    """

    agreement: Agreement
    text: str = ""
    records_digest: str = ""


def compare_with_reference(section: Section) -> Comparison:
    """Compare the records of a section `reference` with the lines of X2Go's own query.

    The probe read equal records before and after it ran the query. Age, order and finished rows are ignored. Where a
    record is malformed or was left out, which any user can bring about, nothing counts as a difference.
    """
    if section.error is not None:
        return Comparison(Agreement.INCONCLUSIVE, f"{section.error.code}: {show(section.error.text)}")
    if section.exit_status:
        said = show(section.stderr) or "nothing on stderr"
        text = f"X2Go's own query ended with exit status {section.exit_status}: {said}"
        return Comparison(Agreement.INCONCLUSIVE, text)
    difference = _first_difference(section)
    if not difference:
        return Comparison(Agreement.EQUAL)
    if section.left_out:
        return Comparison(Agreement.INCONCLUSIVE, f"{section.left_out} records were left out, and {difference}")
    if any(malformed(record, host=section.host.encode()) for record in section.records):
        return Comparison(Agreement.INCONCLUSIVE, f"there are malformed records, and {difference}")
    return Comparison(Agreement.DIFFERS, difference, _digest(section))


def _digest(section: Section) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for record in section.records:
        for column in replace(record, age=b"", state=b"", foreign_agent=b"").columns():
            digest.update(len(column).to_bytes(4) + column)
    return digest.hexdigest()


def _first_difference(section: Section) -> str:
    host = section.host.encode()
    ours: dict[bytes, list[bytes]] = {}
    for record in section.records:
        if record.status != b"F" and not malformed(record, host=host):
            ours[record.session] = row_of(record, section.fields, use_state=False).split(b"|")
    theirs: dict[bytes, list[bytes]] = {}
    for line in section.lines.split(b"\n"):
        fields = line.split(b"|")
        if line.strip() and len(fields) <= _STATUS:
            said = show(line, 80) if b"|" not in line else "a part of one"
            return f"X2Go's own query prints a line that is not a row: {said}"
        if line.strip() and fields[_STATUS] != b"F":
            theirs[fields[1]] = fields
    for name, fields in ours.items():
        found = theirs.pop(name, None)
        if found is None:
            return f"X2Go's own query does not list session {show(name, 80)}, which has a record"
        if difference := _field_difference(fields, found):
            return f"session {show(name, 80)}: {difference}"
    for name in theirs:
        return f"X2Go's own query lists session {show(name, 80)}, which has no record"
    return ""


def _field_difference(ours: list[bytes], theirs: list[bytes]) -> str:
    if len(ours) != len(theirs):
        return f"X2Go's own query prints {len(theirs)} fields, expected {len(ours)}"
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if number != _AGE and mine != other:
            return f"field {number} ({_FIELD_NAMES[number]}) differs"
    return ""
