# vellumd's tasks; `make help` lists them. They need Python 3.11 or newer, git and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.vellumd-setup
TESTS_READY := $(VENV)/.vellumd-dev

.DEFAULT_GOAL := help
.PHONY: help setup run test trust lint bench

help:  ## list the tasks
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(READY)  ## create .venv with vellumd and an engine for this machine

$(READY): pyproject.toml vellumd/cli/setup_torch.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vellumd needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m vellumd.cli.setup_torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[engine]'
	@touch $@

run: setup  ## serve on http://127.0.0.1:8200 with ./data, in the foreground
	@$(BIN)/vellumd serve --store.dir ./data

$(TESTS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[engine,dev]'
	@touch $@

lint: $(TESTS_READY)  ## ruff, mypy for Linux and Windows, bandit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --platform linux
	$(BIN)/mypy --platform win32
	$(BIN)/bandit --quiet --recursive --severity-level high vellumd plugins

test: lint  ## everything, within 12 minutes on 2 cores
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

trust: $(TESTS_READY)  ## the fault tests with full counts; results in tests/trust/results
	$(BIN)/python -m pytest tests/trust --full

bench: $(TESTS_READY)  ## speed of what needs no card
	$(BIN)/python -m tests.bench
