# Needs python >= 3.11 with venv, make and git. Everything else is installed into .venv, at the versions in constraints.txt.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Looked for once, and only when something has to be installed.
ifndef PYTHON
PYTHON = $(eval PYTHON := $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done))$(PYTHON)
endif

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

# One thread per process: the tests and the studies use the cores through processes.
export OMP_NUM_THREADS ?= 1
# Products have the same bits wherever their operands lie, as in the processes of the studies.
export MKL_CBWR ?= AUTO
# Nothing is looked up or downloaded when the type checker runs: it and its node come from the package index.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

OLDEST := .venv-oldest

.PHONY: help venv demo test test-slow test-oldest check format docs bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP)  ## install the library and its tools into .venv

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: python >= 3.11 was not found; install it, or name one: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "error: $(PYTHON) is not a python >= 3.11; name another: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	|| { echo "error: $(PYTHON) has no venv module; install it (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON) (about a minute, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@# torch first and by its exact version: where an index offers a CPU build of that version, pip takes it.
	@$(PIP) install -qq -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@$(PIP) install -qq -c constraints.txt -e ".[dev,docs]"
	@touch $@

demo: $(STAMP)  ## run the smallest study, from nothing to a finished report
	@$(BIN)/regimes run feature-lazy --scale quick --out demo
	@echo "Report: $(CURDIR)/demo/report.html"

test: $(STAMP)  ## run the tests and the examples in the docstrings (not the slow ones)
	@$(BIN)/python -m pytest -n 2 -q -m "not slow"

test-slow: $(STAMP)  ## run the slow tests
	@$(BIN)/python -m pytest -n 2 -q -m slow tests

test-oldest:  ## run the tests with the oldest torch that is promised (it downloads gigabytes)
	@test -d $(OLDEST) || $(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python -m pip install -qq --disable-pip-version-check \
		"$$(sed -n 's/.*"\(torch\)>=\([0-9.]*\)".*/\1==\2.0/p' pyproject.toml)" -e ".[dev]"
	@$(OLDEST)/bin/python -m pytest -n 2 -q -m "not slow"

check: $(STAMP)  ## check style, format, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-cache

format: $(STAMP)  ## format the code and mend what ruff can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(STAMP)  ## build the documentation; any warning is an error
	@$(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html
	@echo "Documentation: $(CURDIR)/docs/_build/html/index.html"

bench: $(STAMP)  ## time the library side by side with its peers
	@$(BIN)/python -m benchmarks

clean:  ## remove the environment, caches and built pages (results stay)
	rm -rf $(VENV) $(OLDEST) docs/_build build dist .pytest_cache .ruff_cache .hypothesis .cache
	find src tests benchmarks examples docs -name __pycache__ -type d -prune -exec rm -rf {} +
