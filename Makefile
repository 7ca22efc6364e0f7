# Needs Python >= 3.11, git and make. The first target you run sets up .venv and fetches Kafka's jars, once.

PYTHON ?= $(shell for each in python3.13 python3.12 python3.11 python3.14 python3 python; do \
	command -v $$each >/dev/null 2>&1 && $$each -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo $$each; break; }; done)

BIN := .venv/bin
STAMP := .venv/.set-up
CHAOS_MINUTES ?= 2
CHAOS_SEED ?=
SEEDS ?= 1000
FIRST ?= 0

.PHONY: help setup demo test lint unit chaos simulate mutants bench clean

help:
	@echo 'make demo    real servers, two workers, the words of real files; ends by itself'
	@echo 'make test    lint, types, layers and all tests, on real Kafka and Valkey'
	@echo 'make lint    ruff, mypy and import-linter alone'
	@echo 'make chaos   kill, stop and restart everything under load for CHAOS_MINUTES=2 (CHAOS_SEED=); a ledger judges'
	@echo 'make simulate   SEEDS=1000 random schedules of engines and scripts, from seed FIRST=0'
	@echo 'make mutants    16 protocol bugs, one at a time: the tests must catch each (ONLY=name)'
	@echo 'make bench   the benchmarks'
	@echo 'make setup   .venv and the downloads, and nothing else'
	@echo 'make clean   remove .venv and whatever tools left'

setup: $(STAMP)

$(STAMP): pyproject.toml
	@test -n '$(PYTHON)' || { echo 'KRQ needs Python 3.11 or newer with the venv module (Debian: apt install python3-venv).' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'Installing into .venv'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --group test
	@echo 'Fetching Apache Kafka (45 MB, once for this user)'
	@$(BIN)/python -c 'from krq.dev.kafka import resolve_kafka; resolve_kafka()'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python examples/demo.py

test: lint unit

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/mypy --strict krq tests/typing_cases.py
	$(BIN)/lint-imports

# three at a time: most tests wait for a lease, a restart or a rebalance
unit: $(STAMP)
	$(BIN)/pytest -q -n 3 --dist loadfile

chaos: $(STAMP)
	@cd tests && ../$(BIN)/python -m chaos.driver --minutes $(CHAOS_MINUTES) $(if $(CHAOS_SEED),--seed $(CHAOS_SEED))

simulate: $(STAMP)
	@cd tests && ../$(BIN)/python simulate.py $(SEEDS) $(FIRST)

mutants: $(STAMP)
	@cd tests && ../$(BIN)/python -m mutants $(ONLY)

bench: $(STAMP)
	$(BIN)/python benchmarks/bench.py

clean:
	rm -rf .venv .krq .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist krq.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
