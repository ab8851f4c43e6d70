"""broker_answers: what the cache knows of a profile -> what x2gobroker's agents would have said; pure functions.

Formats: x2gobroker 0.0.4.3, agent.py and x2gobroker-agent.pl; x2goserver 4.1.0.3, x2golistsessions and x2gogetservers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from x2gofleet.errors import SnapshotCorrupt
from x2gofleet.fleet import PublishedServer
from x2gofleet.load import LoadReport
from x2gofleet.owners import other_names
from x2gofleet.parsing import parse_sessions
from x2gofleet.placement import Standing
from x2gofleet.rows import SessionInfo

UNREACHABLE = "HOST-UNREACHABLE"
UNAVAILABLE = "LOAD-UNAVAILABLE"

Matching = Callable[[list[str], list[str]], Collection[str]]
"""``x2gobroker.utils.matching_hostnames``: which of two lists of host names the broker takes for the same."""


@dataclass(frozen=True, slots=True)
class BrokerView:
    """What is known of the servers that the hosts of a broker's profile are, by the broker's names of them.

    ``whole``: whether these are all servers of the fleet's profile. ``now_ms``: when this was read, by Redis's clock.
    """

    fleet_profile: str
    standings: Mapping[str, Standing]
    servers: Mapping[str, PublishedServer]
    whole: bool
    now_ms: int
    _rows: dict[str, list[SessionInfo]] = field(default_factory=dict, repr=False, compare=False)

    def host_of(self, server: str) -> str | None:
        """Return the broker's name of a server of the fleet."""
        return next((host for host, found in self.servers.items() if found.id == server), None)

    def is_up(self, host: str) -> bool:
        """Whether the newest poll of a host succeeded."""
        return not self.standings[host].down

    def is_drained(self, host: str) -> bool:
        """Whether a host shall take no new session."""
        return self.servers[host].drain

    def unfinished(self, host: str) -> list[SessionInfo]:
        """Return the sessions of all users on a host that are not finished."""
        if host not in self._rows:
            snapshot = self.standings[host].sessions
            rows = parse_sessions(snapshot.stdout)[0] if snapshot is not None else ()
            self._rows[host] = [row for row in rows if row.status != "F"]
        return self._rows[host]

    def least_loaded(self, counts: Mapping[str, int]) -> str | None:
        """Return the host that is up and takes logins and has the fewest for its weight, None where there is none."""
        ready = [host for host in self.servers if self.is_up(host) and not self.is_drained(host)]
        return min(ready, key=lambda host: (counts.get(host, 0) + 1) / self.servers[host].weight, default=None)


def cached_view(
    fleet_profile: str,
    standings: Mapping[str, Standing],
    *,
    servers: Mapping[str, PublishedServer],
    whole: bool,
    now_ms: int,
    username: str | None,
) -> BrokerView | None:
    """Return the view, None where the cache can't answer for the profile (``FleetCache``: not cached).

    A server that nobody has told of lately may have any session; and where every server is down the fault may be the
    workers', so that the broker had better ask by itself.
    """
    known = list(standings.values())
    if any(each.sessions is None and not each.down for each in known) or all(each.down for each in known):
        return None
    if any(each.target.username not in (None, username) for each in known):
        return None
    return BrokerView(fleet_profile, standings, servers, whole, now_ms)


def usable_rows(lines: Iterable[str]) -> list[str]:
    """Return the lines that a broker can go on with: sessions that run or are suspended.

    What is no row would raise IndexError in the broker; it would resume a session that is to be terminated (T), and one
    that is just being started and has no ports yet.
    """
    return [line for line in lines if _usable(line) is not None]


def names_in(lines: Iterable[str]) -> list[str]:
    """Return the users of usable rows, as X2Go names them."""
    return list(dict.fromkeys(row.username for row in map(_usable, lines) if row is not None))


def _usable(line: str) -> SessionInfo | None:
    rows, _ = parse_sessions(line.encode("utf-8", "surrogateescape"))
    for row in rows:
        if row.status in ("R", "S") and not row.is_starting():
            return row
    return None


def session_rows(view: BrokerView, username: str, matching: Matching) -> list[str]:
    """Return a user's sessions on every server that is up, as x2golistsessions prints them for that user.

    The listing of root differs in what x2golistsessions leaves out (shadow sessions) and mends (spaces, ``*``).
    Suspended sessions come before running ones, the newest first: a broker takes the first. A host name that the broker
    would not know again, or would take for another host, is written as its profile does.
    """
    mark = f"|{username}|".encode("utf-8", "surrogateescape")
    found: list[tuple[SessionInfo, str, str]] = []
    for host, standing in view.standings.items():
        if standing.down or standing.sessions is None:
            continue
        for raw in standing.sessions.stdout.split(b"\n"):
            if mark in raw or standing.target.username == username:
                text = raw.decode("utf-8", "surrogateescape")
                row = _usable(text)
                if row is not None and "XSHAD" not in row.name and standing.owner_of(row) == username:
                    found.append((row, host, text.replace(" ", "").replace("*", " ")))
    found.sort(key=lambda each: (each[0].status == "S", each[0].date_created), reverse=True)
    said, hosts = [row.hostname for row, _, _ in found], list(view.standings)
    known = matching(hosts, said) if said else ()
    if all(row.hostname in known and _leads_to(row.hostname, hosts) == host for row, host, _ in found):
        return [line for _, _, line in found]
    return [_with_host(line, host) for _, host, line in found]


def _leads_to(name: str, hosts: Sequence[str]) -> str | None:
    """Return the host to which the broker sends whose session names ``name``: of ts10.a and ts1.a the first for ts1."""
    return name if name in hosts else next((host for host in hosts if host.startswith(name)), None)


def _with_host(line: str, host: str) -> str:
    fields = line.split("|")
    # The broker itself takes its own host name for this one.
    if host != "localhost":
        fields[3] = host
    return "|".join(fields)


def owner_of(view: BrokerView, username: str, session_name: str) -> str | None:
    """Return the host that has a user's session, None where none has."""
    for host, standing in view.standings.items():
        rows = view.unfinished(host)
        if any(row.name == session_name and standing.owner_of(row) == username for row in rows):
            return host
    return None


def users_of_view(view: BrokerView) -> set[str]:
    """Return who has an unfinished session on any host, as X2Go names them."""
    return {standing.owner_of(row) for host, standing in view.standings.items() for row in view.unfinished(host)}


def other_accounts(view: BrokerView, username: str) -> dict[str, str]:
    """Return the hosts that are up and have sessions of users who may be the same account, by the name of that user."""
    found: dict[str, str] = {}
    for host, standing in view.standings.items():
        if standing.sessions is not None and not standing.down and standing.target.username is None:
            found.update((name, host) for name in sorted(other_names(standing.sessions.stdout, username)))
    return found


def session_counts(view: BrokerView) -> dict[str, int]:
    """Return the sessions of all users and the logins on their way, by host; hosts that have none are left out.

    As x2gogetservers counts on PostgreSQL: whatever is not finished. (On SQLite it prints no counts.)
    """
    counts = {}
    for host, standing in view.standings.items():
        users = {standing.owner_of(row) for row in view.unfinished(host)}
        coming = sum(until > view.now_ms and name not in users for name, until in standing.reserved.items())
        counts[host] = len(view.unfinished(host)) + coming
    return {host: count for host, count in counts.items() if count}


def percentages(counts: Mapping[str, int]) -> dict[str, int]:
    """Return each host's share of all sessions in percent, cut to whole numbers as the agent prints them."""
    total = sum(counts.values())
    return {host: int(count / total * 100) for host, count in counts.items()}


def counts_for_choice(
    counts: Mapping[str, int], hosts: Iterable[str], chosen: str, load_factors: Mapping[str, int | str]
) -> dict[str, int]:
    """Return numbers of sessions from which the broker's own rule chooses ``chosen`` among ``hosts``.

    The rule: the least of (sessions + 1) / load factor, or of sessions where a load factor is missing, or of their
    percentages. The chosen host is shown without a session, each other with its own or with as many more as it takes.
    """
    best = load_factors.get(chosen)
    numbers = {}
    for host in hosts:
        factor = load_factors.get(host)
        least = factor // best if isinstance(factor, int) and isinstance(best, int) and best > 0 else 0
        numbers[host] = max(1, counts.get(host, 0), least)
    numbers.pop(chosen, None)
    return numbers


def load_figures(view: BrokerView) -> dict[str, int | str]:
    """Return the load factor of each host, or why there is none."""
    return {host: load_figure(standing) for host, standing in view.standings.items()}


def load_figure(standing: Standing) -> int | str:
    """Return a server's load factor, ``HOST-UNREACHABLE`` where it is down, ``LOAD-UNAVAILABLE`` where not cached."""
    if standing.down:
        return UNREACHABLE
    if standing.load is None:
        return UNAVAILABLE
    try:
        report: LoadReport = standing.load.load()
    except SnapshotCorrupt:
        return UNAVAILABLE
    return report.load_factor
