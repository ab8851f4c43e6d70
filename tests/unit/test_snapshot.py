"""Snapshot: from a Redis hash, or refused with the reason; digests that don't see the age column."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2gofleet.errors import SchemaMismatch, SnapshotCorrupt
from x2gofleet.kinds import Kind
from x2gofleet.snapshot import SCHEMA_VERSION, Snapshot, digest_of

NOW_MS = 1_763_800_010_000
LOAD = b"loadavg 0.05 0.10 0.20\nmemtotal_kb 24000000\nmemavailable_kb 23000000\ncpus 2\ncpu_mhz 2450.0\n"
FIELDS = {
    b"stdout": b"1368|alice-50-1763800000_stDMATE_dp24|50|ts01|R|2026-11-22T20:24:30|c0|192.0.2.17|35001|35002||alice|"
    b"2728|35003|-1|-1\n",
    b"exit_status": b"0",
    b"polled_at": b"1763800007500",
    b"listed_at": b"1763800001500",
    b"duration_ms": b"12",
    b"digest": b"d1",
    b"changed_at": b"1763799000000",
    b"fence": b"1763800000001",
    b"seq": b"7",
    b"worker": b"w1",
    b"schema": b"1",
    b"rejected_rows": b"2",
}
NUMBERS = sorted(
    name.decode() for name, value in FIELDS.items() if value.isdigit() and name not in (b"stdout", b"schema")
)


def decoded(kind: Kind = Kind.SESSIONS, **changes: bytes | None) -> Snapshot:
    """Decode FIELDS with changes; None removes a field."""
    fields = {**FIELDS, **{name.encode(): value for name, value in changes.items()}}
    kept = {name: value for name, value in fields.items() if value is not None}
    return Snapshot.from_hash("ts01", kind, kept, now_ms=NOW_MS)


def test_every_field_is_decoded() -> None:
    assert decoded() == Snapshot(
        target="ts01",
        kind=Kind.SESSIONS,
        stdout=FIELDS[b"stdout"],
        exit_status=0,
        polled_at_ms=1763800007500,
        listed_at_ms=1763800001500,
        duration_ms=12,
        digest="d1",
        changed_at_ms=1763799000000,
        fence=1763800000001,
        seq=7,
        worker="w1",
        schema=1,
        rejected_rows=2,
        age=2.5,
    )


def test_server_and_user_come_from_the_target() -> None:
    own = Snapshot.from_hash("alice@ts01", Kind.DESKTOPS, FIELDS, now_ms=NOW_MS)
    assert (own.server, own.username) == ("ts01", "alice")
    assert (decoded().server, decoded().username) == ("ts01", None)


def test_the_age_is_never_negative() -> None:
    assert decoded(polled_at=str(NOW_MS + 5).encode()).age == 0.0


@pytest.mark.parametrize("name", sorted(name.decode() for name in FIELDS))
def test_a_missing_field_is_named(name: str) -> None:
    with pytest.raises(SnapshotCorrupt, match=f"sessions snapshot of ts01.*KeyError: b'{name}'"):
        decoded(**{name: None})


@pytest.mark.parametrize("name", [*NUMBERS, "schema"])
@pytest.mark.parametrize("value", [b"", b"many", b"1.5", b"\xff"])
def test_a_field_that_is_no_number_is_refused(name: str, value: bytes) -> None:
    with pytest.raises(SnapshotCorrupt, match="sessions snapshot of ts01"):
        decoded(**{name: value})


def test_a_time_beyond_all_times_is_refused() -> None:
    with pytest.raises(SnapshotCorrupt, match="sessions snapshot of ts01"):
        decoded(polled_at=b"-1" + b"0" * 400)


@pytest.mark.parametrize("name", ["worker", "digest"])
def test_a_field_that_is_no_text_is_refused(name: str) -> None:
    with pytest.raises(SnapshotCorrupt, match="sessions snapshot of ts01"):
        decoded(**{name: b"\xff\xfe"})


def test_a_newer_schema_is_another_error_whatever_else_the_hash_holds() -> None:
    newer = str(SCHEMA_VERSION + 1).encode()
    with pytest.raises(SchemaMismatch, match=rf"has schema {SCHEMA_VERSION + 1}.*upgrade x2gofleet here"):
        Snapshot.from_hash("ts01", Kind.LOAD, {b"schema": newer, b"other": b"fields"}, now_ms=NOW_MS)


def test_fields_of_a_later_minor_version_are_passed_over() -> None:
    assert decoded(seal=b"f00") == decoded()


def test_stdout_is_kept_byte_for_byte_and_never_shown() -> None:
    raw = bytes(range(256))
    snapshot = decoded(stdout=raw)
    assert snapshot.stdout == raw
    assert "c0" not in repr(decoded())
    assert "stdout" not in repr(decoded())


def test_sessions_know_their_server() -> None:
    (row,) = decoded().sessions().rows
    assert (row.username, row.server) == ("alice", "ts01")


def test_desktops_mounts_and_load() -> None:
    assert decoded(Kind.DESKTOPS, stdout=b"alice@:50\nbob@:51\n").desktops() == ("alice@:50", "bob@:51")
    name = "alice-50-1763800000_stDMATE_dp24"
    mounts = decoded(Kind.MOUNTS, stdout=f"{name}|127.0.0.1|/a b\nnonsense\n".encode()).mounts()
    assert [(mount.session_name, mount.listed) for mount in mounts] == [(name, "127.0.0.1|/a b")]
    assert decoded(Kind.LOAD, stdout=LOAD).load().cpus == 2


@pytest.mark.parametrize("stdout", [b"", LOAD.replace(b"cpus 2\n", b""), LOAD.replace(b"cpus 2", b"cpus two"), b"\xff"])
def test_load_figures_that_can_not_be_read_are_a_corrupt_snapshot(stdout: bytes) -> None:
    with pytest.raises(SnapshotCorrupt, match="load snapshot of ts01"):
        decoded(Kind.LOAD, stdout=stdout).load()


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("asked", ["sessions", "desktops", "mounts", "load"])
def test_a_snapshot_is_only_read_as_what_it_is(kind: Kind, asked: str) -> None:
    if kind.value == asked:
        return
    with pytest.raises(ValueError, match=f"holds {kind.value}, not {asked}"):
        getattr(decoded(kind), asked)()


def test_the_digest_of_sessions_leaves_the_age_out(samples: Path) -> None:
    stdout = (samples / "root-sqlite.txt").read_bytes()
    lines = stdout.split(b"\n")
    aged = [b"|".join([*line.split(b"|")[:12], b"999999", *line.split(b"|")[13:]]) if line else line for line in lines]
    later = b"\n".join(aged)
    assert later != stdout
    assert digest_of(Kind.SESSIONS, later) == digest_of(Kind.SESSIONS, stdout)
    assert digest_of(Kind.SESSIONS, stdout.replace(b"|R|", b"|S|", 1)) != digest_of(Kind.SESSIONS, stdout)


@given(st.sampled_from([Kind.DESKTOPS, Kind.MOUNTS, Kind.LOAD]), st.binary(max_size=40), st.binary(max_size=40))
def test_other_digests_are_of_every_byte(kind: Kind, one: bytes, other: bytes) -> None:
    assert (digest_of(kind, one) == digest_of(kind, other)) == (one == other)
