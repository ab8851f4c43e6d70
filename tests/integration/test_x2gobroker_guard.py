"""Every function that the adapter replaces in Debian's x2gobroker, with everything that can fail in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system_python import SystemPython, require

# x2gobroker's own functions are stubs that raise what they are told to, or hang, or answer; then the adapter is set up.
SET_UP = """
import os
os.environ.update(X2GOBROKER_DEBUG="1", X2GOBROKER_TESTSUITE="1", X2GOBROKER_CONFIG={config!r})
os.environ["X2GOBROKER_SESSIONPROFILES"] = {profiles!r}
import asyncio, signal, socket, threading
import paramiko
import x2gobroker.agent, x2gobroker.config, x2gobroker.loadchecker, x2gobroker.utils
import x2gobroker.brokers.base_broker, x2gobroker.brokers.inifile_broker
from x2gobroker import x2gobroker_exceptions
from x2gofleet import errors
from x2gofleet.adapters import live_agent, x2gobroker as adapter
from x2gofleet.adapters.broker_hosts import BrokerHost, BrokerProfile
from x2gofleet.adapters.broker_settings import BrokerSettings

class Foreign(BaseException):
    "Of another plug-in."

def family(module):
    found = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, BaseException)]
    return [each for each in found if each.__module__ == module.__name__]

def instance(kind):
    refused = {{("ts01", 22): OSError("refused")}}
    for arguments in [("why",), ("why", 2), ("why", 2, "what"), (refused,), ("u", b"x", 0, 1, "why")]:
        try:
            return kind(*arguments)
        except Exception:
            continue
    return kind.__new__(kind)

FAULTS = {{
    kind.__name__: instance(kind)
    for kind in [
        *family(x2gobroker_exceptions), *family(paramiko.ssh_exception), *family(errors), *family(live_agent),
        Exception, ValueError, KeyError, IndexError, TypeError, AttributeError, UnicodeDecodeError, ZeroDivisionError,
        RuntimeError, RecursionError, MemoryError, AssertionError, EOFError, StopIteration, StopAsyncIteration, OSError,
        ConnectionRefusedError, TimeoutError, socket.gaierror, asyncio.CancelledError, GeneratorExit, SystemExit,
        KeyboardInterrupt, Foreign,
    ]
}}
agent, loadchecker, utils = x2gobroker.agent, x2gobroker.loadchecker, x2gobroker.utils
Base, IniFile = x2gobroker.brokers.base_broker.X2GoBroker, x2gobroker.brokers.inifile_broker.X2GoBroker
Config = x2gobroker.config.X2GoBrokerConfigFile
broker = IniFile()
profile = BrokerProfile("inifile", "mate", (BrokerHost("ts01", "10.0.0.1", 22),))
remote = {{"hostname": "ts01", "hostaddr": "10.0.0.1", "port": 22, adapter.CARRIED: profile}}
FUNCTIONS = {{
    "agent.ping": (agent, "ping", (remote,)),
    "agent.list_sessions": (agent, "list_sessions", ("alice", remote)),
    "agent.get_servers": (agent, "get_servers", ("alice", remote)),
    "agent.find_busy_servers": (agent, "find_busy_servers", ("alice", remote)),
    "agent.check_load": (agent, "check_load", (remote,)),
    "agent.suspend_session": (agent, "suspend_session", ("alice", "alice-50", remote)),
    "agent.terminate_session": (agent, "terminate_session", ("alice", "alice-50", remote)),
    "agent.add_authorized_key": (agent, "add_authorized_key", ("alice", "ssh-rsa", "%h/keys", remote)),
    "agent.delete_authorized_key": (agent, "delete_authorized_key", ("alice", "ssh-rsa", "%h/keys", remote)),
    "loadchecker.check_load": (loadchecker, "check_load", ("inifile", "mate")),
    "loadchecker.check_load of a host": (loadchecker, "check_load", ("inifile", "mate", "ts01")),
    "utils.portscan": (utils, "portscan", ("ts01", 22)),
    "list_profiles": (Base, "list_profiles", (broker, "alice")),
    "get_profile_for_user": (Base, "get_profile_for_user", (broker, "mate", "alice")),
    "get_remote_agent": (Base, "get_remote_agent", (broker, "mate")),
    "get_all_remote_agents": (Base, "get_all_remote_agents", (broker, "mate")),
    "select_session": (Base, "select_session", (broker, "mate", "alice")),
    "get_acl_defaults": (Base, "get_acl_defaults", (broker,)),
    "get_profile": (IniFile, "get_profile", (broker, "mate")),
    "config.get_section": (Config, "get_section", (broker.config, "global")),
    "config.get_defaults": (Config, "get_defaults", (broker.config,)),
    "config.update_value": (Config, "update_value", (broker.config, "global", "name", "value")),
    "config.load": (Config, "load", (broker.config,)),
    "paramiko.SSHClient.connect": (paramiko.SSHClient, "connect", (paramiko.SSHClient(), "ts01")),
}}
ANSWERS = {{
    "ping": True, "list_sessions": (True, []), "get_servers": (True, {{"ts01": 1}}),
    "find_busy_servers": (True, {{"ts01": 100}}), "check_load": 7, "suspend_session": (True, []),
    "terminate_session": (True, []), "add_authorized_key": (True, []),
    "delete_authorized_key": (True, []), "portscan": True,
}}
now, forever, begun = {{"does": "answer"}}, threading.Event(), threading.Event()

def stub(name):
    def function(*arguments, **more):
        if now["does"] == "raise":
            raise now["fault"]
        if now["does"] == "hang":
            begun.set()
            forever.wait()
        return ANSWERS[name]
    return function

for owner, name, _ in FUNCTIONS.values():
    setattr(owner, name, stub(name))
activation = adapter.activate(BrokerSettings(**{settings!r}))

def outcome(name):
    owner, attribute, arguments = FUNCTIONS[name]
    broker.__dict__.pop("_x2gofleet_remembered", None)
    broker.config.__dict__.pop("_x2gofleet_remembered", None)
    activation.fleet._said.clear()
    # A step of which the profile is known, as within a request.
    step = adapter._Step(activation.fleet, broker, "mate", "alice")
    step.__dict__["profile"] = profile
    token = activation._step.set(step)
    try:
        value = getattr(owner, attribute)(*arguments)
        return "gives " + repr(value)
    except BaseException as exc:
        return "raises " + type(exc).__name__
    finally:
        activation._step.reset(token)

class Broken:
    "What the fleet knows, of which nothing can be read."
    def __getattr__(self, name):
        raise now["fault"]
    def __getitem__(self, name):
        raise now["fault"]

def raising(*arguments):
    raise now["fault"]

def table(names):
    found = {{}}
    for name in names:
        for fault, now["fault"] in FAULTS.items():
            found.setdefault(name, {{}}).setdefault(outcome(name), []).append(fault)
    return found
"""

CONFIG = "[global]\ndefault-agent-query-mode = SSH\n[broker_inifile]\nenable = true\n"
PROFILES = "[mate]\nname = mate\nhost = ts01 (10.0.0.1:22)\n"

LIVE = {
    "agent.ping": "raises X2GoBrokerAgentException",
    "agent.list_sessions": "raises X2GoBrokerAgentException",
    "agent.get_servers": "raises X2GoBrokerAgentException",
    "agent.find_busy_servers": "raises X2GoBrokerAgentException",
    "agent.check_load": "gives 'HOST-UNREACHABLE'",
    "agent.suspend_session": "gives (False, [])",
    "agent.terminate_session": "gives (False, [])",
    "agent.add_authorized_key": "gives (False, [])",
    "agent.delete_authorized_key": "gives (False, [])",
    "loadchecker.check_load": "gives {}",
    "loadchecker.check_load of a host": "gives 'LOAD-UNAVAILABLE'",
    "utils.portscan": "gives False",
}
OWN = {
    "list_profiles": "raises RequestFailed",
    "get_profile_for_user": "gives None",
    "get_remote_agent": "gives {}",
    "get_all_remote_agents": "gives []",
    "select_session": "gives {'server': 'no-X2Go-Server-available', 'port': 22}",
}
READ = {
    "get_acl_defaults",
    "get_profile",
    "config.get_section",
    "config.get_defaults",
    "config.update_value",
    "config.load",
    "paramiko.SSHClient.connect",
}
ENDS = {"KeyboardInterrupt", "SystemExit", "GeneratorExit", "CancelledError"}
BROKER = {"X2GoBrokerBaseException", "X2GoBrokerAgentException", "X2GoBrokerProfileException"}


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemPython]:
    require("x2gobroker", "x2gobroker-daemon")
    directory = tmp_path_factory.mktemp("broker")
    config, profiles = directory / "x2gobroker.conf", directory / "profiles.conf"
    config.write_text(CONFIG)
    profiles.write_text(PROFILES)
    # Nothing listens on port 1.
    settings = {"redis_url": "redis://127.0.0.1:1/0", "live_seconds": 60.0, "request_seconds": 600.0}
    with SystemPython(directory / "home") as started:
        started.run(SET_UP.format(config=str(config), profiles=str(profiles), settings=settings))
        yield started


Table = dict[str, dict[str, list[str]]]


def expected(side: SystemPython, names: dict[str, str], passed: set[str]) -> Table:
    """Return by function and outcome which faults have it: those in ``passed`` are raised as they are."""
    faults: list[str] = side.value("list(FAULTS)")
    table: Table = {}
    for name, failed in names.items():
        for fault in faults:
            outcome = f"raises {fault}" if fault in passed else failed
            table.setdefault(name, {}).setdefault(outcome, []).append(fault)
    return table


def test_the_tables_are_of_all_that_is_replaced(side: SystemPython) -> None:
    assert set(side.value("list(FUNCTIONS)")) == {*LIVE, *OWN, *READ}
    replaced = side.value("sorted({(str(owner), name) for owner, name, _ in activation._originals})")
    assert replaced == side.value("sorted({(str(owner), name) for owner, name, _ in FUNCTIONS.values()})")
    faults = set(side.value("list(FAULTS)"))
    assert faults >= {*BROKER, *ENDS, "BadHostKeyException", "AuthenticationException", "NoValidConnectionsError"}
    assert faults >= {"CacheUnavailable", "SnapshotCorrupt", "SchemaMismatch", "Unanswered", "TimeoutError"}
    assert len(faults) > 60


def test_whatever_an_agent_fails_with_is_answered(side: SystemPython) -> None:
    found = side.run("now['does'] = 'raise'", f"table({list(LIVE)!r})")
    assert found == expected(side, LIVE, {"KeyboardInterrupt"})


def test_whatever_the_broker_fails_with_is_something_that_tornado_replies_to(side: SystemPython) -> None:
    found = side.run("now['does'] = 'raise'", f"table({list(OWN)!r})")
    exceptions = set(side.value("[name for name, fault in FAULTS.items() if isinstance(fault, Exception)]"))
    assert found == expected(side, OWN, {*exceptions, *ENDS})
    left = set(side.value("list(FAULTS)")) - exceptions - ENDS
    assert left == {*BROKER, "Foreign"}


def test_what_the_broker_reads_fails_as_it_does_without_the_adapter(side: SystemPython) -> None:
    found = side.run("now['does'] = 'raise'", f"table({sorted(READ)!r})")
    everything = set(side.value("list(FAULTS)"))
    assert found == expected(side, dict.fromkeys(sorted(READ), ""), everything)


def test_a_fleet_that_fails_is_not_asked(side: SystemPython) -> None:
    exceptions = set(side.value("[name for name, fault in FAULTS.items() if isinstance(fault, Exception)]"))
    side.run("now['does'] = 'answer'; view = activation.fleet._view; activation.fleet._view = raising")
    found = side.value(f"table({list(LIVE)[:9]!r})")
    side.run("activation.fleet._view = view")
    answers = dict(side.value(f"[[name, 'gives ' + repr(ANSWERS[name.split('.')[1]])] for name in {list(LIVE)[:9]!r}]"))
    for name, outcomes in found.items():
        lived = set(outcomes.pop(answers[name]))
        assert lived >= exceptions
        if name in ("agent.add_authorized_key", "agent.delete_authorized_key"):
            # Nothing to do with the fleet.
            assert outcomes == {}
        else:
            assert outcomes == {
                **{f"raises {fault}": [fault] for fault in ("CancelledError", "GeneratorExit", "SystemExit")},
                "raises KeyboardInterrupt": ["KeyboardInterrupt"],
                LIVE[name]: sorted([*BROKER, "Foreign"], key=[*side.value("list(FAULTS)")].index),
            }


def test_what_the_fleet_knows_may_be_anything(side: SystemPython) -> None:
    side.run("now['does'] = 'answer'; view = activation.fleet.view; activation.fleet.view = lambda *_: Broken()")
    names = {name: failed for name, failed in LIVE.items() if "authorized_key" not in name}
    found = side.value(f"table({list(names)!r})")
    side.run("activation.fleet.view = view")
    assert found == expected(side, names, ENDS)


HANG = """
now["does"] = "hang"
activation.live_agents.limit_seconds = 0.05
activation.live_agents._hung.clear()
first = {name: outcome(name) for name in NAMES if not activation.live_agents._hung.clear()}
begun.clear()
again = {name: outcome(name) for name in NAMES}
"""


def test_an_agent_that_hangs_is_answered_for_and_left_alone(side: SystemPython) -> None:
    side.run(f"NAMES = {list(LIVE)!r}")
    side.run(HANG)
    assert side.value("first") == LIVE
    assert side.value("again") == LIVE
    # One thread per agent, load checker and port that hang, and not one more.
    assert side.value("len(activation.live_agents._hung)") == 3


SIGNAL = """
now["does"] = "hang"
activation.live_agents.limit_seconds = 600.0
activation.live_agents._hung.clear()
begun.clear()

def handler(number, frame):
    raise {ends}

def send():
    begun.wait()
    os.kill(os.getpid(), signal.SIGINT)

before = signal.signal(signal.SIGINT, handler)
threading.Thread(target=send).start()
try:
    ended = outcome({name!r})
finally:
    signal.signal(signal.SIGINT, before)
"""


@pytest.mark.parametrize("ends", ["KeyboardInterrupt", "SystemExit"])
@pytest.mark.parametrize("name", LIVE)
def test_the_broker_can_be_ended_while_it_waits(side: SystemPython, name: str, ends: str) -> None:
    assert side.run(SIGNAL.format(ends=ends, name=name), "ended") == f"raises {ends}"


UNGUARDED = """
activation.deactivate()
from x2gofleet.adapters import broker_guard
broker_guard.Guard.wrap = lambda self, name, function, failure: function
activation = adapter.activate(activation.settings)
now["does"] = "raise"
"""


def test_without_the_guard_tornado_would_not_reply(side: SystemPython) -> None:
    side.run(UNGUARDED)
    found: Table = side.value(f"table({list(OWN)!r})")
    assert found == expected(side, OWN, set(side.value("list(FAULTS)")))
    assert {fault for outcomes in found.values() for faults in outcomes.values() for fault in faults} >= BROKER
