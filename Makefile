# The single front door. `make run` and `make test` install what they need first.

# The first of these that runs and is new enough (a pyenv shim may exist and not run).
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# Coverage is measured on the plain scanner: a compiled one cannot be traced.
COVERED := gatekeeper/protocol gatekeeper/policy
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help run install test test-plain test-compiled lint format bench differential image clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.runtime $(VENV)/.compiled $(VENV)/.broker ## a private RabbitMQ and the gate before it, until Ctrl-C
	@exec $(BIN)/python -m tests.support.demo

install: $(VENV)/.dev $(VENV)/.compiled ## the package with its development tools into .venv

test: $(VENV)/.system install test-plain test-compiled ## all tests, on the plain and on the compiled scanner

# What starts gates and brokers runs once, on the scanner that users have.
PROCESSES := tests/integration tests/admin tests/cli tests/test_packaging.py

# Everything else, with the coverage gate.
test-plain: install $(VENV)/.system
	GATEKEEPER_PURE=1 $(PYTEST) $(PROCESSES:%=--ignore=%) \
	    $(COVERED:%=--cov=%) --cov-branch --cov-report=term --cov-fail-under=95

# The scanner's tests again, and everything against real processes.
test-compiled: install $(VENV)/.system
	$(PYTEST) tests/protocol tests/server $(PROCESSES)

lint: $(VENV)/.dev ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: install $(VENV)/.system ## measurements against HAProxy and a sink broker
	$(BIN)/python -m tests.bench

differential: install $(VENV)/.system ## random sessions, RabbitMQ alone against gate and RabbitMQ
	$(BIN)/python -m tests.integration.differential --operations 10000 --seeds 1,2,3

image: ## the container image
	docker build --tag gatekeeper .

clean: ## what builds, tests and runs leave behind
	rm -rf .run build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
	rm -f gatekeeper/protocol/frames.*.so $(VENV)/.compiled
	find gatekeeper tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## the same and .venv
	rm -rf $(VENV)

# -- what the targets above need; stamps in .venv ---------------------------------------------

$(BIN)/python:
	@tests/support/system.sh python "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip

# pika: the client in the lines that `make run` prints.
$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . "pika>=1.3.2"
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@ $(VENV)/.runtime

# Without Cython (a plain `make run`) or a compiler the scanner stays plain Python, and says so.
$(VENV)/.compiled: gatekeeper/protocol/frames.py $(wildcard gatekeeper/protocol/*.pxd) gatekeeper/_compile.py | $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "cython>=3.1,<4"
	$(BIN)/python -m gatekeeper._compile --inplace
	@touch $@

$(VENV)/.broker: tests/support/system.sh | $(BIN)/python
	@tests/support/system.sh broker
	@touch $@

$(VENV)/.system: tests/support/system.sh | $(BIN)/python
	@tests/support/system.sh tests
	@touch $@
