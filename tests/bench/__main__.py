"""``python -m tests.bench``: every benchmark, each a ratio against a named baseline of the same run."""

from __future__ import annotations

from tests.bench import (
    bench_broker,
    bench_lookup,
    bench_mirror,
    bench_notices,
    bench_notices_scale,
    bench_outages,
    bench_parsing,
    bench_postgres,
    bench_probe,
    bench_worker,
)


def main() -> None:
    """Print one table."""
    print(f"{'what':60} {'ratio':>8}  {'baseline':58} goal")
    modules = (
        *(bench_parsing, bench_lookup, bench_mirror, bench_probe, bench_postgres, bench_notices, bench_notices_scale),
        *(bench_broker, bench_outages, bench_worker),
    )
    for module in modules:
        for what, baseline, ratio, goal in module.run():
            print(f"{what:60} {ratio:8.3f}  {baseline:58} {goal}", flush=True)


if __name__ == "__main__":
    main()
