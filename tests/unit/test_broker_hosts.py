from __future__ import annotations

from dataclasses import replace

import pytest

from x2gofleet.adapters.broker_hosts import BrokerHost, BrokerProfile, Mapped, Unmapped, map_profile
from x2gofleet.fleet import PublishedFleet, PublishedServer, PublishedTarget
from x2gofleet.kinds import Kind


def fleet(profiles: dict[str, list[str]], hostnames: dict[str, str] | None = None) -> PublishedFleet:
    ids = list(dict.fromkeys(server for servers in profiles.values() for server in servers))
    return PublishedFleet(
        {name: PublishedServer(name, (hostnames or {}).get(name, name)) for name in ids},
        {name: PublishedTarget(name, name, "server", None, frozenset({Kind.SESSIONS})) for name in ids},
        {name: tuple(servers) for name, servers in profiles.items()},
        "1",
    )


def profile(name: str, *hosts: str | tuple[str, str, int]) -> BrokerProfile:
    entries = [BrokerHost(host, host, 22) if isinstance(host, str) else BrokerHost(*host) for host in hosts]
    return BrokerProfile("inifile", name, tuple(entries))


def test_a_profile_is_read_as_x2gobroker_gives_it() -> None:
    read = BrokerProfile.from_broker(
        "inifile",
        "mate",
        {"host": ["a", "b", "c"], "sshport": "2222", "host=a": "10.0.0.1", "sshport=a": 2200, "host=b": "fd00::2"},
    )
    assert read.hosts == (
        BrokerHost("a", "10.0.0.1", 2200),
        BrokerHost("b", "fd00::2", 2222),
        BrokerHost("c", "c", 2222),
    )
    one = BrokerProfile.from_broker("zeroconf", "x", {"host": "localhost"})
    assert one.hosts == (BrokerHost("localhost", "localhost", 22),)


def test_a_selected_server_is_found_by_address_and_port() -> None:
    docker = profile("mate", ("vm1", "docker", 22001), ("vm2", "docker", 22002), ("ts03", "ts03", 22))
    assert docker.host_at("docker", 22002) == docker.hosts[1]
    assert docker.host_at("docker", "22001") == docker.hosts[0]
    assert docker.host_at("ts03", 22) == docker.hosts[2]
    assert docker.host_at("no-X2Go-Server-available", 22) is None


def test_another_profile_never_answers_for_one_that_is_left_out() -> None:
    # A name is that of a server of the fleet, the address that of another: "a" of profile q is not the one of p.
    known = fleet({"p": ["a"]})
    asked = profile("q", ("a", "10.0.0.2", 22))
    assert map_profile(asked, known) == Mapped("p", {"a": "a"})
    found = map_profile(asked, replace(known, left_out=frozenset({"q"})))
    assert isinstance(found, Unmapped)
    assert "x2gofleet-worker check" in found.reason


@pytest.mark.parametrize(
    ("hosts", "hostnames", "expected"),
    [
        (("ts01", "ts02"), {}, {"ts01": "ts01", "ts02": "ts02"}),
        (("TS01", "ts02"), {}, {"TS01": "ts01", "ts02": "ts02"}),
        (("ts01.example.org", "ts02.example.org"), {}, {"ts01.example.org": "ts01", "ts02.example.org": "ts02"}),
        (
            ("one", "two"),
            {"ts01": "one.example.org", "ts02": "two.example.org"},
            {"one": "ts01", "two": "ts02"},
        ),
        ((("front1", "ts01", 22), ("front2", "ts02", 22)), {}, {"front1": "ts01", "front2": "ts02"}),
        (("ts01.a.org", "ts02.a.org"), {"ts01": "ts01.a.org", "ts02": "ts02.b.org"}, None),
        (("10.0.0.1", "10.0.0.2"), {"ts01": "10.1.1.1"}, None),
        (("10.0.0.1", "ts02"), {"ts01": "10.0.0.1"}, {"10.0.0.1": "ts01", "ts02": "ts02"}),
        (("ts01", "ts09"), {}, None),
        (("ts01", "ts01.example.org"), {}, None),
    ],
)
def test_hosts_are_found_by_name_with_or_without_the_domain(
    hosts: tuple[str, ...], hostnames: dict[str, str], expected: dict[str, str] | None
) -> None:
    found = map_profile(profile("mate", *hosts), fleet({"mate": ["ts01", "ts02"]}, hostnames))
    if expected is None:
        assert isinstance(found, Unmapped)
    else:
        assert found == Mapped("mate", expected)


def test_a_profile_of_another_name_is_answered_by_the_smallest_that_has_its_hosts() -> None:
    inventory = fleet({"all": ["ts01", "ts02", "ts03"], "two": ["ts01", "ts02"], "mate": ["ts03"]})
    assert map_profile(profile("desktop", "ts01", "ts02"), inventory) == Mapped("two", {"ts01": "ts01", "ts02": "ts02"})
    assert map_profile(profile("mate", "ts02", "ts03"), inventory) == Mapped("all", {"ts02": "ts02", "ts03": "ts03"})
    # One server by one name: an alias, or an address.
    assert map_profile(profile("mate", "desktop.example.org"), inventory) == Mapped(
        "mate", {"desktop.example.org": "ts03"}
    )
    # But not another server's.
    assert map_profile(profile("mate", "ts02.example.org"), inventory) == Mapped("two", {"ts02.example.org": "ts02"})
    assert map_profile(profile("other", "desktop.example.org"), inventory) == Unmapped(
        "the fleet has no profile 'other', nor one with all of desktop.example.org: add it to the inventory"
    )


def test_a_profile_of_another_name_is_answered_by_one_for_all_users_where_there_is_one() -> None:
    pool = fleet({"pool": ["ts01", "ts02"]})
    own = PublishedTarget("alice@ts01", "ts01", "user", "alice", frozenset({Kind.SESSIONS}))
    both = PublishedFleet(pool.servers, {**pool.targets, own.id: own}, {**pool.profiles, "alice": (own.id,)}, "1")
    assert map_profile(profile("desktop", "ts01"), both) == Mapped("pool", {"ts01": "ts01"})
    alone = PublishedFleet(both.servers, both.targets, {"alice": (own.id,)}, "1")
    assert map_profile(profile("desktop", "ts01"), alone) == Mapped("alice", {"ts01": "ts01"})


def test_an_imported_server_that_has_only_an_address_is_found() -> None:
    inventory = fleet({"mate": ["10.0.0.1", "2001-db8--1"]})
    assert map_profile(profile("mate", "10.0.0.1", "2001:db8::1"), inventory) == Mapped(
        "mate", {"10.0.0.1": "10.0.0.1", "2001:db8::1": "2001-db8--1"}
    )


def test_what_lacks_a_host_says_which() -> None:
    found = map_profile(profile("mate", "ts01", "ts04"), fleet({"mate": ["ts01", "ts02"]}))
    assert isinstance(found, Unmapped)
    assert "no server for ts04" in found.reason
    assert map_profile(profile("mate"), fleet({"mate": ["ts01"]})) == Unmapped("it has no host")
