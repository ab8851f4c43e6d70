"""app: runs one command of ``x2gofleet``: arguments -> cache -> result -> terminal, and every error as one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from x2gofleet.cache import FleetCache
from x2gofleet.cli import commands, follow, live
from x2gofleet.cli.acl import acl
from x2gofleet.cli.arguments import build_parser, namespace, redis_url
from x2gofleet.cli.results import (
    UNAVAILABLE,
    USAGE,
    Result,
    UnknownServer,
    load_rich,
    show,
    tell,
)
from x2gofleet.connection import link_from_url, redact_url
from x2gofleet.errors import CacheUnavailable, FleetError, UnknownProfile
from x2gofleet.extras import how_to_install
from x2gofleet.programs import prepare_output


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``x2gofleet``; ``argv`` is without the program's name. Returns the exit status that --help explains."""
    prepare_output()
    try:
        options = build_parser().parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    url, name = redis_url(options), namespace(options)
    try:
        link = link_from_url(url)
    except ValueError as exc:
        where = "--redis-url" if options.redis_url else "X2GOFLEET_REDIS_URL"
        tell(f"{where} is no Redis URL that can be used: {exc}")
        return USAGE
    try:
        cache = FleetCache(link, namespace=name)
    except ValueError as exc:
        tell(f"--namespace: {exc}")
        return USAGE
    with cache:
        if options.command == "acl":
            return acl(options, url=url, namespace=name)
        try:
            if options.command == "watch" and not options.json:
                return _watch(cache, name)
            if options.command == "events":
                return _events(cache, options, name)
            result = _ask(cache, options, name)
            show(result, as_json=options.json)
            return result.exit_status
        except (UnknownProfile, UnknownServer) as exc:
            tell(str(exc))
            return USAGE
        except CacheUnavailable as exc:
            question = (
                ". Is a Redis or Valkey running there? Another is given by --redis-url or X2GOFLEET_REDIS_URL"
                if exc.reason.is_absence
                else ""
            )
            tell(f"{redact_url(url)} can't be asked: {str(exc).rstrip('.')}{question}")
            return UNAVAILABLE
        except FleetError as exc:
            tell(str(exc))
            return UNAVAILABLE


def _ask(cache: FleetCache, options: argparse.Namespace, name: str) -> Result:
    match options.command:
        case "sessions":
            return commands.sessions(cache, namespace=name, profile=options.profile, user=options.user)
        case "desktops":
            return commands.desktops(cache, namespace=name, profile=options.profile, user=options.user)
        case "mounts":
            return commands.mounts(cache, namespace=name, profile=options.profile, user=options.user)
        case "refresh":
            return commands.refresh(
                cache,
                namespace=name,
                profile=options.profile,
                desktops=options.desktops,
                mounts=options.mounts,
                user=options.user,
                timeout_seconds=options.timeout,
            )
        case _:
            fail_on_down = getattr(options, "fail_on_down", False)
            return commands.status(cache, namespace=name, fail_on_down=fail_on_down)


def _events(cache: FleetCache, options: argparse.Namespace, name: str) -> int:
    run = follow.follow if options.follow else follow.events
    return run(
        cache,
        namespace=name,
        server=options.server,
        since=options.since,
        limit=options.limit,
        as_json=options.json,
    )


def _watch(cache: FleetCache, name: str) -> int:
    if not sys.stdout.isatty() or load_rich() is None:
        status = commands.status(cache, namespace=name)
        if status.exit_status == 0:
            print(live.summary(cache))
        show(Result({}, notes=status.notes), as_json=False)
        if sys.stdout.isatty():
            tell(f"the live view needs rich: {how_to_install('cli')}", wrap=False)
        return status.exit_status
    live.run_live(cache, title=f"x2gofleet watch, namespace {name}")
    return 0
