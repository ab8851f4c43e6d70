"""`make fuzz`: broken input for all that reads what others wrote, FUZZ_RUNS of each, and what a byte costs.

Prints what came of it; ends with status 1 where a reader raised anything but what it documents, where a decoder
believed a payload to be structure, or where one gave another result for the same bytes in other pieces. FUZZ_ONLY names
the readers to be fuzzed, with commas between them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial

from tests.fuzz import content, decoder, imports, inventory, keys, known_hosts, urls
from tests.fuzz.costs import SHAPES, SMALLEST_RECORDS, memory_of_a_byte, moves_of_a_byte, seconds_of_a_byte
from tests.fuzz.decoder import Tally

RUNS = 1_000_000
RUNS_AT_ONCE = 5_000
MEGABYTE = 1024 * 1024
EARLY = (0, MEGABYTE)
LATE = (60 * MEGABYTE, MEGABYTE)
FUZZERS: dict[str, Callable[[int, int], Tally]] = {
    "decoder": decoder.fuzz,
    "known_hosts": known_hosts.fuzz,
    "keys": keys.fuzz,
    "imports": imports.fuzz,
    "inventory": inventory.fuzz,
    "urls": urls.fuzz,
    **{name: partial(content.fuzz_case, name) for name in content.CASES},
}


def main() -> int:
    """Run the fuzzing and the measurements; return the exit status."""
    runs, seed = int(os.environ.get("FUZZ_RUNS", RUNS)), int(os.environ.get("FUZZ_SEED", "1"))
    only = os.environ.get("FUZZ_ONLY", ",".join(FUZZERS)).split(",")
    failed = [name for name in only if not _passes(name, runs, seed)]
    if "decoder" in only:
        _print_costs()
    return 1 if failed else 0


def _passes(name: str, runs: int, seed: int) -> bool:
    started, tally = time.monotonic(), Tally()
    sizes = [min(RUNS_AT_ONCE, runs - done) for done in range(0, runs, RUNS_AT_ONCE)]
    with ProcessPoolExecutor() as pool:
        waiting = [pool.submit(FUZZERS[name], size, seed * 1_000_000 + part) for part, size in enumerate(sizes)]
        for done in as_completed(waiting):
            tally.add(done.result())
    print(f"{name}: {tally.runs} broken inputs in {time.monotonic() - started:.0f} s, FUZZ_SEED={seed}")
    print("  " + ", ".join(f"{count} {outcome}" for outcome, count in tally.outcomes.most_common()))
    print(f"  {len(tally.refusals)} sorts of refusal")
    for text in tally.failures:
        print(f"  FAILED {text}")
    print(f"  {tally.failed} failed", flush=True)
    return not tally.failed and tally.runs == runs


def _print_costs() -> None:
    print(
        "costs of a byte: processor time early in an answer and after 60 MB, moves, most memory for each byte of 8 MB"
    )
    for shape in (*SHAPES, SMALLEST_RECORDS):
        # The smallest records reach their number before 60 MB.
        late = LATE if shape is not SMALLEST_RECORDS else (14 * MEGABYTE, MEGABYTE)
        first, last = (min(seconds_of_a_byte(shape, *part) for _ in range(3)) for part in (EARLY, late))
        print(
            f"  {shape.name}: {first * 1e9:.1f} ns, {last * 1e9:.1f} ns, ratio {last / first:.2f}; "
            f"{moves_of_a_byte(shape, 8 * MEGABYTE):.2f} moves; {memory_of_a_byte(shape, 8 * MEGABYTE):.2f} bytes"
        )


if __name__ == "__main__":
    sys.exit(main())
