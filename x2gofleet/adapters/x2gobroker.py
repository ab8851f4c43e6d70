"""x2gobroker: Debian's X2Go Session Broker answers from the fleet, its files unmodified.

``python3 -m x2gofleet.adapters.x2gobroker -- /usr/bin/x2gobroker-daemon ARGS...`` puts the functions below in place of
those of the modules ``x2gobroker.agent`` and ``x2gobroker.loadchecker``, then runs the program. x2gobroker calls them
as module attributes and so never knows. For x2gobroker 0.0.4.3; docs/x2gobroker.md says what is answered from where.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from x2gofleet.adapters import broker_answers as answers
from x2gofleet.adapters.broker_accounts import Accounts
from x2gofleet.adapters.broker_answers import BrokerView
from x2gofleet.adapters.broker_config import forgetting, remembering_defaults, remembering_section
from x2gofleet.adapters.broker_fleet import BrokerFleet
from x2gofleet.adapters.broker_guard import AS_IT_IS, Guard, OnFailure, RequestFailed, give
from x2gofleet.adapters.broker_hosts import BrokerProfile
from x2gofleet.adapters.broker_settings import BrokerSettings, SettingsError
from x2gofleet.adapters.live_agent import AgentError, LiveAgents, closed_with_its_call
from x2gofleet.programs import Parser, prepare_output
from x2gofleet.text import clean, say
from x2gofleet.usernames import for_nested_shell

T = TypeVar("T")

CARRIED = "x2gofleet_profile"
NO_SERVER = "no-X2Go-Server-available"
NO_KEY = (
    "x2gobroker has no SSH key for its agents: it asks after no sessions, and sends each login to a server at random. "
    "Run x2gobroker-keygen"
)


class _Step:
    """One thing that the broker does for a user and a profile: the fleet is asked once, at the first question."""

    def __init__(self, fleet: BrokerFleet, broker: Any, profile_id: str, username: str | None) -> None:
        self.fleet, self.broker, self.profile_id, self.username = fleet, broker, profile_id, username
        self.placed: str | None = None
        self.selecting = False
        self.account = username
        self.known: BrokerView | None = None
        self._asked = False

    @functools.cached_property
    def profile(self) -> BrokerProfile:
        return BrokerProfile.from_broker(
            self.broker.get_name(), self.profile_id, self.broker.get_profile(self.profile_id)
        )

    def view(self) -> BrokerView | None:
        if not self._asked:
            self.known = self.fleet.view(self.profile_id, lambda: self.profile, self.username)
            self._asked = True
        return self.known


class _Selectable(list[str]):
    """Rows of sessions from which the broker can remove one, though it has written the take-over into it."""

    def remove(self, row: str, /) -> None:
        taken_over = (each for each in self if each.replace("|R|", "|S|") == row)
        super().remove(row if row in self else next(taken_over, row))


class Activation:
    """The adapter in place in this process. ``deactivate`` puts x2gobroker's own functions back."""

    def __init__(self, settings: BrokerSettings, logger: logging.Logger) -> None:
        # What Debian's own Python alone can import.
        import x2gobroker.agent
        import x2gobroker.utils

        self.settings, self.logger = settings, logger
        self.fleet = BrokerFleet(settings, logger)
        self.accounts = Accounts()
        self.live_agents = LiveAgents(settings.live_seconds, settings.request_seconds)
        self.guard = Guard(logger)
        self._agent, self._utils = x2gobroker.agent, x2gobroker.utils
        self._step: ContextVar[_Step | None] = ContextVar("x2gofleet_broker_step", default=None)
        self._originals: list[tuple[Any, str, Any]] = []
        for owner, name, made, failure in self._replacements():
            original = getattr(owner, name)
            self._originals.append((owner, name, original))
            setattr(owner, name, functools.wraps(original)(self.guard.wrap(name, made(original), failure)))

    def _replacements(self) -> list[tuple[Any, str, Callable[[Any], Any], OnFailure]]:
        """Return what is replaced: its owner and name, what makes the replacement, and what a failed call gives."""
        import x2gobroker.brokers.base_broker
        import x2gobroker.brokers.inifile_broker
        import x2gobroker.config
        import x2gobroker.loadchecker
        from x2gobroker.x2gobroker_exceptions import X2GoBrokerAgentException

        agent, broker = self._agent, x2gobroker.brokers.base_broker.X2GoBroker
        config = x2gobroker.config.X2GoBrokerConfigFile
        # The broker catches this exception wherever it calls these four functions, and none where it calls the others.
        raised = OnFailure(error=X2GoBrokerAgentException)
        not_done = give(lambda: (False, []))
        # Of its own methods, Tornado replies to a client for an Exception, not for another one.
        errors = (Exception,)
        return [
            (agent, "ping", self._ping, raised),
            (agent, "list_sessions", self._list_sessions, raised),
            (agent, "get_servers", self._get_servers, raised),
            (agent, "find_busy_servers", self._find_busy_servers, raised),
            (agent, "check_load", self._check_load, give(lambda: answers.UNREACHABLE)),
            (agent, "suspend_session", self._change_session, not_done),
            (agent, "terminate_session", self._change_session, not_done),
            (agent, "add_authorized_key", self._add_authorized_key, not_done),
            (agent, "delete_authorized_key", self._delete_authorized_key, not_done),
            (x2gobroker.loadchecker, "check_load", self._checked_load, OnFailure(_no_load)),
            (self._utils, "portscan", self._portscan, give(lambda: False)),
            (broker, "list_profiles", self._list_profiles, OnFailure(error=RequestFailed, passes=errors)),
            (broker, "get_profile_for_user", self._get_profile_for_user, give(lambda: None, passes=errors)),
            (broker, "get_remote_agent", self._get_remote_agent, give(dict, passes=errors)),
            (broker, "get_all_remote_agents", self._get_all_remote_agents, give(list, passes=errors)),
            (broker, "select_session", self._select_session, give(_no_server, passes=errors)),
            (broker, "get_acl_defaults", remembering_defaults, AS_IT_IS),
            (x2gobroker.brokers.inifile_broker.X2GoBroker, "get_profile", remembering_section, AS_IT_IS),
            (config, "get_section", remembering_section, AS_IT_IS),
            (config, "get_defaults", remembering_defaults, AS_IT_IS),
            (config, "update_value", forgetting, AS_IT_IS),
            (config, "load", forgetting, AS_IT_IS),
            (agent.paramiko.SSHClient, "connect", closed_with_its_call, AS_IT_IS),
        ]

    def deactivate(self) -> None:
        """Put back what was there before."""
        for owner, name, original in self._originals:
            setattr(owner, name, original)
        self._originals.clear()

    @contextmanager
    def _stepping(self, broker: Any, profile_id: str, username: str | None) -> Iterator[_Step]:
        outer = self._step.get()
        if outer is not None and outer.broker is broker and outer.profile_id == profile_id:
            yield outer
            return
        step = _Step(self.fleet, broker, profile_id, username)
        token = self._step.set(step)
        try:
            with self.live_agents.request():
                yield step
        finally:
            self._step.reset(token)

    def _view(self, remote_agent: object, username: str | None) -> BrokerView | None:
        """Return what the fleet knows of the profile that an agent is asked about; None: the agent must be asked."""
        step = self._step.get()
        if step is not None and username in (None, step.username):
            return step.view()
        carried = remote_agent.get(CARRIED) if isinstance(remote_agent, Mapping) else None
        return self.fleet.view(carried.id, lambda: carried, username) if isinstance(carried, BrokerProfile) else None

    def _live(self, remote_agent: object, call: Callable[[], T], *, unasked: T | None = None) -> T:
        """Ask a live agent within the time limits; ``unasked`` is the answer where settings say not to.

        Raises AgentError.
        """
        if self.settings.fallback == "none" and unasked is not None:
            return unasked
        name = "the local agent"
        if isinstance(remote_agent, Mapping):
            host = remote_agent.get("hostname") or remote_agent.get("hostaddr")
            name = f"the agent of {host}, port {remote_agent.get('port', 22)},"
        return self.live_agents.call(name, call)

    def _ping(self, original: Callable[..., bool]) -> Callable[..., bool]:
        def ping(remote_agent: Any = None, *args: Any, **kwargs: Any) -> bool:
            view = self._view(remote_agent, None)
            if view is not None and isinstance(remote_agent, Mapping) and remote_agent.get("hostname") in view.servers:
                return view.is_up(remote_agent["hostname"])
            return self._live(remote_agent, lambda: original(remote_agent, *args, **kwargs), unasked=False)

        return ping

    def _list_sessions(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def list_sessions(username: str, remote_agent: Any = None, *args: Any, **kwargs: Any) -> tuple[bool, list[str]]:
            view = self._view(remote_agent, username)
            name, asked = None, remote_agent
            if view is not None:
                account = self.accounts.of(view, username)
                name = account.name or (username if self.settings.unknown_names == "cached" else None)
                if account.hosts:
                    name, asked = None, self._agent_of(account.hosts[0], remote_agent)
            if view is None or name is None:
                nothing: tuple[bool, list[str]] = (False, [])
                login = _for_shell(username, asked)
                success, rows = self._live(asked, lambda: original(login, asked, *args, **kwargs), unasked=nothing)
                rows = answers.usable_rows(rows)
                name = self._learned(view, username, rows)
                if view is None or name is None:
                    return success, self._selectable(rows)
            return True, self._selectable(answers.session_rows(view, name, self._utils.matching_hostnames))

        return list_sessions

    def _learned(self, view: BrokerView | None, username: str, rows: Sequence[str]) -> str | None:
        """Return the name by which the cache has the sessions that a live agent listed, None where it has none."""
        names = answers.names_in(rows)
        self.accounts.learn(username, names)
        users = answers.users_of_view(view) if view is not None else ()
        return next((name for name in names if name in users), None)

    def _selectable(self, rows: list[str]) -> list[str]:
        step = self._step.get()
        # Where it only looks for sessions the broker takes nothing but a list itself.
        return _Selectable(rows) if step is not None and step.selecting else rows

    def _counts(self, view: BrokerView, username: str, remote_agent: object) -> tuple[dict[str, int], bool]:
        """Return numbers of sessions by host, and whether they lead the broker to a host that was chosen for it."""
        counts = answers.session_counts(view)
        step = self._step.get()
        if step is None or not step.selecting:
            return counts, False
        if step.placed is None:
            step.account = self.accounts.of(view, username).name or username
            step.placed = self.fleet.place(view, step.account)
        if step.placed is None:
            return counts, False
        factors = remote_agent.get("load_factors") if isinstance(remote_agent, Mapping) else None
        return answers.counts_for_choice(counts, view.servers, step.placed, factors or {}), True

    def _get_servers(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_servers(
            username: str, remote_agent: Any = None, *args: Any, **kwargs: Any
        ) -> tuple[bool, dict[str, int]]:
            view = self._view(remote_agent, username)
            if view is not None:
                return True, self._counts(view, username, remote_agent)[0]
            login = _for_shell(username, remote_agent)
            return self._live(remote_agent, lambda: original(login, remote_agent, *args, **kwargs), unasked=(False, {}))

        return get_servers

    def _find_busy_servers(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def find_busy_servers(
            username: str, remote_agent: Any = None, *args: Any, **kwargs: Any
        ) -> tuple[bool, dict[str, int]]:
            view = self._view(remote_agent, username)
            if view is not None:
                counts, chosen = self._counts(view, username, remote_agent)
                usage = answers.percentages(counts)
                if chosen:
                    usage = {host: max(1, percent) for host, percent in usage.items()}
                return bool(usage), usage
            login = _for_shell(username, remote_agent)
            return self._live(remote_agent, lambda: original(login, remote_agent, *args, **kwargs), unasked=(False, {}))

        return find_busy_servers

    def _check_load(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def check_load(remote_agent: Any = None, *args: Any, **kwargs: Any) -> int | str | None:
            view = self._view(remote_agent, None)
            if view is not None and isinstance(remote_agent, Mapping) and remote_agent.get("hostname") in view.servers:
                figure = answers.load_figure(view.standings[remote_agent["hostname"]])
                if figure != answers.UNAVAILABLE:
                    return figure
            found: int | str | None = self._live(
                remote_agent, lambda: original(remote_agent, *args, **kwargs), unasked=answers.UNAVAILABLE
            )
            # The broker divides by it.
            return max(1, found) if isinstance(found, int) else found

        return check_load

    def _change_session(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def change_session(
            username: str, session_name: str, remote_agent: Any = None, *args: Any, **kwargs: Any
        ) -> tuple[bool, list[str]]:
            view = self._view(remote_agent, username)
            target = remote_agent
            if view is not None:
                account = self.accounts.of(view, username).name or username
                target = self._own_agent(view, account, session_name, remote_agent)
            login = _for_shell(username, target)
            try:
                changed: tuple[bool, list[str]] = self._live(
                    target, lambda: original(login, session_name, target, *args, **kwargs)
                )
                return changed
            except AgentError as exc:
                raise AgentError(f"session {session_name} is not changed: {exc}") from exc
            finally:
                if view is not None:
                    self.fleet.refresh(view.fleet_profile)

        return change_session

    def _own_agent(self, view: BrokerView, username: str, session_name: str, remote_agent: Any) -> Any:
        """Return the agent of the server that has a session, on SQLite the only one that can change it."""
        owner = answers.owner_of(view, username, session_name)
        return remote_agent if owner is None else self._agent_of(owner, remote_agent)

    def _agent_of(self, name: str, remote_agent: Any) -> Any:
        """Return the agent of a host of the profile that another agent is of; that one where there is no other."""
        if not isinstance(remote_agent, Mapping):
            return remote_agent
        step = self._step.get()
        profile = step.profile if step is not None else remote_agent.get(CARRIED)
        if not isinstance(profile, BrokerProfile):
            return remote_agent
        host = next(host for host in profile.hosts if host.name == name)
        return {**remote_agent, "hostname": host.name, "hostaddr": host.address, "port": host.port}

    def _add_authorized_key(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def add_authorized_key(*args: Any, **kwargs: Any) -> Any:
            remote_agent = kwargs.get("remote_agent", args[3] if len(args) > 3 else None)
            args, kwargs = _with_login_for_shell(args, kwargs, remote_agent)
            return self._live(remote_agent, lambda: original(*args, **kwargs))

        return add_authorized_key

    def _delete_authorized_key(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def delete_authorized_key(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("delay_deletion", args[4] if len(args) > 4 else 0) > 0:
                # A fork of this process calls this function again when it is time. What that raises, or does not end
                # with, would leave a second broker behind.
                return original(*args, **kwargs)
            remote_agent = kwargs.get("remote_agent", args[3] if len(args) > 3 else None)
            args, kwargs = _with_login_for_shell(args, kwargs, remote_agent)
            return self._live(remote_agent, lambda: original(*args, **kwargs))

        return delete_authorized_key

    def _checked_load(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def check_load(backend: str, profile_id: str, hostname: str | None = None) -> Any:
            step = self._step.get()
            view = step.view() if step is not None and step.profile_id == profile_id else None
            figures = answers.load_figures(view) if view is not None else {}
            if any(isinstance(figure, int) for figure in figures.values()):
                if hostname is not None:
                    return figures.get(hostname, answers.UNAVAILABLE)
                # The broker passes over a host without a figure, though it may be the one that was chosen.
                return {} if answers.UNAVAILABLE in figures.values() else figures
            if self.settings.fallback == "none":
                return _no_load(backend, profile_id, hostname)
            return self.live_agents.call("the load checker", lambda: original(backend, profile_id, hostname))

        return check_load

    def _portscan(self, original: Callable[..., bool]) -> Callable[..., bool]:
        def live(addr: str, port: Any) -> bool:
            return self.live_agents.call(f"port {port} of {addr}", lambda: original(addr, port))

        def portscan(addr: str, port: Any = 22) -> bool:
            step = self._step.get()
            asks = step is not None and (self.settings.trust_polls or step.placed is not None)
            view = step.view() if step is not None and asks else None
            host = step.profile.host_at(addr, port) if step is not None and view is not None else None
            if step is None or view is None or host is None:
                return live(addr, port)
            if step.placed is not None and view.is_drained(host.name):
                # Not for a new session: the broker goes on to the next.
                return False
            return view.is_up(host.name) if self.settings.trust_polls else live(addr, port)

        return portscan

    def _list_profiles(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def list_profiles(broker: Any, *args: Any, **kwargs: Any) -> Any:
            with self.fleet.sharing(), self.live_agents.request():
                return original(broker, *args, **kwargs)

        return list_profiles

    def _get_profile_for_user(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_profile_for_user(broker: Any, profile_id: str, username: str, *args: Any, **kwargs: Any) -> Any:
            with self._stepping(broker, profile_id, username):
                return original(broker, profile_id, username, *args, **kwargs)

        return get_profile_for_user

    def _get_remote_agent(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_remote_agent(broker: Any, profile_id: str, *args: Any, **kwargs: Any) -> Any:
            with self._stepping(broker, profile_id, None) as step:
                remote_agent = original(broker, profile_id, *args, **kwargs)
                if isinstance(remote_agent, dict) and remote_agent and step.view() is not None:
                    remote_agent[CARRIED] = step.profile
                if remote_agent is None and not self._agent.has_remote_broker_agent_setup():
                    mode = broker.get_agent_query_mode(profile_id).upper()
                    if mode == "SSH" and not broker.is_shadow_profile(profile_id):
                        self.fleet.say(NO_KEY)
                return remote_agent

        return get_remote_agent

    def _get_all_remote_agents(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_all_remote_agents(broker: Any, profile_id: str) -> Any:
            with self._stepping(broker, profile_id, None) as step:
                remote_agents = original(broker, profile_id)
                if remote_agents and step.view() is not None:
                    for remote_agent in remote_agents:
                        remote_agent[CARRIED] = step.profile
                return remote_agents

        return get_all_remote_agents

    def _select_session(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def select_session(
            broker: Any, profile_id: str, username: str | None = None, *args: Any, **kwargs: Any
        ) -> dict[str, Any]:
            with self._stepping(broker, profile_id, username) as step:
                step.selecting = True
                selected: dict[str, Any] = original(broker, profile_id, username, *args, **kwargs)
                if not username or not selected:
                    return selected
                ours = self.fleet.guarded(f"profile {profile_id}", lambda: self._selected(step, selected))
                return selected if ours is None else ours

        return select_session

    def _selected(self, step: _Step, selected: dict[str, Any]) -> dict[str, Any]:
        """Reserve the host that the broker chose for a new session, and let it have none that is drained."""
        view, account = step.known, step.account
        if view is None or account is None or "session_info" in selected:
            return selected
        host = step.profile.host_at(selected["server"], selected.get("port"))
        if host is not None and selected["server"] not in (host.address, host.name):
            selected = {**selected, "server": host.address, "port": host.port}
        name = host.name if host is not None else None
        refused = name is not None and view.is_drained(name)
        if step.placed is not None and (refused or name != step.placed):
            self.fleet.release(view, step.placed, account)
        if refused:
            self.logger.error("x2gofleet: profile %s: every server that is up is drained", step.profile_id)
            return {"server": NO_SERVER, "port": selected.get("port", 22)}
        if name is not None and name != step.placed:
            self.fleet.reserve(view, name, account)
        return selected


def _for_shell(username: str, remote_agent: object) -> str:
    """Return a login for an agent: x2gobroker puts it unquoted into the command line of a remote one."""
    return for_nested_shell(username) if isinstance(remote_agent, Mapping) else username


def _with_login_for_shell(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], remote_agent: object
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (_for_shell(args[0], remote_agent), *args[1:]), dict(kwargs)
    return args, {**kwargs, "username": _for_shell(kwargs["username"], remote_agent)}


def _no_load(_backend: str, _profile_id: str, hostname: str | None = None) -> dict[str, Any] | str:
    """Return what the broker gets of a load checker that knows nothing."""
    return {} if hostname is None else answers.UNAVAILABLE


def _no_server() -> dict[str, Any]:
    return {"server": NO_SERVER, "port": 22}


def activate(settings: BrokerSettings | None = None) -> Activation:
    """Have the x2gobroker of this process answer from the fleet; ``settings`` are read from the environment if None.

    Nothing is connected before the first login, so that the process may still fork. Raises SettingsError and ValueError
    for a setting that can't be used, ImportError where x2gobroker is not installed for this Python.
    """
    settings = BrokerSettings.read() if settings is None else settings
    program = os.path.basename(sys.argv[0])
    logger = logging.getLogger("loadchecker" if "loadchecker" in program else "broker")
    return Activation(settings, logger)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="x2gofleet-x2gobroker",
        description="Runs a program of x2gobroker whose questions are answered from the fleet's cache.",
        epilog="Settings: docs/x2gobroker.md. Example: x2gofleet-x2gobroker -- /usr/bin/x2gobroker-daemon -M HTTP",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings; those in the environment win")
    parser.add_argument("program", metavar="-- PROGRAM", help="x2gobroker-daemon, x2gobroker-loadchecker or x2gobroker")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the program's own arguments")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Activate the adapter, then run the program as its own interpreter would. Exit status 2 for a wrong setting."""
    prepare_output()
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    if not os.path.isfile(arguments.program):
        say(f"x2gofleet-x2gobroker: {arguments.program}: no such program; give its full path", file=sys.stderr)
        return 2
    # x2gobroker chooses its logs and settings by the program's name, when it is imported.
    sys.argv = [arguments.program, *arguments.arguments]
    try:
        activation = activate(BrokerSettings.read(arguments.config))
    except (SettingsError, ValueError) as exc:
        say(f"x2gofleet-x2gobroker: {exc}", file=sys.stderr)
        return 2
    except ImportError as exc:
        say(
            f"x2gofleet-x2gobroker: {exc}; this needs the Python that x2gobroker is installed for, on Debian "
            "/usr/bin/python3, or a venv of it made with --system-site-packages",
            file=sys.stderr,
        )
        return 2
    text = f"x2gofleet answers for {os.path.basename(arguments.program)}: {activation.settings}"
    say(text, file=sys.stderr)
    activation.logger.info("%s", clean(text))
    runpy.run_path(arguments.program, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
