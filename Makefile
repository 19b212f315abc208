# vellumd's tasks; `make help` lists them. They need Python 3.11 or newer, git and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.vellumd-setup
TESTS_READY := $(VENV)/.vellumd-dev
NODE_RED := build/node-red
NODE_RED_READY := $(NODE_RED)/.vellumd-4.1.15
NODE_RED_5 := build/node-red-5
NODE_RED_5_READY := $(NODE_RED_5)/.vellumd-5.0.7
AXE := build/axe
AXE_READY := $(AXE)/.vellumd-4.14.1

# The tests start a thousand processes: none of them should have to compile vellumd anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run test trust lint bench mosquitto chromium

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
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 & win32=$$!; \
		$(BIN)/mypy --platform linux && wait $$win32
	$(BIN)/bandit --quiet --recursive --severity-level high vellumd plugins

mosquitto:  # the broker of the tests: Debian's where apt-get may install it
	@PATH="$$PATH:/usr/sbin" command -v mosquitto >/dev/null || \
		{ test "$$(id -u)" = 0 && apt-get update -qq && \
		  apt-get install -y -qq --no-install-recommends mosquitto mosquitto-clients; } || \
		{ echo "the tests need Mosquitto: install the packages mosquitto and mosquitto-clients"; exit 1; }

chromium:  # the browser of the tests, likewise
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
		{ test "$$(id -u)" = 0 && apt-get update -qq && \
		  apt-get install -y -qq --no-install-recommends chromium; } || \
		{ echo "the tests need Chromium: install the package chromium"; exit 1; }

$(AXE_READY):  # looks for what keeps people out of the page
	@command -v npm >/dev/null || { echo "the tests need node 20 or newer, with npm"; exit 1; }
	@mkdir -p $(AXE) && echo '{"private": true}' > $(AXE)/package.json
	npm install --prefix $(AXE) --no-audit --no-fund --silent axe-core@4.14.1
	@touch $@

$(NODE_RED_READY):  # needs node 20
	@command -v npm >/dev/null || { echo "the tests need node 20 or newer, with npm"; exit 1; }
	@mkdir -p $(NODE_RED) && echo '{"private": true}' > $(NODE_RED)/package.json
	npm install --prefix $(NODE_RED) --no-audit --no-fund --omit=dev --omit=optional --silent node-red@4.1.15
	@touch $@

$(NODE_RED_5_READY):  # brings a newer node of its own
	@mkdir -p $(NODE_RED_5) && echo '{"private": true}' > $(NODE_RED_5)/package.json
	npm install --prefix $(NODE_RED_5) --no-audit --no-fund --omit=dev --omit=optional --silent \
		node-red@5.0.7 "node-$$(node -p 'process.platform + "-" + process.arch')@22"
	@touch $@

# Tests wait a third of their time, hence three at once; torch shares no core with itself. A few that
# fail beside others are told, and asked once more alone: what is broken fails again.
test: lint mosquitto chromium $(AXE_READY) $(NODE_RED_READY)  ## everything, within 12 minutes on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile || \
		{ [ $$? -eq 1 ] && $(BIN)/python -m pytest --last-failed --last-failed-no-failures none --maxfail 1; }

trust: $(TESTS_READY) mosquitto chromium $(AXE_READY) $(NODE_RED_READY) $(NODE_RED_5_READY)  ## the fault tests with full counts; results in tests/trust/results
	$(BIN)/python -m pytest tests/trust tests/plugins/mqtt/test_faults.py tests/e2e \
		tests/engine/test_parity.py --full

bench: $(TESTS_READY)  ## speed of what needs no card
	$(BIN)/python -m tests.bench
