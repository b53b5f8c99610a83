# `make help` lists what there is. Nothing needs to be installed before.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help run dev test test-all check format bench soak reliability clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(BIN)/.installed ## install if need be, and serve on HOST:PORT
	$(BIN)/gunicorn wsgi:app

dev: $(BIN)/.installed ## serve from one process that restarts when code changes, with Flask's debugger
	$(BIN)/flask --app wsgi run --debug --port \
		"$$($(BIN)/python -c 'from embedding_api.config import load_settings; print(load_settings().port)')"

test: $(BIN)/.installed-dev ## run the tests, without the slow ones
	$(BIN)/pytest -m "not slow" --cov --cov-report=term-missing:skip-covered

test-all: $(BIN)/.installed-dev ## run every test, as CI does
	$(BIN)/pytest --cov --cov-report=term-missing:skip-covered

check: $(BIN)/.installed-dev ## lint, format, types, layers, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(BIN)/.installed-dev ## put the code into the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BIN)/.installed-dev ## measure the service and what else there is, side by side: bench/README.md
	$(BIN)/python -m bench

soak: SECONDS ?= 1800
soak: $(BIN)/.installed-dev ## see that it stays as it is under clients of all kinds, for SECONDS=1800
	$(BIN)/python -m bench soak --seconds $(SECONDS)

reliability: $(BIN)/.installed-dev ## make every fault happen, and write docs/reliability.md
	$(BIN)/pytest -m fault --reliability=docs/reliability.md

clean: ## remove the environment and what tools left behind
	rm -rf $(VENV) .coverage .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(BIN)/.installed: requirements.txt scripts/install.sh | $(BIN)/python
	scripts/install.sh $(BIN)/python requirements.txt
	touch $@

$(BIN)/.installed-dev: requirements.txt requirements-dev.txt scripts/install.sh | $(BIN)/python
	scripts/install.sh $(BIN)/python requirements-dev.txt
	touch $@ $(BIN)/.installed
