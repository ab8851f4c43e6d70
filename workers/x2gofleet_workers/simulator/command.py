"""`x2gofleet-worker simulate`: N simulated X2Go servers and an inventory that polls them, until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from x2gofleet.programs import Parser
from x2gofleet_workers.simulator.faults import Fault, FaultKind

if TYPE_CHECKING:
    from x2gofleet_workers.simulator.simulation import Simulation

_EXAMPLES = """faults: {kinds}
  slow takes its seconds (ts01=slow=2); tarpit may (a byte every so many seconds)
"""


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Add ``simulate`` to the worker's commands."""
    parser = subparsers.add_parser(
        "simulate",
        help="run simulated X2Go servers over real SSH on loopback",
        description="Run simulated X2Go servers with living sessions over real SSH on loopback, until stopped.",
        epilog=_EXAMPLES.format(kinds=", ".join(kind.value for kind in FaultKind)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--servers", type=_count, required=True, metavar="N", help="how many servers")
    parser.add_argument(
        "--sessions",
        type=_size,
        metavar="M",
        help="how many sessions the fleet stays near (default: 8 a server)",
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=0,
        metavar="P",
        help="one port for all, on 127.0.0.1, 127.0.0.2 ... (default: 127.0.0.1 with a free port each)",
    )
    parser.add_argument(
        "--write-inventory",
        type=Path,
        required=True,
        metavar="FILE",
        help="the fleet.toml to write; its key and known_hosts are written beside it",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed gives the same sessions")
    parser.add_argument(
        "--pace",
        type=_seconds,
        default=20.0,
        metavar="SECONDS",
        help="mean time between changes on a server; 0: none (default: 20)",
    )
    parser.add_argument(
        "--fault",
        type=_server_fault,
        action="append",
        default=[],
        metavar="SERVER=FAULT",
        help="break a server, e.g. ts02=hang; may be repeated",
    )
    parser.add_argument("--duration", type=_seconds, metavar="SECONDS", help="stop by itself after this time")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out ``simulate``; return 0 after a clean stop, 1 where it could not start, 2 for bad arguments."""
    try:
        from x2gofleet_workers.simulator.simulation import Simulation
    except ImportError as exc:
        return _fail(str(exc), 1)
    sessions = args.servers * 8 if args.sessions is None else args.sessions
    simulation = Simulation(args.servers, sessions, args.seed, args.port, pace=args.pace)
    unknown = [server_id for server_id, _ in args.fault if server_id not in simulation.servers]
    if unknown:
        return _fail(f"--fault: no server {unknown[0]!r}; there are {', '.join(simulation.servers)}", 2)
    try:
        asyncio.run(_serve(simulation, args))
    except OSError as exc:
        return _fail(str(exc), 1)
    return 0


async def _serve(simulation: Simulation, args: argparse.Namespace) -> None:
    loop, is_over = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, is_over.set)
    await simulation.start()
    try:
        simulation.write_inventory(args.write_inventory)
        for server_id, fault in args.fault:
            await simulation.server(server_id).set_fault(fault)
        print(_summary(simulation, args.write_inventory.absolute()), flush=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(args.duration):
                await is_over.wait()
    finally:
        await simulation.stop()
    counters = [server.counters for server in simulation.servers.values()]
    print(
        f"stopped: {sum(each.polls for each in counters)} polls, "
        f"{sum(each.same_answers for each in counters)} of them unchanged, "
        f"{sum(each.full_listings for each in counters)} full listings, "
        f"{sum(each.connections for each in counters)} connections",
        flush=True,
    )


def _summary(simulation: Simulation, inventory: Path) -> str:
    servers = list(simulation.servers.values())
    first, last = servers[0], servers[-1]
    sessions = sum(len(server.model.sessions) for server in servers)
    span = f"{first.server_id} at {first.address}:{first.port}"
    if last is not first:
        span += f" ... {last.server_id} at {last.address}:{last.port}"
    lines = [f"simulating {len(servers)} X2Go servers with {sessions} sessions: {span}"]
    lines += [f"broken: {server.server_id} {server.fault}" for server in servers if server.fault]
    lines += [
        f"inventory: {inventory}",
        f"poll it:   x2gofleet-worker run --inventory {inventory}",
        f"try it:    x2gofleet-worker check --inventory {inventory}",
        "Ctrl-C stops it",
    ]
    return "\n".join(lines)


def _fail(message: str, status: int) -> int:
    print(f"x2gofleet-worker simulate: {message}", file=sys.stderr)
    return status


def _count(text: str) -> int:
    return _whole(text, 1, 60_000, "a number of servers, 1 or more")


def _size(text: str) -> int:
    return _whole(text, 0, 1_000_000, "a number of sessions, 0 or more")


def _port(text: str) -> int:
    return _whole(text, 1, 65535, "a TCP port")


def _whole(text: str, low: int, high: int, expected: str) -> int:
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, got {text!r}")
    return seconds


def _server_fault(text: str) -> tuple[str, Fault]:
    server_id, separator, fault = text.partition("=")
    if not separator or not server_id:
        raise argparse.ArgumentTypeError(f"expected SERVER=FAULT, as in ts02=hang, got {text!r}")
    try:
        return server_id, Fault.parse(fault)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
