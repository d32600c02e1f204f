# The same verbs on every machine and in CI. `make help` lists them.
#
#   PYTHON=python3.12 make setup     another interpreter
#   make test T=tests/unit           one part of the tests
#   make bench BENCH=--quick         a smoke run of the benchmarks
#   make soak SOAK_S=60              a shorter soak
#   make crash UPDATE=1              write the list of crash points anew

SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.ready-bench
FUZZ_READY := $(VENV)/.ready-fuzz
T ?= tests
SOAK_S ?= 600
AGENTS ?= 10000
CUTS ?= 100
FUZZ_S ?= 60
SEEDS ?= 1000
FIRST ?= 0
BENCH ?=
# Where the tools' caches live: one folder to delete.
export RUFF_CACHE_DIR := build/cache/ruff
export MYPY_CACHE_DIR := build/cache/mypy

.DEFAULT_GOAL := help
.PHONY: help setup demo test crash storm fuzz power dense simulate fleet check bench soak docs format lock clean

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

setup: $(READY)  ## make .venv from the hashed locks (once; again when they change)

$(READY): requirements/dev.txt pyproject.toml scripts/setup.sh
	@sh scripts/setup.sh dev
	@touch $(READY)

$(BENCH_READY): requirements/bench.txt $(READY)
	@sh scripts/setup.sh bench
	@touch $(BENCH_READY)

$(FUZZ_READY): requirements/fuzz.txt $(READY)
	@sh scripts/setup.sh fuzz || echo "fuzz: no coverage-guided engine for this Python and machine; inputs are chosen by chance"
	@touch $(FUZZ_READY)

demo: $(READY)  ## 50 agents analyse Python's standard library; report in build/demo/report.json
	@$(PY) examples/demo_stdlib.py

test: $(READY)  ## run the tests (T=tests/unit for a part)
	@$(PY) -m pytest $(T)

crash: $(READY)  ## strike every crash point of the bus, then a storm of kills (UPDATE=1 writes the list of points anew)
	@$(PY) -m tests.crash $(if $(UPDATE),--update)
	@$(PY) -m tests.storm $(STORM)

storm: $(READY)  ## only the storm (STORM="--kills 5000 --messages 5000000" for the long one)
	@$(PY) -m tests.storm $(STORM)

fuzz: $(FUZZ_READY)  ## every decoder for FUZZ_S seconds (60), guided by coverage (FUZZ="frame bell" for some of them)
	@$(PY) -m tests.fuzz --seconds $(FUZZ_S) $(FUZZ)

power: $(READY)  ## cut the power under a durable store, CUTS times (100); needs root for loop mounts
	@$(PY) -m tests.power --cuts $(CUTS)

dense: $(READY)  ## AGENTS agents (10000) in eight workers: each answers the coordinator and does a task
	@MUSTER_DENSE=$(AGENTS) $(PY) -m pytest -s tests/acceptance/test_dense.py

simulate: $(READY)  ## fleets under faults on virtual time, SEEDS of them (1000); SEED=7 TRACE=1 tells the story of one
	@$(PY) -m muster.testing.simulator $(if $(SEED),--seed $(SEED) $(if $(TRACE),--trace),--seeds $(SEEDS) --first $(FIRST))

fleet: $(READY)  ## large fleets of real processes, killed at will; figures at the end (FLEET=short for some minutes)
	@$(PY) -m compileall -q src  # as an installation does: the first start is measured, too
	@FLEET=$(or $(FLEET),long) $(PY) -m pytest -s tests/fleet

check: $(READY)  ## lint, format, types, documentation, structure
	@echo "check: ruff"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@echo "check: mypy"
	@$(PY) -m mypy
	@echo "check: documentation"
	@$(PY) scripts/diagrams.py --check
	@$(VENV)/bin/zensical build --strict
	@echo "check: structure"
	@$(PY) -m pytest --quiet tests/structure
	@echo "check: all good"

format: $(READY)  ## write the layout and the simple fixes that `check` asks for
	@$(PY) -m ruff check --fix --quiet . || true
	@$(PY) -m ruff format .

bench: $(BENCH_READY)  ## measure muster beside its peers, one table (BENCH=--quick for a smoke run)
	@$(PY) -m benchmarks $(BENCH)

soak: $(READY)  ## run a fleet for SOAK_S seconds (600) and fit the slope of what it holds
	@SOAK_S=$(SOAK_S) $(PY) -m benchmarks.soak

docs: $(READY)  ## build the documentation into build/site
	@$(VENV)/bin/zensical build --strict

lock: $(READY)  ## write the hashed lock files anew from pyproject.toml
	@sh scripts/lock.sh

clean:  ## remove everything that make built, .venv too
	@rm -rf $(VENV) build dist site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find src tests examples benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
