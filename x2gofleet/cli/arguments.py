"""arguments: the command line of ``x2gofleet``."""

from __future__ import annotations

import argparse
import math
import os
from importlib import metadata
from pathlib import Path
from typing import Any

from x2gofleet.acl import Role, Topology, parse_version, user_name
from x2gofleet.connection import url_from_environment
from x2gofleet.events import decode_cursor
from x2gofleet.keys import DEFAULT_NAMESPACE, is_server_id
from x2gofleet.programs import Parser
from x2gofleet.usernames import check_username

_EPILOG = """\
examples:
  x2gofleet status                     which servers are up, how many sessions
  x2gofleet sessions --user alice      where alice has sessions, fleet-wide
  x2gofleet sessions --profile mate --json
                                       what brokers are told of profile mate
  x2gofleet refresh mate               have its servers polled now
  x2gofleet events --follow            each change of sessions and servers
  x2gofleet watch                      a live view; q or Ctrl-C ends it
  x2gofleet acl --role reader --format commands | redis-cli
                                       make a Redis user that may only look up

exit status:
  0  there is an answer (an empty one, too: "no sessions")
  1  not cached, or a refresh failed, or, with status --fail-on-down,
     a server is not up
  2  the command line is wrong, or no profile has that name
  3  Redis can't be asked, or holds what this version can't read
  4  what it prints can't be written: the disk is full, or stdout is closed

No command opens a connection to an X2Go server; cookies are never shown.
"""


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


def _username(text: str) -> str:
    try:
        check_username(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return text


def _server_id(text: str) -> str:
    if not is_server_id(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no server id: use letters, digits, '.', '_' and '-'")
    return text


def _cursor(text: str) -> str:
    try:
        decode_cursor(text)
    except ValueError:
        raise argparse.ArgumentTypeError("that is no cursor: give the one that an earlier call printed") from None
    return text


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of events")
    return int(text)


def _positive_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds <= 3600):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from above 0 to 3600")
    return seconds


def _server_version(text: str) -> str:
    try:
        parse_version(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return text


def _user_prefix(text: str) -> str:
    try:
        user_name(Role.READER, text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return text


def _common(parser: argparse.ArgumentParser, *, defaults: bool) -> None:
    """Add what goes before and after the command word; after it, what is not given must not undo what was before."""

    def default(value: Any) -> Any:
        return value if defaults else argparse.SUPPRESS

    parser.add_argument(
        "--redis-url",
        metavar="URL",
        default=default(None),
        help="redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// URL (default: $X2GOFLEET_REDIS_URL, "
        "else redis://127.0.0.1:6379/0)",
    )
    parser.add_argument(
        "--namespace",
        metavar="NAME",
        default=default(None),
        help=f"what its keys begin with (default: $X2GOFLEET_NAMESPACE, else {DEFAULT_NAMESPACE})",
    )
    parser.add_argument("--json", action="store_true", default=default(False), help="print JSON (see docs/cli.md)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="x2gofleet",
        description="What every X2Go server of a fleet is doing, read from Redis.",
        epilog=_EPILOG,
        formatter_class=_Raw,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"x2gofleet {_version()}")
    _common(parser, defaults=True)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, more: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".rstrip(), allow_abbrev=False
        )
        _common(added, defaults=False)
        return added

    status = command("status", "the servers of the fleet, their sessions, load and errors")
    status.add_argument("--fail-on-down", action="store_true", help="exit with 1 unless every server is up")

    sessions = command("sessions", "the unfinished sessions of the fleet, a profile or a user")
    sessions.add_argument("--profile", metavar="P", help="only the servers of this profile")
    sessions.add_argument("--user", metavar="U", type=_username, help="only this user's")

    desktops = command(
        "desktops",
        "the desktops that a user may share",
        "Desktop lists belong to one user and are mostly made on request: refresh PROFILE --desktops --user U.",
    )
    desktops.add_argument("--profile", metavar="P", help="only the servers of this profile")
    desktops.add_argument("--user", metavar="U", required=True, type=_username, help="the user who would share")

    mounts = command("mounts", "the client folders that are mounted in sessions")
    mounts.add_argument("--profile", metavar="P", help="only the servers of this profile")
    mounts.add_argument("--user", metavar="U", type=_username, help="only this user's")

    refresh = command(
        "refresh", "have the servers of a profile polled now", "Asks the workers that own them, and waits."
    )
    refresh.add_argument("profile", metavar="PROFILE")
    refresh.add_argument("--desktops", action="store_true", help="desktops, too: of --user, else of who has a session")
    refresh.add_argument("--mounts", action="store_true", help="mounts, too")
    refresh.add_argument("--user", metavar="U", type=_username, help="whose desktops")
    refresh.add_argument(
        "--timeout", metavar="S", type=_positive_seconds, default=10.0, help="seconds to wait (default: 10)"
    )

    events = command("events", "what changed: sessions and servers", "It ends with the cursor to go on from.")
    events.add_argument("--follow", action="store_true", help="go on with what changes until Ctrl-C")
    events.add_argument("--server", metavar="S", type=_server_id, help="only of this server")
    events.add_argument("--since", metavar="CURSOR", type=_cursor, help="only what came after this cursor")
    events.add_argument(
        "--limit",
        metavar="N",
        type=_number,
        help="at most N events: the newest, or with --since the first after it (default: all that are kept)",
    )

    command("watch", "a live view of servers and sessions", "Without a terminal it prints one view and ends.")

    acl = command(
        "acl",
        "the Redis users of readers, brokers and workers",
        "Prints ACL lines that give each just the commands and keys it needs. Redis is asked for its version only.",
    )
    acl.add_argument(
        "--role",
        action="append",
        default=[],
        choices=[role.value for role in Role],
        help="only of this role; repeatable",
    )
    acl.add_argument(
        "--server-version",
        metavar="V",
        type=_server_version,
        help="for this version of Redis or Valkey, as 7.0 (default: the server at --redis-url is asked)",
    )
    acl.add_argument(
        "--topology",
        choices=[topology.value for topology in Topology],
        help="one server, servers that sentinels watch, or a Cluster (default: what --redis-url names)",
    )
    acl.add_argument(
        "--format",
        choices=("aclfile", "commands"),
        default="aclfile",
        help="lines of an aclfile, or commands for redis-cli (default: aclfile)",
    )
    acl.add_argument(
        "--user-prefix",
        metavar="P",
        type=_user_prefix,
        default="x2gofleet-",
        help="what the users' names begin with (default: x2gofleet-)",
    )
    acl.add_argument(
        "--without-eval",
        action="store_true",
        help="a broker that may not run scripts: it can't place logins, nor hold Redis up by a script of its own",
    )
    acl.add_argument(
        "--passwords",
        metavar="FILE",
        type=Path,
        help="lines ROLE=PASSWORD: the hashes of these are printed (default: users without a password)",
    )
    return parser


def _version() -> str:
    return metadata.version("x2gofleet")


def redis_url(options: argparse.Namespace) -> str:
    """Return the URL to ask."""
    return options.redis_url or url_from_environment()


def namespace(options: argparse.Namespace) -> str:
    """Return the namespace to ask in."""
    return options.namespace or os.environ.get("X2GOFLEET_NAMESPACE") or DEFAULT_NAMESPACE
