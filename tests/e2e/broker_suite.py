"""Runs x2gobroker's own test files, as the program of the launcher or alone: one JSON object, outcome by test."""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path

os.environ.update({"X2GOBROKER_DEBUG": "1", "X2GOBROKER_TESTSUITE": "1"})

import x2gobroker.agent  # reads the environment

# Some of the tests need what it looks for: an SSH key of whoever runs them.
x2gobroker.agent.has_remote_broker_agent_setup = lambda: True


def flat(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flat(test)
        else:
            yield test


def main() -> None:
    os.chdir(Path(x2gobroker.__file__).parent / "tests")
    sys.path.insert(0, os.getcwd())
    outcomes: dict[str, str] = {}
    for name in sorted(Path().glob("test_*.py")):
        try:
            module = importlib.import_module(name.stem)
        except (ImportError, AttributeError) as exc:
            outcomes[name.stem] = f"not imported: {exc}"
            continue
        suite = unittest.defaultTestLoader.loadTestsFromModule(module)
        for test in flat(suite):
            result = unittest.TestResult()
            # Some of the tests expect that a random choice hits each host within some tries.
            random.seed(0)
            test.run(result)
            bad = result.failures + result.errors
            outcomes[test.id()] = bad[0][1].strip().splitlines()[-1] if bad else "passed"
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
