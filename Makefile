# Each target sets up what it needs in .venv; `make e2e` and `make bench` also install Debian's x2goserver (as root).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
JOBS ?= auto
# What `make test-fast` and `make test-lowest` run: no root, no Debian redis-server, about 100 seconds of CPU time in all.
# `pytest --durations=0` says what a file costs.
FAST := tests/unit $(addprefix tests/integration/test_,$(addsuffix .py,aio health mirror own_clients reader_round_trips servers store))
LOWEST := .venv-lowest

.PHONY: demo test test-fast test-lowest check format e2e bench fuzz compose-test clean

$(VENV)/.demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "x2gofleet needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; set PYTHON=")'
	@$(PYTHON) -m venv $(VENV) || { echo 'python -m venv failed; on Debian: apt-get install python3-venv' >&2; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.demo
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(VENV)/.demo  ## a simulated fleet, a Valkey, two workers and the live view
	@$(BIN)/x2gofleet-worker demo

test: $(VENV)/.dev  ## all tests; those on a real x2goserver need root and `make e2e` once, and say so when skipped
	@$(PYTEST) -q -n $(JOBS) --dist worksteal

test-fast: $(VENV)/.dev  ## unit tests and quick integration tests: before each commit
	@$(PYTEST) -q -n $(JOBS) --dist worksteal -m 'not install' $(FAST)

$(LOWEST)/.dev: pyproject.toml tests/lowest.py
	@$(PYTHON) -m venv --clear $(LOWEST)
	@$(LOWEST)/bin/python tests/lowest.py > $(LOWEST)/constraints.txt
	@$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --constraint $(LOWEST)/constraints.txt --editable '.[dev]'
	@touch $@

test-lowest: $(LOWEST)/.dev  ## the same with the lowest versions that pyproject.toml allows, in an environment of its own
	@$(LOWEST)/bin/python -m pytest -q -n $(JOBS) --dist worksteal -m 'not install' $(FAST)

check: $(VENV)/.dev  ## formatting, lint, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/.dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

e2e: $(VENV)/.dev  ## the tests on Debian's real x2goserver over real sshd; needs root
	@bash tests/e2e/setup.sh
	@X2GOFLEET_REQUIRE_E2E=1 $(PYTEST) -q -n $(JOBS) --dist worksteal tests/e2e

bench: $(VENV)/.dev  ## ratios against named baselines of the same run, all or BENCH="probe mirror"; needs root for the real x2goserver
	@bash tests/e2e/setup.sh
	@$(BIN)/python -m tests.bench $(BENCH)

fuzz: $(VENV)/.dev  ## FUZZ_RUNS (default: a million) broken inputs for each reader (FUZZ_ONLY: some); as root also 100 000 generated records
	@$(BIN)/python -m tests.fuzz
	@GENERATED_RECORDS=$${GENERATED_RECORDS:-100000} $(PYTEST) -q -s tests/e2e/test_generated_records.py

compose-test:  ## docker-compose.yml for real: builds, scales to 3 workers, kills one, reads all sessions; Docker or podman
	@$(PYTHON) tests/compose/run.py

clean:
	@rm -rf $(VENV) $(LOWEST) .pytest_cache .mypy_cache .ruff_cache .hypothesis
