"""``python -m tests.bench [NAME ...]``: all benchmarks or some, each a ratio against a baseline of the same run."""

from __future__ import annotations

import sys
from types import ModuleType

from tests.bench import (
    bench_broker,
    bench_lookup,
    bench_mirror,
    bench_notices,
    bench_notices_scale,
    bench_outages,
    bench_parsing,
    bench_ports,
    bench_postgres,
    bench_probe,
    bench_worker,
)

MODULES = (
    *(bench_parsing, bench_lookup, bench_mirror, bench_probe, bench_postgres, bench_notices, bench_notices_scale),
    *(bench_broker, bench_outages, bench_ports, bench_worker),
)
BY_NAME: dict[str, ModuleType] = {module.__name__.rpartition("bench_")[2]: module for module in MODULES}


def main(names: list[str]) -> None:
    """Print one table."""
    if unknown := [name for name in names if name not in BY_NAME]:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    print(f"{'what':60} {'ratio':>8}  {'baseline':58} goal")
    for name in names or BY_NAME:
        for what, baseline, ratio, goal in BY_NAME[name].run():
            print(f"{what:60} {ratio:8.3f}  {baseline:58} {goal}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
