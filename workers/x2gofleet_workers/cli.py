"""cli: the command ``x2gofleet-worker``: run, healthcheck, check, simulate, demo, probe."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata

from x2gofleet.connection import link_from_url, redact_url, url_from_environment
from x2gofleet.errors import CacheUnavailable, FleetError, InventoryError
from x2gofleet.keys import DEFAULT_NAMESPACE, Keys
from x2gofleet.programs import Parser, prepare_output
from x2gofleet.store import Store
from x2gofleet.text import CleanFormatter, say
from x2gofleet_workers import health
from x2gofleet_workers.check import check_fleet
from x2gofleet_workers.embedded import EmbeddedValkey
from x2gofleet_workers.endpoint import Endpoint
from x2gofleet_workers.inventory import Fleet, load_inventory
from x2gofleet_workers.metrics import NO_METRICS, PrometheusMetrics
from x2gofleet_workers.probe.delivery import probe_text
from x2gofleet_workers.simulator import command as simulate_command
from x2gofleet_workers.worker import Worker, WorkerSettings

EXIT_FAILED = 1
EXIT_USAGE = 2
LOOPBACK = "127.0.0.1"
_SIGNALS_SEEN_SECONDS = 1.0

_EPILOG = """\
exit status:
  0  it did what was asked
  1  a target failed (check), a worker is not well (healthcheck), or something could not be started
  2  wrong usage, or an inventory that can't be used
  3  whether a worker lives is unknown, as Redis can't be asked (healthcheck)
  4  what it prints can't be written: the disk is full, or stdout is closed

examples:
  x2gofleet-worker demo
  x2gofleet-worker check --inventory fleet.toml
  x2gofleet-worker run --inventory fleet.toml --redis-url redis://127.0.0.1:6379/0
  x2gofleet-worker run --inventory fleet.toml --embedded
"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="x2gofleet-worker",
        description="Polls the X2Go servers of a fleet over SSH and writes what they list to Redis.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"x2gofleet {metadata.version('x2gofleet')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="poll a fleet until stopped (SIGTERM, Ctrl-C)")
    _add_inventory(run)
    place = run.add_mutually_exclusive_group()
    place.add_argument(
        "--redis-url",
        help="redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// URL, see docs/redis.md (default: "
        "X2GOFLEET_REDIS_URL, or redis://127.0.0.1:6379/0)",
    )
    place.add_argument(
        "--embedded", action="store_true", help="start a Valkey of its own on a unix socket, for one host"
    )
    run.add_argument(
        "--namespace",
        default=os.environ.get("X2GOFLEET_NAMESPACE") or DEFAULT_NAMESPACE,
        help="prefix of all keys (default: X2GOFLEET_NAMESPACE, or x2gofleet)",
    )
    run.add_argument("--worker-id", default="", help="a name for this worker (default: host name and process id)")
    run.add_argument(
        "--weight", type=_weight, default=1.0, help="this worker's part of the fleet beside others' (default: 1.0)"
    )
    run.add_argument(
        "--metrics-port",
        type=_port,
        metavar="N",
        default=os.environ.get("X2GOFLEET_METRICS_PORT") or None,
        help="serve metrics and health there; 0: a free port (default: X2GOFLEET_METRICS_PORT, or not at all)",
    )
    run.add_argument(
        "--metrics-address",
        metavar="ADDRESS",
        default=os.environ.get("X2GOFLEET_METRICS_ADDRESS") or LOOPBACK,
        help=f"address to serve them on (default: X2GOFLEET_METRICS_ADDRESS, or {LOOPBACK})",
    )
    run.add_argument("--verbose", action="store_true", help="log more")
    run.set_defaults(run=_run)

    healthcheck = commands.add_parser("healthcheck", help="check this machine's worker, for a container's health check")
    health.add_arguments(healthcheck)
    healthcheck.set_defaults(run=_healthcheck)

    check = commands.add_parser(
        "check", help="try every target once, compare with X2Go's own query, and say what is wrong"
    )
    _add_inventory(check)
    check.add_argument(
        "--redis-url",
        default=os.environ.get("X2GOFLEET_REDIS_URL"),
        help="find renamed servers by the host names that workers recorded there (default: X2GOFLEET_REDIS_URL, or not "
        "at all)",
    )
    check.add_argument(
        "--namespace",
        default=os.environ.get("X2GOFLEET_NAMESPACE") or DEFAULT_NAMESPACE,
        help="prefix of all keys there (default: X2GOFLEET_NAMESPACE, or x2gofleet)",
    )
    check.set_defaults(run=_check)

    demo = commands.add_parser("demo", help="a simulated fleet, a Valkey, two workers and the live view")
    demo.add_argument("--servers", type=_positive, default=8, help="simulated servers (default: 8)")
    demo.add_argument("--sessions", type=_positive, default=40, help="living sessions (default: 40)")
    demo.add_argument("--seconds", type=float, help="end by itself after so long")
    demo.set_defaults(run=_demo)

    simulate_command.add_parser(commands)

    probe = commands.add_parser("probe", help="print the probe, to install it on a server as a forced command")
    probe.set_defaults(run=_probe)
    return parser


def _add_inventory(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("X2GOFLEET_INVENTORY")
    parser.add_argument(
        "--inventory",
        metavar="FILE",
        default=default,
        required=default is None,
        help="fleet.toml (default: X2GOFLEET_INVENTORY)",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight <= 1000:
        raise argparse.ArgumentTypeError("must be a number above 0, 1 is normal")
    return weight


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: use 0 to 65535")
    return int(text)


def _healthcheck(args: argparse.Namespace) -> int:
    return health.report(args.url)


def _check(args: argparse.Namespace) -> int:
    fleet = load_inventory(args.inventory)
    return EXIT_FAILED if check_fleet(fleet, _recorded_host_names(args, fleet)) else 0


def _recorded_host_names(args: argparse.Namespace, fleet: Fleet) -> dict[str, str]:
    """Return the host names that workers recorded of the targets; without Redis none, and a warning."""
    if not args.redis_url:
        return {}
    store = Store(link_from_url(args.redis_url), Keys(args.namespace), "check")
    try:
        return store.recorded_host_names(list(fleet.targets))
    except CacheUnavailable as exc:
        say(f"warning: renamed servers are not found: {exc}", file=sys.stderr)
        return {}
    finally:
        store.close()


def _probe(args: argparse.Namespace) -> int:
    sys.stdout.write(probe_text().decode())
    return 0


def _demo(args: argparse.Namespace) -> int:
    from x2gofleet_workers.demo import run_demo

    # An exception, so that what was brought up is taken down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return run_demo(servers=args.servers, sessions=args.sessions, seconds=args.seconds)


def _run(args: argparse.Namespace) -> int:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(CleanFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if args.verbose else logging.INFO, handlers=[handler])
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    fleet = load_inventory(args.inventory)
    Keys(args.namespace)
    with ExitStack() as stack:
        if args.embedded:
            url = stack.enter_context(EmbeddedValkey()).url
            say(f"embedded Valkey: {url}")
            say(f"read it with: x2gofleet --redis-url '{url}' status")
        else:
            url = args.redis_url or url_from_environment()
            link_from_url(url).close()
        metrics = NO_METRICS if args.metrics_port is None else PrometheusMetrics()
        worker = Worker(fleet, WorkerSettings(url, args.namespace, args.worker_id, args.weight), metrics)
        if isinstance(metrics, PrometheusMetrics):
            stack.enter_context(_served(metrics, worker, args.metrics_address, args.metrics_port))
        return _run_worker(worker, stop)


@contextmanager
def _served(metrics: PrometheusMetrics, worker: Worker, address: str, port: int) -> Iterator[None]:
    metrics.observe(worker.standing)
    endpoint = Endpoint(
        metrics,
        worker.live_problem,
        worker.ready_problem,
        worker.warnings,
        address=address,
        port=port,
        out_of_resources=lambda lack: worker.shortages.occurred(lack, "clients of the metrics port wait"),
    )
    endpoint.start()
    logging.getLogger("x2gofleet_workers").info("metrics and health: %s/metrics, /live, /ready", endpoint.url)
    try:
        yield
    finally:
        endpoint.stop()


def _run_worker(worker: Worker, stop: threading.Event) -> int:
    fleet, settings = worker.fleet, worker.settings
    log = logging.getLogger("x2gofleet_workers")
    log.info(
        "worker %s: %d target(s) of %s to %s, namespace %s",
        worker.id,
        len(fleet.targets),
        fleet.path,
        redact_url(settings.redis_url),
        settings.namespace,
    )
    signal.signal(signal.SIGHUP, lambda *_: worker.reload())
    worker.start()
    # Python runs signal handlers in the main thread: one that another thread took in must not wait for its waking.
    while not stop.wait(_SIGNALS_SEEN_SECONDS):
        pass
    log.info("worker %s: stopping", worker.id)
    worker.stop()
    log.info("worker %s: stopped", worker.id)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    prepare_output()
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
    except InventoryError as exc:
        say(f"x2gofleet-worker: {exc}", file=sys.stderr)
        status = EXIT_USAGE
    except ValueError as exc:
        say(f"x2gofleet-worker: {exc}", file=sys.stderr)
        status = EXIT_USAGE
    except FleetError as exc:
        say(f"x2gofleet-worker: {exc}", file=sys.stderr)
        status = EXIT_FAILED
    return status
