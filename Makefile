# `make book` and `make test` are all a reader needs; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev

.DEFAULT_GOAL := help
.PHONY: help setup book student teacher test lab studies check bench clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## create the environment in .venv, or bring it up to date

book: $(READY)  ## run the notebooks that changed and build _build/html/index.html, or on DATASET a copy of its own
	@$(BIN)/python book/build.py $(if $(DATASET),--dataset '$(DATASET)')

student: $(READY)  ## build _build/student, the book without solutions
	@$(BIN)/python book/build.py --edition student $(if $(DATASET),--dataset '$(DATASET)')

teacher: $(READY)  ## build _build/teacher, the book with solutions and teachers' notes
	@$(BIN)/python book/build.py --edition teacher $(if $(DATASET),--dataset '$(DATASET)')

test: $(READY)  ## run the tests
	@$(BIN)/python -m pytest -n auto --dist loadfile

lab: $(READY)  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab

studies: $(READY)  ## run and record the experiments that are out of date, on DEVICE (auto)
	@$(BIN)/python -m studies all --record --device $(or $(DEVICE),auto)

check: $(READY_DEV)  ## lint, formatting, types, notebook hygiene
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/python -m pytest tests/test_notebooks.py

bench: $(READY)  ## run the measured comparisons, one after another
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

clean:  ## remove the built book and the executed notebooks; the environment stays
	@rm -rf _build build book/executed .pytest_cache .ruff_cache
	@echo "Removed the built book. The environment is in $(VENV): delete that folder to start afresh."

# The stamps are renewed when a file that decides the environment's content changes.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	    { echo "Python 3.11 or later is needed, and '$(PYTHON)' is not: try 'make PYTHON=python3.12 ...'." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages into $(VENV): a few minutes the first time."
	@$(PIP) --editable '.[book,test]'
	@touch $@

$(READY_DEV): $(READY)
	@echo "Installing the developers' tools into $(VENV)."
	@$(PIP) --editable '.[dev]'
	@touch $@
