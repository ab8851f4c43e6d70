from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2gofleet.adapters import broker_answers as answers
from x2gofleet.adapters.broker_answers import BrokerView, cached_view
from x2gofleet.fleet import PublishedServer, PublishedTarget
from x2gofleet.kinds import Kind
from x2gofleet.placement import Standing
from x2gofleet.snapshot import Snapshot

NOW_MS = 1_000_000
LOAD = b"loadavg 0.05 0.10 0.20\nmemtotal_kb 24000000\nmemavailable_kb 23000000\ncpus 2\ncpu_mhz 2450.0\n"


def line(
    name: str,
    *,
    host: str,
    status: str = "R",
    user: str = "alice",
    created: str = "2026-11-22T20:24:30",
    pid: str = "7",
) -> str:
    port = "" if not pid else "35001"
    return f"{pid}|{name}|50|{host}|{status}|{created}|c00c1e|10.1.2.3|{port}|{port}|{created}|{user}|34|{port}|-1|-1"


def snapshot(server: str, kind: Kind, stdout: bytes) -> Snapshot:
    return Snapshot(server, kind, stdout, 0, NOW_MS, NOW_MS, 1, "", NOW_MS, 1, 1, "w1")


def standing(
    server: str,
    rows: list[str] | None = None,
    *,
    down: bool = False,
    load: bytes | None = LOAD,
    reserved: dict[str, int] | None = None,
    username: str | None = None,
) -> Standing:
    return Standing(
        PublishedTarget(server, server, "server", username, frozenset(Kind)),
        None if rows is None else snapshot(server, Kind.SESSIONS, "\n".join([*rows, ""]).encode()),
        None if load is None else snapshot(server, Kind.LOAD, load),
        down,
        reserved or {},
    )


def view(
    standings: dict[str, Standing], *, drained: tuple[str, ...] = (), weights: dict[str, float] | None = None
) -> BrokerView:
    servers = {
        host: PublishedServer(
            each.target.server, each.target.server, (), (weights or {}).get(host, 1.0), host in drained
        )
        for host, each in standings.items()
    }
    found = cached_view("mate", standings, servers=servers, whole=True, now_ms=NOW_MS, username="alice")
    assert found is not None
    return found


def as_written(servers: list[str], said: list[str]) -> list[str]:
    """What x2gobroker.utils.matching_hostnames gives where no name has a domain."""
    return sorted(set(servers) & set(said))


def test_only_what_a_broker_can_go_on_with_reaches_it_suspended_and_newest_first() -> None:
    rows = [
        line("alice-1-1_stDMATE", host="ts01", created="2026-11-22T20:00:00"),
        line("alice-2-1_stDMATE", host="ts01", status="S", created="2026-11-22T19:00:00"),
        line("alice-3-1_stDMATE", host="ts01", status="T"),
        line("alice-4-1_stDMATE", host="ts01", status="F"),
        line("alice-5-1_stDMATE", host="ts01", pid=""),
        line("alice-6-1_stS1XSHADbobXSHADPP51", host="ts01"),
        line("bob-7-1_stDMATE", host="ts01", user="bob"),
        "DBD::SQLite::db prepare failed: |alice| no such table",
    ]
    newer = line("alice-8-1_stDMATE", host="ts02", status="S", created="2026-11-22T19:30:00")
    found = view({"ts01": standing("ts01", rows), "ts02": standing("ts02", [newer])})
    assert answers.session_rows(found, "alice", as_written) == [newer, rows[1], rows[0]]
    assert answers.session_rows(found, "mallory", as_written) == []
    assert answers.usable_rows(rows) == [rows[0], rows[1], rows[5], rows[6]]


def test_rows_are_as_x2golistsessions_prints_them_to_the_user() -> None:
    padded = line("alice-1-1_stDMATE", host="ts01").replace("c00c1e", "c00c1e   ").replace("10.1.2.3", "my*client")
    found = view({"ts01": standing("ts01", [padded])})
    (row,) = answers.session_rows(found, "alice", as_written)
    assert row == line("alice-1-1_stDMATE", host="ts01").replace("10.1.2.3", "my client")


def test_a_host_name_that_the_broker_would_not_know_again_is_written_as_its_profile_does() -> None:
    rows = [line("alice-1-1_stDMATE", host="ts01.example.org")]
    (row,) = answers.session_rows(view({"front": standing("ts01", rows)}), "alice", as_written)
    assert row == line("alice-1-1_stDMATE", host="front")
    (row,) = answers.session_rows(view({"localhost": standing("ts01", rows)}), "alice", as_written)
    assert row == rows[0]


def test_sessions_of_a_server_that_is_down_are_not_offered() -> None:
    rows = [line("alice-1-1_stDMATE", host="ts01", status="S")]
    found = view({"ts01": standing("ts01", rows, down=True), "ts02": standing("ts02", [])})
    assert answers.session_rows(found, "alice", as_written) == []
    assert (found.is_up("ts01"), found.is_up("ts02")) == (False, True)
    assert answers.owner_of(found, "alice", "alice-1-1_stDMATE") == "ts01"
    assert answers.owner_of(found, "bob", "alice-1-1_stDMATE") is None


@pytest.mark.parametrize(
    "standings",
    [
        {"ts01": standing("ts01", []), "ts02": standing("ts02", None)},
        {"ts01": standing("ts01", None)},
        {"ts01": standing("ts01", [], down=True), "ts02": standing("ts02", None, down=True)},
        {"ts01": standing("ts01", [], username="bob")},
    ],
    ids=["one unknown", "none known", "all down", "polled as another user"],
)
def test_what_is_not_cached_is_not_answered(standings: dict[str, Standing]) -> None:
    servers = {host: PublishedServer(host, host) for host in standings}
    assert cached_view("mate", standings, servers=servers, whole=True, now_ms=NOW_MS, username="alice") is None


def test_counts_are_of_all_users_and_of_logins_on_their_way() -> None:
    rows = [
        line("alice-1-1_stDMATE", host="ts01"),
        line("bob-2-1_stDMATE", host="ts01", user="bob", status="T"),
        line("bob-3-1_stDMATE", host="ts01", user="bob", pid=""),
        line("bob-4-1_stDMATE", host="ts01", user="bob", status="F"),
    ]
    reserved = {"alice": NOW_MS + 1, "carol": NOW_MS + 1, "dave": NOW_MS}
    found = view(
        {
            "ts01": standing("ts01", rows, reserved=reserved),
            "ts02": standing("ts02", []),
            "ts03": standing("ts03", rows[:1]),
        }
    )
    counts = answers.session_counts(found)
    assert counts == {"ts01": 4, "ts03": 1}
    assert answers.percentages(counts) == {"ts01": 80, "ts03": 20}
    assert answers.percentages({}) == {}
    assert found.least_loaded(counts) == "ts02"


def test_the_least_loaded_is_up_not_drained_and_weighted() -> None:
    standings = {name: standing(name, []) for name in ("ts01", "ts02", "ts03")}
    standings["ts01"] = standing("ts01", [], down=True)
    found = view(standings, drained=("ts02",))
    assert found.least_loaded({"ts03": 50}) == "ts03"
    # (1 + 1) / 1 against (3 + 1) / 4.
    assert view(standings, weights={"ts03": 4.0}).least_loaded({"ts02": 1, "ts03": 3}) == "ts03"
    assert view(standings, drained=("ts02", "ts03")).least_loaded({}) is None


def test_load_figures_say_why_there_is_none() -> None:
    found = view(
        {
            "ts01": standing("ts01", []),
            "ts02": standing("ts02", [], down=True),
            "ts03": standing("ts03", [], load=None),
            "ts04": standing("ts04", [], load=b"loadavg 1 2\n"),
            "ts05": standing("ts05", [], load=LOAD.replace(b"23000000", b"0")),
        }
    )
    assert answers.load_figures(found) == {
        "ts01": 939_166,
        "ts02": "HOST-UNREACHABLE",
        "ts03": "LOAD-UNAVAILABLE",
        "ts04": "LOAD-UNAVAILABLE",
        "ts05": 1,
    }


def brokers_choice(hosts: list[str], busy: dict[str, int], factors: dict[str, int | str]) -> str:
    """The rule of X2GoBroker.select_session (x2gobroker 0.0.4.3), for hosts without a domain."""
    loads: dict[str, float] = {host: busy.get(host, 0) for host in hosts}
    weighed: dict[str, float] = {}
    for host in hosts if factors else []:
        factor = factors.get(host)
        if factor is None:
            weighed = {}
            break
        if isinstance(factor, int):
            weighed[host] = 1.0 / (factor / (loads[host] + 1))
    return min((load, host) for host, load in (weighed or loads).items())[1]


@given(st.data())
def test_the_brokers_own_rule_chooses_the_chosen_host(data: st.DataObject) -> None:
    hosts = [f"ts{number:02}" for number in range(1, data.draw(st.integers(1, 6)) + 1)]
    chosen = data.draw(st.sampled_from(hosts))
    counts = {host: data.draw(st.integers(1, 300)) for host in hosts if data.draw(st.booleans())}
    factor = st.one_of(st.integers(1, 10**9), st.just("LOAD-UNAVAILABLE"))
    factors: dict[str, int | str] = {host: data.draw(factor) for host in hosts} if data.draw(st.booleans()) else {}
    if factors:
        factors[chosen] = data.draw(st.integers(1, 10**9))
    numbers = answers.counts_for_choice(counts, hosts, chosen, factors)
    assert brokers_choice(hosts, numbers, factors) == chosen
    shares = {host: max(1, share) for host, share in answers.percentages(numbers).items()}
    assert brokers_choice(hosts, shares, {}) == chosen
    assert all(numbers.get(host, 0) >= count for host, count in counts.items() if host != chosen)
