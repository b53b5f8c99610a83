# `make help` lists the targets. Each target installs what it needs.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help run dev test test-all check format bench soak reliability device-packages device-check \
	clean environment environment-dev

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: environment ## install what is missing, and serve on HOST:PORT
	$(BIN)/gunicorn wsgi:app

dev: environment ## serve from one process that restarts when code changes, with Flask's debugger
	$(BIN)/python -m embedding_api.web.development

test: environment-dev ## run the tests, without the slow ones
	$(BIN)/pytest -m "not slow" --cov --cov-report=term-missing:skip-covered

test-all: environment-dev ## run every test, as CI does
	$(BIN)/pytest --cov --cov-report=term-missing:skip-covered

check: environment-dev ## lint, format, types, layers, spelling, the manual
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: environment-dev ## put the code into the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: environment-dev ## measure the service and its alternatives side by side: bench/README.md
	$(BIN)/python -m bench

soak: SECONDS ?= 1800
soak: environment-dev ## run clients of all kinds for SECONDS=1800, and check that the service stays as it is
	$(BIN)/python -m bench soak --seconds $(SECONDS)

reliability: environment-dev ## make every fault happen, and write docs/reliability.md
	$(BIN)/pytest -m fault --reliability=docs/reliability.md

# Packages for another machine, whose Python has this version.
DEVICE_PACKAGES := build/device-packages
device-packages: DEVICE_PYTHON ?= 3.12
device-packages: ## unpack what `make device-check` needs on a machine without network, for its DEVICE_PYTHON=3.12
	scripts/device_packages.sh $(PYTHON) $(DEVICE_PYTHON) $(DEVICE_PACKAGES)

device-check: ## check and measure DEVICE=cuda with the packages of PYTHON, in under five minutes: bench/README.md
	@PYTHONPATH="$(CURDIR)/$(DEVICE_PACKAGES)$(if $(PYTHONPATH),:$(PYTHONPATH))" $(PYTHON) -m bench.device $(OPTIONS)

clean: ## remove the environment and the files that tools left behind
	@[ ! -e $(VENV) ] || [ -e $(VENV)/pyvenv.cfg ] || [ -e $(VENV)/bin/.installed ] || \
		{ echo "$(VENV) is not a virtual environment, and stays: remove it yourself if you do not need it" >&2; exit 1; }
	rm -rf $(VENV) .coverage .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build/docs $(DEVICE_PACKAGES)

environment:
	@scripts/environment.sh $(PYTHON) $(VENV) requirements.txt

environment-dev:
	@scripts/environment.sh $(PYTHON) $(VENV) requirements-dev.txt
